"""A run that is stopped at any moment, and resumed, ends as if it had not been."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vnet_fast import train
from vnet_fast.nn.vnet import VNet
from vnet_fast.run import checkpoint

KILLED_PREDICTIONS = 17
SCRIPT = Path(__file__).with_name("kill_runs.py")
FAST = ["--recipe", "fast", "--clip", 0.1]
# device, kills, iterations, the longest life of a training in seconds, further options
RUNS = [
    pytest.param("cpu", 3, 60, 0.6, FAST, marks=pytest.mark.exhaustive, id="few, fast"),
    pytest.param("cpu", 12, 240, 0.6, [], marks=pytest.mark.exhaustive, id="many"),
    pytest.param("cuda", 20, 500, 2, [], marks=pytest.mark.gpu, id="gpu"),
    pytest.param("cuda", 5, 200, 2, FAST, marks=pytest.mark.gpu, id="gpu, fast"),
]


def rows_of(run):
    with open(run / "log.csv", newline="") as file:
        return [(row["iteration"], row["loss"], row["validation_dice"]) for row in csv.DictReader(file)]


def assert_equal(ours, theirs, name):
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs), name
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), name
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{name}[{key!r}]")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), name
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{name}[{index}]")
    else:
        assert ours == theirs, name


@pytest.mark.parametrize(("device", "kills", "iterations", "longest", "options"), RUNS)
def test_kills_at_random_moments_change_nothing(cases, tmp_path, device, kills, iterations, longest, options):
    arguments = ["--data", cases, "--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1]
    arguments += ["--folds", 3, "--device", device, "--iterations", iterations, "--lr-step", 200, "--deterministic"]
    # an interval that divides neither the other nor the run: what is saved is seldom what was validated
    arguments += ["--val-every", 70, "--save-every", 4, "--learning-rate", 1e-3, *options]
    command = [sys.executable, SCRIPT, tmp_path, kills, longest, *arguments]
    # of volumes this small two threads mostly wait for each other
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, env=environment)
    output = (tmp_path / "output.txt").read_text()
    assert result.returncode == 0, result.stderr + output
    found = json.loads(result.stdout)
    codes = found["codes"]
    assert len(codes) == kills
    # each ended by the signal, or, its step finished, with the code that says so
    for number, code in codes:
        assert code in (-number, 128 + number)
    if kills >= 12:
        assert {number for number, _ in codes} == {signal.SIGINT, signal.SIGTERM, signal.SIGKILL}
    assert "Traceback" not in output
    assert output.count("resuming at iteration") >= kills // 2
    whole = torch.load(tmp_path / "whole" / "last.pt", weights_only=True)
    for index in range(found["runs"]):
        run = tmp_path / f"killed{index}"
        killed = torch.load(run / "last.pt", weights_only=True)
        for part in ("iteration", "model", "optimizer", "scaler", "average"):
            assert_equal(killed.get(part), whole.get(part), part)
        assert killed["best"] == whole["best"]
        assert rows_of(run) == rows_of(tmp_path / "whole")
        assert_same_result(run, tmp_path / "whole")


def assert_same_result(run, whole):
    """The predictions of the cases that were held out, their Dice, and nothing unfinished."""
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert all(ours[name] == theirs[name] for name in theirs if "dice" in name)
    masks = {path.name: path.read_bytes() for path in (whole / "predictions").glob("*.zraw")}
    assert masks
    assert {path.name: path.read_bytes() for path in (run / "predictions").glob("*.zraw")} == masks
    assert not [path for path in run.rglob(".*") if path.name.startswith((".writing-", ".last", ".best"))]


@pytest.mark.exhaustive
def test_kills_of_prediction_leave_whole_masks(cases, tmp_path):
    torch.manual_seed(0)
    checkpoint.save(
        tmp_path / "n.pt", VNet(base_channels=2), spacing=[1.5, 1.5, 2.0], volume=[32, 32, 16], validation=[]
    )
    options = ["--checkpoint", tmp_path / "n.pt", "--input", cases, "--device", "cpu", "--probabilities"]
    command = [sys.executable, SCRIPT.with_name("kill_predictions.py"), tmp_path, KILLED_PREDICTIONS, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["codes"]) == KILLED_PREDICTIONS
    for number, code in found["codes"]:
        assert code in (-number, 128 + number)
    # masks that were there after a kill were whole, and some kill came while there were any
    assert found["masks seen after kills"] > 0
    whole, killed = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "killed")
    )
    assert len(whole) == 4 * 6
    assert killed == whole
    assert "Traceback" not in (tmp_path / "output.txt").read_text()


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize(
    "change",
    [{"iteration": 2**40}, {"seconds": 1e-9}, {"seconds": 0}, {"iteration": 3}],
    ids=["far", "fast", "at once", "late"],
)
def test_a_speed_that_no_machine_has_is_refused(cases, tmp_path, run_verb, change):
    """A run would go on with it, and say that it trains 541327345 volumes/s."""
    run = tmp_path / "run"
    small = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
    assert run_verb(train, "--data", cases, "--output", run, *small, "--iterations", 2)[0] == 0
    content = torch.load(run / "last.pt", weights_only=True)
    torch.save({**content, **change}, run / "last.pt")
    (run / "summary.json").unlink()
    code, out, err = run_verb(train, "--resume", run, "--iterations", 4)
    assert code == 2
    cause = r"(\d+ iterations in \S+ s are impossible|it is at iteration \d+ of 2)"
    assert re.fullmatch(rf"error: \S+last.pt: can't be resumed: {cause}. \S.*\n", err)
    assert "volumes/s" not in out
