"""A run that is stopped and resumed is the same run, and nothing makes another one of it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.send_signal import send
from tests.verbs.test_train import ON_DATA, ROOT, TINY, rows_of
from tests.volumes import write_case
from vnet_fast import train
from vnet_fast.run import checkpoint
from vnet_fast.training import signals


def weights_after(run):
    return checkpoint.load(run / "last.pt")["model"]


def test_same_seed_same_weights_and_resuming_changes_nothing(cases, tmp_path, run_verb):
    arguments = ["--data", cases, *TINY, "--folds", 3, "--val-every", 2, "--learning-rate", 0.01]
    whole, again, parts, other = (tmp_path / name for name in ("whole", "again", "parts", "other"))
    for run in (whole, again):
        assert run_verb(train, *arguments, "--output", run, "--iterations", 6)[0] == 0
    assert run_verb(train, *arguments, "--output", parts, "--iterations", 4)[0] == 0
    code, out, _ = run_verb(train, "--resume", parts, "--iterations", 6)
    assert code == 0
    assert "resuming at iteration 4" in out
    assert [int(row["iteration"]) for row in rows_of(parts)] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in rows_of(parts)] == [row["loss"] for row in rows_of(whole)]
    for weights in zip(*(weights_after(run).values() for run in (whole, again, parts)), strict=True):
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])
    assert run_verb(train, *arguments, "--output", other, "--iterations", 6, "--seed", 2)[0] == 0
    assert any(
        not torch.equal(a, b) for a, b in zip(weights_after(whole).values(), weights_after(other).values(), strict=True)
    )


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 0, marks=pytest.mark.exhaustive, id="SIGINT-0"),
        pytest.param(signal.SIGTERM, 1, marks=pytest.mark.exhaustive, id="SIGTERM-1"),
    ],
)
def test_a_signal_saves_and_says_how_to_resume(cases, tmp_path, number, workers):
    arguments = ["--data", cases, "--output", tmp_path / "run", *TINY, "--folds", 3, "--iterations", 100_000]
    arguments += ["--workers", workers]
    process = subprocess.Popen(
        [sys.executable, "-m", "vnet_fast.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "run" / "log.csv").exists() or len(rows_of(tmp_path / "run")) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    # the whole group, workers too, as a terminal and job managers do
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    stopped = checkpoint.load(tmp_path / "run" / "last.pt")["iteration"]
    assert f"stopped at iteration {stopped}. Resume with: python -m vnet_fast.train --resume" in out
    assert int(rows_of(tmp_path / "run")[-1]["iteration"]) == stopped


def test_a_run_is_not_overwritten(cases, tmp_path, run_verb):
    arguments = ["--data", cases, "--output", tmp_path / "run", *ON_DATA]
    assert run_verb(train, *arguments)[0] == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    code, _, err = run_verb(train, *arguments)
    assert code == 2
    assert "holds a run already" in err
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


# in the first ring, test_checkpoint.py has the running means
@pytest.mark.exhaustive
def test_resuming_with_batch_norm_changes_nothing(cases, tmp_path, run_verb):
    arguments = ["--data", cases, *TINY, "--folds", 3, "--val-every", 2, "--norm", "batch", "--levels", 3]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_verb(train, *arguments, "--output", whole, "--iterations", 4)[0] == 0
    assert run_verb(train, *arguments, "--output", parts, "--iterations", 2)[0] == 0
    assert run_verb(train, "--resume", parts, "--iterations", 4)[0] == 0
    expected, found = weights_after(whole), weights_after(parts)
    assert any("running_var" in name for name in expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_resume_refuses_what_would_make_another_run(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    for arguments, message in (
        (["--topology", "caffe"], "--topology: is caffe here and paper in"),
        (["--base-channels", 4], "--base-channels: is 4 here and 2 in"),
        (["--norm", "batch"], "--norm: is batch here and none in"),
        (["--init", run / "best.pt"], "--init: given to a run that started from nothing"),
        ([], "is at iteration 6 of 6. Give more --iterations"),
    ):
        code, _, err = run_verb(train, "--resume", run, *arguments)
        assert code == 2
        assert message in err
    for name in ("last.pt", "previous.pt"):
        (run / name).write_bytes(b"nonsense")
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "last.pt: damaged, or not a checkpoint" in err


@pytest.mark.exhaustive
def test_workers_and_resume_give_the_same_run(cases, tmp_path, run_verb):
    """Batches made ahead, by other processes and from the middle of a run on, are those made in the step."""
    common = ["--data", cases, *TINY, "--folds", 3, "--iterations", 6]
    assert run_verb(train, *common, "--output", tmp_path / "inside")[0] == 0
    code, out, err = run_verb(train, *common, "--output", tmp_path / "ahead", "--workers", 2, "--iterations", 3)
    assert code == 0, err
    assert "augmented by 2 processes ahead of the step" in out
    code, _, err = run_verb(train, "--resume", tmp_path / "ahead", "--iterations", 6, "--workers", 1)
    assert code == 0, err
    losses = [[row["loss"] for row in rows_of(tmp_path / name)] for name in ("inside", "ahead")]
    assert losses[0] == losses[1]


def test_a_second_signal_ends_at_once():
    stop = signals.StopSignal()
    send(signal.SIGINT, lambda: stop.number)
    assert stop.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_resume_refuses_other_cases(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    before = (run / "config.json").read_bytes()
    write_case(cases, "Case03b", seed=9)
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "its cases have changed: Case03b. Restore them, or start a new run" in err
    assert (run / "config.json").read_bytes() == before


@pytest.mark.exhaustive
def test_resume_in_another_precision(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    for iterations, amp in ((7, "fp16"), (8, "bf16"), (9, "off")):
        code, _, err = run_verb(train, "--resume", run, "--iterations", iterations, "--amp", amp)
        assert code == 0, err


@pytest.mark.exhaustive
def test_a_run_stopped_at_its_end_is_finished_by_resuming(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    (run / "summary.json").unlink()
    code, _, err = run_verb(train, "--resume", run, "--iterations", 3)
    assert (code, "is at iteration 6 of 3. Give more --iterations" in err) == (2, True)
    assert run_verb(train, "--resume", run)[0] == 0
    assert json.loads((run / "summary.json").read_text())["iterations"] == 6


def test_resume_takes_no_other_output(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    code, _, err = run_verb(train, "--resume", run, "--output", tmp_path / "other", "--iterations", 9)
    assert code == 2
    assert "--output: given with --resume" in err
