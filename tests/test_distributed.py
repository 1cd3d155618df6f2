"""Two processes, as `torchrun` starts them, against one."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests import run_processes
from vnet_fast import DiceLoss, train
from vnet_fast.run import checkpoint
from vnet_fast.training.draws import BatchSampler

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(run_processes.__file__)
TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 2, "--device", "cpu", "--folds", 3]
TINY += ["--learning-rate", 1e-3]


def torchrun(*arguments, **options):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


def train_in_two(*arguments):
    process = torchrun("-m", "vnet_fast.train", *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out, err


def rows_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_close(ours, theirs):
    """Weights within 1e-5 of their norms.

    Biases start at zero and are, as momentum is, no more than the sum of the updates: where rounding
    decides on which side of zero an activation lies, and so between two slopes, they differ by more.
    """
    for name, weight in ours["model"].items():
        _assert_within(1e-3 if name.endswith("bias") else 1e-5, weight, theirs["model"][name], name)
    for index, state in ours["optimizer"]["state"].items():
        expected = theirs["optimizer"]["state"][index]["momentum_buffer"]
        _assert_within(1e-3, state["momentum_buffer"], expected, index)


def _assert_within(share, ours, theirs, what):
    error = float((ours - theirs).norm() / theirs.norm())
    assert error <= share, what


@pytest.mark.exhaustive
def test_two_processes_train_as_one_with_twice_the_batch(cases, tmp_path, run_verb, monkeypatch):
    # ours have other forms for batches of other sizes
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    common = ["--data", cases, *TINY, "--iterations", 20, "--val-every", 10, "--clip", 0.1, "--ema", 0.9]
    common += ["--spacing", "auto"]
    out, err = train_in_two(*common, "--batch-size", 1, "--output", tmp_path / "two")
    assert out.count("2 processes") == 1
    # which is made before the processes know each other
    assert out.count("plan:") == 1
    assert out.count("validation Dice 0.") == out.count("\niteration ") + 1
    assert "Traceback" not in err
    assert run_verb(train, *common, "--batch-size", 2, "--output", tmp_path / "one")[0] == 0
    two, one = (checkpoint.load(tmp_path / name / "last.pt") for name in ("two", "one"))
    assert_close(two, one)
    assert two["best"]["per_case"].keys() == one["best"]["per_case"].keys()
    assert two["best"]["dice"] == pytest.approx(one["best"]["dice"], abs=2e-3)
    ours, theirs = rows_of(tmp_path / "two"), rows_of(tmp_path / "one")
    assert [row["iteration"] for row in ours] == [row["iteration"] for row in theirs]
    assert [float(row["loss"]) for row in ours] == pytest.approx([float(row["loss"]) for row in theirs], rel=1e-4)
    # resumed by one process, and what one began by two
    code, _, error = run_verb(train, "--resume", tmp_path / "two", "--iterations", 24)
    assert code == 0, error
    train_in_two("--resume", tmp_path / "one", "--iterations", 24)
    one, two = (checkpoint.load(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert one["iteration"] == two["iteration"] == 24
    assert (one["config"]["batch_size"], two["config"]["batch_size"]) == (1, 2)
    assert_close(one, two)


@pytest.mark.exhaustive
def test_no_thread_of_theirs_outlives_the_run(cases, tmp_path):
    """One that frees a tensor of Python's while the interpreter ends aborts the process, now and then."""
    process = torchrun(SCRIPT, "train_and_count_threads", "--data", cases, *TINY, "--iterations", 2,
                       "--batch-size", 1, "--output", tmp_path / "run")  # fmt: skip
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("threads: ") == 2
    assert "pt_gloo_runloop" not in err


@pytest.mark.exhaustive
def test_all_stop_when_one_dies(cases, tmp_path):
    run = tmp_path / "run"
    process = torchrun(SCRIPT, "train_until_one_dies", "--data", cases, *TINY, "--iterations", 1000, "--save-every", 2,
                       "--batch-size", 1, "--output", run)  # fmt: skip
    out, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "stopped at iteration" not in out
    assert "error: another process: has ended" in err
    assert checkpoint.load(run / "last.pt")["iteration"] == 4
    assert not (run / "lock").exists()


@pytest.mark.exhaustive
def test_bad_input_is_one_line_of_the_first(tmp_path):
    process = torchrun("-m", "vnet_fast.train", "--data", tmp_path, *TINY, "--output", tmp_path / "run")
    _, err = process.communicate(timeout=100)
    assert process.returncode != 0
    ours = err.partition("torch.distributed.elastic")[0]
    assert ours.count("error: ") == 1 + ours.count("error: another process: has ended")
    assert f"error: {tmp_path}: no volumes" in ours
    assert "vnet_fast/train.py" not in err


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)], ids=["SIGINT", "SIGTERM"]
)
@pytest.mark.exhaustive
def test_a_signal_stops_both_at_the_same_iteration(cases, tmp_path, number):
    run = tmp_path / "run"
    process = torchrun("-m", "vnet_fast.train", "--data", cases, *TINY, "--iterations", 100_000, "--batch-size", 1,
                       "--output", run, start_new_session=True)  # fmt: skip
    deadline = time.monotonic() + 100
    while not (run / "log.csv").exists() or len(rows_of(run)) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    stopped = checkpoint.load(run / "last.pt")["iteration"]
    assert f"stopped at iteration {stopped}. Resume with: python -m vnet_fast.train --resume {run}" in out
    assert not (run / "lock").exists()


@pytest.mark.exhaustive
def test_dice_of_the_batch_sums_over_the_processes(tmp_path):
    process = torchrun(SCRIPT, "batch_dice", tmp_path)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    results = json.loads((tmp_path / "result.json").read_text())
    assert [name for name in results["threads"] if "runloop" in name] == []
    assert results["running means"] == [[0, 0], [0, 0]]
    image, target = run_processes.batch(4)
    for together in (True, False):
        model = run_processes.convolution()
        loss = DiceLoss(softmax=True, to_onehot_y=True, batch=together)(model(image), target)
        loss.backward()
        ours, gradient = results[str(together)]
        assert ours == pytest.approx(loss.item(), rel=1e-6)
        assert gradient == pytest.approx(model.weight.grad.flatten().tolist(), rel=1e-5)


def test_parts_of_a_batch_are_the_whole_one():
    whole = BatchSampler(3, 4, 7, (16, 16, 16))(5)
    parts = [BatchSampler(3, 2, 7, (16, 16, 16), part=part, parts=2)(5) for part in range(2)]
    for name in ("cases", "intensities_of", "deformed", "control_points"):
        ours = torch.cat([torch.from_numpy(getattr(part, name)) for part in parts])
        assert torch.equal(ours, torch.from_numpy(getattr(whole, name)))
