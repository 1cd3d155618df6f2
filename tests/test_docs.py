"""Every example of README, docs and CONTRIBUTING is run with small networks, and what they name exists."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk

import vnet_fast
from tests.io.dicom_slices import write_series
from tests.test_rooms import ARROWS, SMALL
from tests.volumes import write_case
from vnet_fast import __main__, plotting

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels" / "README.md", *ROOT.glob("docs/*.md")]
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCES = [(page, *fence) for page, text in PAGES.items() for fence in FENCE.findall(text)]
BLOCKS = [
    pytest.param(code, id=f"{page}-{n}", marks=[pytest.mark.exhaustive] if "torch.export" in code else [])
    for n, (page, kind, code) in enumerate(FENCES)
    if kind == "python"
]
# a command that several pages have is run once
COMMANDS = list(
    dict.fromkeys(line for text in PAGES.values() for line in re.findall(r"^    (\S.*)$", FENCE.sub("", text), re.M))
)
VERBS = r"^(python -m vnet_fast|vnet-fast )|&& \.venv/bin/python -m vnet_fast"
# what these do is tested by tests/verbs/test_export.py, test_export_folders.py and test_report.py, and by
# tests/training/test_cross_validation.py
IN_SECOND_RING = r"vnet_fast\.export |^python PIPELINE/|--fold all|--run RUN_B"
WITHOUT_ITERATIONS = shlex.split("--volume 16 16 16 --spacing 1.5 1.5 2 --base-channels 2 --folds 3 --device cpu")
TINY = [*WITHOUT_ITERATIONS, "--iterations", "2"]
# the folders of the repository, by which a path is told from a path of the user
FOLDERS = r"(?:vnet_fast|kernels|tests|benchmarks|docs|\.ci)/"


def run_verb(arguments):
    """Runs a verb in this process, a training without its pictures; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        if arguments[:1] == ["train"]:
            patch.setattr(plotting, "available", lambda: False)
        with pytest.raises(SystemExit) as stopped:
            __main__.main(arguments)
    return stopped.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with the data, runs and predictions that the examples name."""
    folder = tmp_path_factory.mktemp("docs")
    before = Path.cwd()
    os.chdir(folder)
    for name in ("DIR", "IMAGES"):
        Path(name).mkdir()
    for index in range(6):
        image, _ = write_case(Path("DIR"), f"Case{index:02d}", seed=index)
        for path in (image, image.with_suffix(".zraw")):
            os.link(path, Path("IMAGES", path.name))
    for run, loss in (("RUN", "dice"), ("RUN_A", "dice"), ("RUN_B", "weighted-ce"), ("runs/mine", "dice")):
        common = ["train", "--data", "DIR", *TINY, "--save-every", "1"]
        assert run_verb([*common, "--output", run, "--loss", loss]) == 0
    for run, masks in (("RUN_A", "MASKS_A"), ("RUN_B", "MASKS_B"), ("RUN", "MASKS")):
        predicted = ["predict", "--checkpoint", f"{run}/best.pt", "--input", "IMAGES", "--output", masks]
        predicted += ["--probabilities"] if masks == "MASKS" else []
        assert run_verb(predicted) == 0
    Path("LABELS").symlink_to("DIR")
    names = [f"Case{index:02d}" for index in range(6)]
    # as many folds as TINY has
    splits = [{"train": names[:fold] + names[fold + 2 :], "val": names[fold : fold + 2]} for fold in (0, 2, 4)]
    Path("splits_final.json").write_text(json.dumps(splits))
    examples = {page: code for page, kind, code in FENCES if kind == "toml"}
    for page, name in (("docs/evaluate.md", "observer.toml"), ("docs/predict.md", "segments.toml")):
        Path(name).write_text(examples[page])
    scan = sitk.Cast(sitk.ReadImage("DIR/Case00.mhd"), sitk.sitkInt16)
    for series in ("SERIES", "STUDY/T2"):
        write_series(Path(series), scan)
    yield folder
    os.chdir(before)


def commands(pattern):
    """The commands of all pages that match, as parameters, with what follows the installation as ids."""
    return pytest.mark.parametrize(
        "command",
        [
            pytest.param(
                command,
                id=command.rpartition("&& ")[2],
                marks=[pytest.mark.exhaustive] if re.search(IN_SECOND_RING, command) else [],
            )
            for command in COMMANDS
            if re.search(pattern, command)
        ],
    )


def arguments_of(command):
    """The arguments for `vnet-fast` of a command, such as `train --amp`."""
    command = command.rpartition("&& ")[2].removeprefix(".venv/bin/")
    return shlex.split(re.sub(r"^(python -m vnet_fast\.?|vnet-fast )", "", command))


def test_every_example_is_known():
    """No example is added that no test here runs."""
    # the README's second command is the one that runs this test
    known = rf"{VERBS}|^torchrun |^pytest |^python PIPELINE/|^python -m venv .*pytest -n auto --dist loadfile$"
    assert [command for command in COMMANDS if not re.search(known, command)] == []
    assert {kind for _, kind, _ in FENCES} == {"python", "toml"}
    assert sum(text.count("```") for text in PAGES.values()) == 2 * len(FENCES)


class TinyTrainer(vnet_fast.Trainer):
    """A Trainer whose runs are short, whatever an example says."""

    def __init__(self, **options):
        tiny = {"volume": (16, 16, 16), "spacing": (1.5, 1.5, 2), "base_channels": 2, "folds": 3, "device": "cpu"}
        if "resume" not in options:
            options |= {**tiny, "minutes": 0.001} if "minutes" in options else {**tiny, "iterations": 2}
        super().__init__(**options)


@pytest.mark.parametrize("code", BLOCKS)
def test_code(code, folder, monkeypatch):
    # kernels are timed for longer than one step of the whole network takes
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    monkeypatch.setattr(vnet_fast, "Trainer", TinyTrainer)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@commands(VERBS)
def test_command(command, folder, tmp_path, capsys):
    arguments = arguments_of(command)
    if "--dicom-seg" in arguments or any(argument.endswith(".dcm") for argument in arguments):
        pytest.importorskip("highdicom", reason="highdicom is not installed")
    if arguments[:1] == ["train"] and "--resume" in arguments:
        # the other examples use the run as it is
        run = arguments.index("--resume") + 1
        arguments[run] = str(shutil.copytree(arguments[run], tmp_path / "run"))
        arguments += ["--iterations", "3"]
    elif arguments[:1] == ["train"]:
        arguments += ["--minutes", "0.001", *WITHOUT_ITERATIONS] if "--minutes" in arguments else TINY
        if "--output" not in arguments or "RUN" in arguments:
            # of an option that is given twice, the last counts
            arguments += ["--output", str(tmp_path / "run")]
    assert run_verb(arguments) == 0, capsys.readouterr().err


@pytest.mark.exhaustive
@commands(r"^torchrun ")
def test_command_of_several_processes(command, folder, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words += [*TINY, "--output", str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pipeline(folder, tmp_path_factory):
    """The pipeline folder of a run."""
    path = tmp_path_factory.mktemp("exported") / "pipeline"
    exported = ["export", "--checkpoint", "RUN/best.pt", "--output", str(path), "--format", "pipeline"]
    assert run_verb(exported) == 0
    return path


@commands(r"^python PIPELINE/")
def test_command_of_a_pipeline(command, folder, pipeline):
    _, program, *arguments = shlex.split(command.replace("PIPELINE", str(pipeline)))
    done = subprocess.run([sys.executable, program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def environment_of_benchmarks():
    """Small volumes; and nothing of a process of pytest-xdist, in which pytest-benchmark measures nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return environment | {"VNET_FAST_BENCHMARK_SIZE": "tiny"}


@pytest.mark.exhaustive
@commands(r"^pytest ")
def test_command_of_benchmarks(command, tmp_path):
    """The benchmarks of one file, on volumes of a size that only shows that all works."""
    words = [
        sys.executable,
        "-m",
        *shlex.split(command),
        "-k",
        "bench_layers and forward and 32x32x16",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(words, cwd=ROOT, env=environment_of_benchmarks(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)


@pytest.mark.exhaustive
def test_benchmarks_of_the_program_itself(tmp_path):
    """What the program's own parts are called by, on the smallest volumes; failures of others are rows of the table."""
    files = [f"benchmarks/bench_{name}.py" for name in ("step", "training", "inference", "fast")]
    command = [sys.executable, "-m", "pytest", *files, "--benchmark-only"]
    command += ["-k", "vnet_fast or ONNX", "--benchmark-json", str(tmp_path / "result.json"), "-p", "no:cacheprovider"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_of_benchmarks(), capture_output=True, text=True, timeout=480
    )
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "result.json").read_text())["failures"] == []


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        if not link.startswith("https://") and not (path.exists() and (not anchor or anchor in anchors(path))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    """The paths of the repository that a page names, except those of a new file NAME."""
    words = [word for code in re.findall(r"`([^`]+)`", FENCE.sub("", PAGES[page])) for word in code.split()]
    paths = {word for word in words if re.match(FOLDERS, word) and "NAME" not in word}
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_names_are_in_the_files_that_contributing_names():
    pairs = re.findall(r"`(\w+)`\s(?:in|of)\s`([^`]+\.py)`", PAGES["CONTRIBUTING.md"])
    assert ("FORMATS", "vnet_fast/io/formats.py") in pairs
    missing = [(name, path) for name, path in pairs if not re.search(rf"\b{name}\b", (ROOT / path).read_text("utf-8"))]
    assert missing == []


def test_the_map_of_rooms_is_that_of_the_test():
    rows = re.findall(r"^\| `(?:vnet_fast/)?(\w+)/` \|[^|]*\|(.*)\|$", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert {room: set(re.findall(r"\w+", imports)) for room, imports in rows} == ARROWS
    small = re.findall(
        r"`vnet_fast/(\w+)\.py`", PAGES["CONTRIBUTING.md"].partition("small modules")[2].split(" import ")[0]
    )
    assert set(small) == SMALL


def test_checks_are_those_of_ci():
    """CONTRIBUTING names every check of `.ci/run`, and the hooks of pre-commit are among them."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    checks = re.findall(r"^ *\.venv/bin/(.+?)(?: \"\$@\")?$", ci, re.MULTILINE)
    assert len(checks) == 4
    assert [check for check in checks if f"`{check}`" not in PAGES["CONTRIBUTING.md"]] == []
    hooks = re.findall(r"entry: ([^,}]+)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [check.removesuffix(" .") for check in checks if "pytest" not in check] == hooks


def test_readme_is_short():
    assert PAGES["README.md"].count("\n") <= 200


def test_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(.+?)\]", changelog, re.MULTILINE)[1] == vnet_fast.__version__
