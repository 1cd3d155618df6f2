"""Every example of the README is run, with small networks and few iterations."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.volumes import write_case
from vnet_fast import command_line, evaluate, export, predict, report, train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(
    r"^    (\S.*)$", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
)
VERBS = {f"vnet_fast.{verb.__name__.rpartition('.')[2]}": verb for verb in (train, predict, evaluate, report, export)}
TINY = shlex.split("--volume 16 16 16 --spacing 1.5 1.5 2 --base-channels 2 --iterations 2 --folds 3 --device cpu")
OBSERVER = re.search(r"^```toml\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)[1]


def run_here(*words):
    """Runs `python -m …` in this process; returns its exit code."""
    assert words[:2] == ("python", "-m"), words
    verb = VERBS[words[2]]
    with pytest.raises(SystemExit) as stopped:
        command_line.run(verb.main, command_line.parser_of(verb.Config, words[2]), list(words[3:]))
    return stopped.value.code


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the README's names stand for what they say."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("DIR", "IMAGES"):
        (folder / name).mkdir()
    for index in range(6):
        image, mask = write_case(folder / "DIR", f"Case{index:02d}", seed=index)
        for path in (image, image.with_suffix(".zraw")):
            os.link(path, folder / "IMAGES" / path.name)
        assert mask.exists()
    return folder


@pytest.fixture(scope="module")
def place(folder):
    """That folder with runs and predictions in it, as the working folder."""
    before = Path.cwd()
    os.chdir(folder)
    common = ["python", "-m", "vnet_fast.train", "--data", "DIR", *TINY, "--save-every", "1"]
    for run, loss in (("RUN", "dice"), ("RUN_A", "dice"), ("RUN_B", "weighted-ce"), ("runs/mine", "dice")):
        assert run_here(*common, "--output", run, "--loss", loss) == 0
    for run, masks in (("RUN_A", "MASKS_A"), ("RUN_B", "MASKS_B"), ("RUN", "MASKS_HERE")):
        predicted = ["--checkpoint", f"{run}/best.pt", "--input", "IMAGES", "--output", masks]
        assert run_here("python", "-m", "vnet_fast.predict", *predicted) == 0
    for name, link in (("MASKS", "MASKS_HERE"), ("LABELS", "DIR")):
        os.symlink(link, name)
    (folder / "observer.toml").write_text(OBSERVER)
    yield folder
    os.chdir(before)


def commands(pattern):
    """The README's commands that match, as parameters, with themselves as ids."""
    found = [command for command in COMMANDS if re.search(pattern, command)]
    return pytest.mark.parametrize("command", found, ids=[command.rpartition("&& ")[2] for command in found])


def test_every_example_is_known():
    """So that none is added that nothing here runs."""
    # the second command is what runs this test
    known = r"python -m vnet_fast|^torchrun |^pytest |^python -m venv .*pytest$"
    assert [command for command in COMMANDS if not re.search(known, command)] == []
    assert README.count("```") == 2 * (len(BLOCKS) + 1)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code(code, place):
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


@commands(r"python -m vnet_fast")
def test_command(command, place, tmp_path, capsys):
    # the first command installs the project before
    words = shlex.split(command.rpartition("&& ")[2])
    words[0] = "python"
    if words[2] == "vnet_fast.train" and "--resume" not in words:
        words += TINY + ([] if "--output" in words else ["--output", str(tmp_path / "run")])
    if words[2] == "vnet_fast.train" and "--resume" in words:
        words += ["--iterations", "3"]
    assert run_here(*words) == 0, capsys.readouterr().err


@commands(r"^torchrun ")
def test_command_of_several_processes(command, place, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words += [*TINY, "--output", str(tmp_path / "run")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@commands(r"^pytest ")
def test_command_of_benchmarks(command, tmp_path):
    """One file's, on volumes of a size that only shows that all works."""
    words = [sys.executable, "-m", *shlex.split(command), "-k", "bench_layers and forward", "-p", "no:cacheprovider"]
    environment = os.environ | {"VNET_FAST_BENCHMARK_SIZE": "tiny"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d+ passed", done.stdout)
