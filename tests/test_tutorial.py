"""The tutorial: a valid notebook without outputs, whose cells run one after the other."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "tutorial.ipynb"
NOTEBOOK = json.loads(PATH.read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_a_notebook_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert NOTEBOOK.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    for cell in NOTEBOOK["cells"]:
        expected = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            expected |= {"outputs", "execution_count"}
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        assert cell.keys() == expected
    assert all(ast.parse(code) for code in CODE)


def test_it_is_valid_by_nbformats_schema():
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbformat.validate(nbformat.read(PATH, as_version=4))


@pytest.mark.exhaustive
def test_its_cells_run(tmp_path):
    """What the last line of a cell gives is shown as a notebook would."""
    lines = ["import ast, json", f"cells = json.loads({json.dumps(CODE)!r})", "names = {'__name__': '__main__'}"]
    lines += [
        "for cell in cells:",
        "    body = ast.parse(cell)",
        "    last = body.body.pop() if isinstance(body.body[-1], ast.Expr) else None",
        "    exec(compile(body, 'cell', 'exec'), names)",
        "    value = eval(compile(ast.Expression(last.value), 'cell', 'eval'), names) if last else None",
        "    picture = getattr(value, '_repr_png_', None)",
        "    print('PNG' if picture and picture()[1:4] == b'PNG' else value)",
        "assert names['run'].summary['val_dice'] > 0.6",
        "assert names['result'].labels.any()",
        "assert names['result'].entropy[names['border']].mean() > names['result'].entropy[~names['border']].mean()",
        "assert len(names['table']) == 20",
        "assert names['segment'].load(names['run'].folder).networks.count == 1",
        "assert (names['folder'] / 'mask_entropy.nii.gz').exists()",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count("PNG") == 2
