"""The arrows between the rooms: which room may import which (CONTRIBUTING.md has the map)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERBS = {"train", "predict", "evaluate", "report", "export", "doctor"}
SMALL = {
    "accelerators",
    "errors",
    "files",
    "host_memory",
    "devices",
    "distributed",
    "command_line",
    "versions",
    "plotting",
    "text_table",
    "averages",
    "interrupts",
    "regions",
    "streams",
    "stored",
    "progress",
    "slices",
}
# rooms that each room may import; the small modules are for all but io, which knows only errors
ARROWS = {
    "kernels": set(),
    "ops": {"kernels"},
    "nn": {"ops"},
    "compat": {"ops"},
    "io": set(),
    "run": {"nn", "ops"},
    "data": {"io"},
    "evaluation": {"data", "io"},
    "prediction": {"data", "run", "nn", "ops", "io"},
    "deployment": {"prediction", "data", "run", "nn", "ops", "io"},
    "training": {"evaluation", "prediction", "data", "run", "nn", "ops"},
    "diagnostics": {"training", "data", "run", "nn", "ops"},
    "reporting": {"evaluation", "prediction", "data", "run", "io"},
    "interface": {"training", "evaluation", "prediction", "data", "run", "io"},
}
LONGEST_FILE, LONGEST_FUNCTION = 300, 45


def sources(root):
    """The files of a checkout by the room that they belong to; a module beside the rooms is a room of its own."""
    for path in sorted((root / "vnet_fast").rglob("*.py")):
        yield path.relative_to(root / "vnet_fast").parts[0].removesuffix(".py"), path
    for path in sorted((root / "kernels").glob("*.py")):
        yield "kernels", path


def imported_rooms(path):
    """The rooms, and modules beside them, that a file imports anywhere, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            # not by its full name, so that no room can be told
            yield f"{'.' * node.level}{node.module or ''}", node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "vnet_fast":
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vnet_fast."):
            yield node.module.split(".")[1], node.lineno
        elif isinstance(node, ast.Import):
            yield from ((a.name.split(".")[1], node.lineno) for a in node.names if a.name.startswith("vnet_fast."))


def is_allowed(room, imported):
    """Whether a file of a room may import another room, or a module beside the rooms."""
    if imported.startswith("."):
        return False
    if room == imported or room in {"__init__", "__main__"}:
        return True
    if imported in SMALL | {"__version__"}:
        return room not in {"io", "kernels"} or (room == "io" and imported == "errors")
    if room in VERBS:
        return imported in ARROWS
    return imported in ARROWS.get(room, set())


def forbidden_arrows(root):
    """The imports against the arrows, as `file:line: room imports room`."""
    return [
        f"{path.relative_to(root)}:{line}: {room} imports {imported}"
        for room, path in sources(root)
        for imported, line in imported_rooms(path)
        if not is_allowed(room, imported)
    ]


def test_no_import_goes_against_the_arrows():
    assert forbidden_arrows(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("data/cases.py", "from vnet_fast.nn.vnet import VNet", "data imports nn"),
        ("io/grid.py", "import vnet_fast.files", "io imports files"),
        ("evaluation/metrics.py", "def f():\n    from vnet_fast.run import checkpoint", "evaluation imports run"),
        ("training/step.py", "from vnet_fast import train", "training imports train"),
        ("devices.py", "from vnet_fast.nn import vnet", "devices imports nn"),
        ("ops/dice.py", "from vnet_fast.nn import losses", "ops imports nn"),
        ("data/cases.py", "from ..nn.vnet import VNet", "data imports ..nn.vnet"),
        ("data/cases.py", "from .. import nn", "data imports .."),
    ],
)
def test_an_arrow_against_them_is_found(tmp_path, file, line, message):
    path = tmp_path / "vnet_fast" / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    (found,) = forbidden_arrows(tmp_path)
    assert found.startswith(f"vnet_fast/{file}:")
    assert found.endswith(message)


def test_every_room_has_arrows_and_tests():
    rooms = {path.parent.name for path in (ROOT / "vnet_fast").glob("*/__init__.py")}
    assert rooms == ARROWS.keys() - {"kernels"}
    assert all(any((ROOT / "tests" / room).glob("test_*.py")) for room in rooms)


def test_no_file_and_no_function_is_too_long():
    too_long = []
    for _, path in sources(ROOT):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_FILE:
            too_long.append(f"{path.relative_to(ROOT)}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION:
                too_long.append(f"{path.relative_to(ROOT)}: {node.name}, {node.end_lineno - node.lineno + 1} lines")
    assert too_long == []
