"""What goes wrong while a run trains: said in one line, and nothing of it lost."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vnet_fast import VNet, train
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.configure import configure
from vnet_fast.training import trainer, workers

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]


def config_of(cases, tmp_path, **settings):
    defaults = {"volume": (16, 16, 16), "spacing": (1.5, 1.5, 2.0), "base_channels": 1, "folds": 3, "device": "cpu"}
    defaults |= {"iterations": 8, "val_every": 4, "save_every": 4}
    return Config(data=str(cases), output=str(tmp_path / "run"), **{**defaults, **settings})


def failing_from(monkeypatch, run, iteration, change):
    """Lets the loss be another from an iteration on, counted from 1."""
    original, calls = run.step.loss, []

    def loss(logits, target):
        calls.append(1)
        value = original(logits, target)
        return change(value) if len(calls) >= iteration else value

    monkeypatch.setattr(run.step, "loss", loss)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(cases, tmp_path, monkeypatch, bad):
    run = trainer.Trainer(config_of(cases, tmp_path))
    failing_from(monkeypatch, run, 6, lambda loss: loss + bad)
    names = sorted({case.name for case in run.data.training})
    with pytest.raises(InputError) as caught:
        run.train()
    run.close()
    message = str(caught.value)
    assert "the loss became NaN or infinite at iteration 6 (" in message
    drawn = {run.data.training[case].name for case in run.sampler(5).cases}
    assert all((name in message) == (name in drawn) for name in names)
    assert "last.pt is from before. Start again with a lower --learning-rate" in message
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 4


def test_weights_that_are_not_finite_are_not_saved(cases, tmp_path, monkeypatch):
    """The loss of the last iteration is finite, its gradient is not."""
    run = trainer.Trainer(config_of(cases, tmp_path))
    failing_from(monkeypatch, run, 8, lambda loss: loss + (loss * 0).sqrt())
    with pytest.raises(InputError, match=r"weights became NaN or infinite by iteration 8; last\.pt is from before"):
        run.train()
    run.close()
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 4
    assert checkpoint.load(tmp_path / "run" / "best.pt")["iteration"] == 4


def test_float16_goes_on_until_its_scaler_has_given_up(cases, tmp_path, monkeypatch):
    run = trainer.Trainer(config_of(cases, tmp_path, amp="fp16", iterations=40, val_every=4, save_every=4))
    run.step.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1000)
    failing_from(monkeypatch, run, 3, lambda loss: loss * float("inf"))
    with pytest.raises(InputError, match="the loss became NaN or infinite at iteration"):
        run.train()
    run.close()
    # 64 is halved by each of the updates that overflow: skipped, and below 1 after seven of them
    last = checkpoint.load(tmp_path / "run" / "last.pt")
    assert last["iteration"] == 8
    assert last["scaler"]["scale"] == 1.0
    assert run.step.scaler.get_scale() < 1


@pytest.mark.exhaustive
def test_out_of_memory_says_what_fits(cases, tmp_path, run_verb, monkeypatch):
    original = VNet.forward

    def forward(model, x):
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(model, x)

    monkeypatch.setattr(VNet, "forward", forward)
    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--iterations", 2, "--batch-size", 5, "--output", tmp_path / "run"
    )
    assert code == 2
    assert err == (
        "error: cpu: 5 volumes of 16 x 16 x 16 do not fit in memory. "
        "Give --batch-size 2, which fits, or --base-channels below 1\n"
    )
    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--iterations", 2, "--batch-size", 2, "--output", tmp_path / "run"
    )
    assert code == 0, err


def test_two_runs_in_one_folder(cases, tmp_path, run_verb):
    first = trainer.Trainer(config_of(cases, tmp_path))
    code, _, err = run_verb(train, "--data", cases, *TINY, "--output", tmp_path / "run")
    assert code == 2
    assert err == (
        f"error: {tmp_path / 'run'}: process {os.getpid()} is training in it. "
        "Wait for its end, or choose another --output\n"
    )
    first.close()
    assert run_verb(train, "--data", cases, *TINY, "--iterations", 1, "--output", tmp_path / "run")[0] == 0


def test_a_damaged_last_checkpoint_never_takes_the_place_of_the_good_one(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    options = ["--iterations", 8, "--save-every", 2]
    assert run_verb(train, "--data", cases, *TINY, *options, "--output", run)[0] == 0
    (run / "last.pt").write_bytes(b"damaged")
    resumed = trainer.Trainer(configure({"resume": str(run), "iterations": 10}))
    assert resumed.iteration == 6
    resumed.close()
    assert not (run / "last.pt").exists()
    assert (run / "unreadable.pt").read_bytes() == b"damaged"
    assert checkpoint.load(run / "previous.pt")["iteration"] == 6


def test_a_run_killed_before_its_first_validation_can_be_resumed(cases, tmp_path, monkeypatch):
    run = trainer.Trainer(config_of(cases, tmp_path, iterations=500, val_every=500, save_every=500))
    update = run._update

    def interrupted(source):
        if run.iteration == 3:
            raise KeyboardInterrupt
        return update(source)

    monkeypatch.setattr(run, "_update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.close()
    assert checkpoint.load(tmp_path / "run" / "last.pt")["iteration"] == 1


def test_a_run_that_never_validated_is_not_finished(cases, tmp_path, run_verb):
    run = trainer.Trainer(config_of(cases, tmp_path, iterations=9, val_every=9))
    run.iteration, run.seconds = 5, 1.0
    run._save_last()
    run.close()
    code, _, err = run_verb(train, "--resume", tmp_path / "run", "--iterations", 5)
    assert code == 2
    assert "is at iteration 5 of 5. Give more --iterations" in err


def test_a_run_that_can_not_start_leaves_no_lock(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, *TINY, "--iterations", 1, "--output", run)[0] == 0
    assert run_verb(train, "--resume", run)[0] == 2
    assert not (run / "lock").exists()


def test_a_worker_that_is_killed(cases, tmp_path, run_verb, monkeypatch):
    original = workers.FromWorkers.inputs

    def inputs(source, iteration):
        if iteration == 3:
            for worker in source.batches._workers:
                os.kill(worker.pid, signal.SIGKILL)
            # PyTorch's handler of SIGCHLD raises in it
            end = time.monotonic() + 60
            while time.monotonic() < end:
                time.sleep(0.01)
        return original(source, iteration)

    monkeypatch.setattr(workers.FromWorkers, "inputs", inputs)
    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--iterations", 99, "--workers", 1, "--save-every", 1, "--output", tmp_path / "r"
    )
    assert code == 2
    assert err.startswith("error: --workers: a worker process has ended: ")
    assert "Killed" in err
    assert len(err.splitlines()) == 1
    assert checkpoint.load(tmp_path / "r" / "last.pt")["iteration"] == 3


def test_a_workers_own_error_names_the_cases(cases, tmp_path, run_verb, monkeypatch):
    original = workers.FromWorkers.__init__

    def init(source, prepared, *arguments):
        from dataclasses import replace

        original(source, [replace(case, table=case.table[:5]) for case in prepared], *arguments)

    monkeypatch.setattr(workers.FromWorkers, "__init__", init)
    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--iterations", 3, "--workers", 1, "--output", tmp_path / "run"
    )
    assert code == 2
    assert err.startswith("error: Case0")
    assert "can't be augmented (" in err
    assert "out of" in err
    assert len(err.splitlines()) == 1


@pytest.mark.exhaustive
def test_memory_does_not_grow(cases, tmp_path):
    """The resident size is flat after the first iterations."""
    iterations = 700
    arguments = ["--data", cases, *TINY, "--iterations", iterations, "--val-every", 100, "--output", tmp_path / "run"]
    code = (
        "import sys; from vnet_fast import train; from vnet_fast.run import log; sizes = []; add = log.Log.add\n"
        "def measured(self, *args):\n"
        "    pages = int(open('/proc/self/statm').read().split()[1])\n"
        "    print('resident', args[0], pages, file=sys.stderr)\n"
        "    add(self, *args)\n"
        "log.Log.add = measured\n"
        "train.command_line.run(train.main, train.command_line.parser_of(train.Config, 'vnet_fast.train'))"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("the resident size is read from /proc")
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=280,
        # of volumes this small two threads mostly wait for each other
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stderr.splitlines() if line.startswith("resident")]
    sizes = {int(iteration): int(pages) * os.sysconf("SC_PAGE_SIZE") for _, iteration, pages in lines}
    early = max(size for iteration, size in sizes.items() if iterations // 4 <= iteration <= iterations // 2)
    late = max(size for iteration, size in sizes.items() if iteration > 4 * iterations // 5)
    assert len(sizes) >= iterations // 10
    # a leak of one volume of 16³ in float32 an iteration would be 6 MB
    assert late - early < 4e6
