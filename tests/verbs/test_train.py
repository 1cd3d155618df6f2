import csv
import fcntl
import json
import math
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import torch

import vnet_fast
from tests.volumes import write_case
from vnet_fast import evaluate, predict, train
from vnet_fast.data import training_data
from vnet_fast.errors import InputError
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy
from vnet_fast.run import checkpoint, configuration
from vnet_fast.run.configuration import Config
from vnet_fast.run.configure import configure
from vnet_fast.training import optimizer, signals, trainer

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 2, "--device", "cpu", "--seed", 1]
ON_DATA = [*TINY, "--folds", 3, "--iterations", 6, "--val-every", 3]
# every run leaves these
FILES = {"config.json", "log.csv", "best.pt", "last.pt", "previous.pt", "summary.json", "curves.png", "overlay.png"}
FILES |= {"predictions"}


def rows_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_folder(cases, tmp_path, run_verb):
    code, out, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *ON_DATA)
    assert code == 0, err
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == FILES
    assert "6 cases" in out
    assert "4 to train on, 2 to validate" in out

    rows = rows_of(run)
    assert [int(row["iteration"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in rows if row["validation_dice"]] == ["3", "6"]
    assert all(0 <= float(row["loss"]) <= 1 for row in rows)
    assert all(float(row["learning_rate"]) == 1e-4 and float(row["volumes_per_second"]) > 0 for row in rows)

    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["val_dice_per_case"]) == 2
    assert summary["val_dice"] == pytest.approx(sum(summary["val_dice_per_case"].values()) / 2)
    assert summary["iterations"] == 6
    # the metadata of some builds leaves the local part of the version out
    assert torch.__version__.startswith(summary["versions"]["torch"])
    assert summary["versions"]["vnet_fast"] == vnet_fast.__version__
    assert {"seconds", "volumes_per_second", "device"} <= summary.keys()

    config = json.loads((run / "config.json").read_text())
    assert config["volume"] == [16, 16, 16]
    assert config["seed"] == 1
    for name in ("curves.png", "overlay.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_best_is_the_best_validation(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    run_verb(train, "--data", cases, "--output", run, *ON_DATA, "--learning-rate", 0.01, "--optimizer", "adamw")
    validated = {int(row["iteration"]): float(row["validation_dice"]) for row in rows_of(run) if row["validation_dice"]}
    content = checkpoint.load(run / "best.pt")
    assert content["iteration"] == max(validated, key=validated.get)
    assert content["best"]["dice"] == pytest.approx(max(validated.values()), abs=1e-6)
    last = checkpoint.load(run / "last.pt")
    assert last["iteration"] == 6


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


def test_phantoms_without_data(tmp_path, run_verb):
    code, out, err = run_verb(train, "--output", tmp_path / "run", *TINY, "--iterations", 2)
    assert code == 0, err
    assert f"{training_data.NUM_PHANTOMS} synthetic phantoms" in out
    assert "recipe: fast, dice-ce, adamw, learning rate " in out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    # what learns fastest where nothing else was asked for
    assert config["optimizer"] == "adamw"
    assert config["base_channels"] == 2


@pytest.mark.parametrize(("binary", "classes"), [(True, 2), (False, 3)])
def test_classes_from_the_labels(tmp_path, run_verb, binary, classes):
    folder = tmp_path / "cases"
    folder.mkdir()
    for index in range(3):
        write_case(folder, f"c{index}", index, labels=2)
    arguments = ["--data", folder, "--output", tmp_path / "run", *TINY, "--folds", 3, "--iterations", 1]
    code, _, err = run_verb(train, *arguments, *(["--binary"] if binary else []))
    assert code == 0, err
    assert checkpoint.load(tmp_path / "run" / "best.pt")["architecture"]["num_classes"] == classes
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert len(summary["val_dice_per_class"]) == classes - 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--loss", "weighted-ce"],
        ["--loss", "dice-ce"],
        ["--topology", "caffe"],
        ["--amp"],
        ["--amp", "bf16"],
        ["--no-augment"],
        ["--rotation", 1, 20, 10, "--flip", "--gamma", 1, 0.7, 1.5, "--noise", 1, 0.3, "--batch-size", 3],
        ["--norm", "batch", "--levels", 4, "--kernel-size", 3, "--volume", 8, 16, 16],
        pytest.param(["--norm", "instance"], marks=pytest.mark.exhaustive),
        pytest.param(["--norm", "group", "--amp", "bf16"], marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_other_settings_run(cases, tmp_path, run_verb, arguments):
    code, _, err = run_verb(
        train, "--data", cases, "--output", tmp_path / "run", *TINY, "--folds", 3, "--iterations", 2, *arguments
    )
    assert code == 0, err
    assert all(math.isfinite(float(row["loss"])) for row in rows_of(tmp_path / "run"))


def test_settings_reach_the_run(cases, tmp_path):
    """Topology, loss, precision, augmentation, batch and optimiser are those asked for."""
    common = {"data": str(cases), "volume": (16, 16, 16), "spacing": (1.5, 1.5, 2.0), "base_channels": 2, "folds": 3}
    common |= {"device": "cpu", "seed": 0, "iterations": 2}
    plain = trainer.Trainer(Config(**common, output=str(tmp_path / "a")))
    other = trainer.Trainer(
        Config(
            **common,
            output=str(tmp_path / "b"),
            topology="caffe",
            loss="weighted-ce",
            amp="bf16",
            no_augment=True,
            batch_size=3,
            optimizer="adamw",
        )
    )
    assert (plain.model.topology, other.model.topology) == ("paper", "caffe")
    assert (type(plain.step.loss), type(other.step.loss)) == (DiceLoss, WeightedCrossEntropy)
    assert (plain.step.autocast, other.step.autocast) == (None, torch.bfloat16)
    assert (type(plain.step.optimizer), type(other.step.optimizer)) == (optimizer.SGD, torch.optim.AdamW)
    batches = []
    for run in (plain, other):
        source = run._make_source()
        batches += [source.prepare(*source.inputs(iteration))[0] for iteration in range(4)]
    assert batches[0].shape[0] == 2
    assert batches[4].shape[0] == 3
    stored = [torch.from_numpy(case.image) for case in other.data.training]

    def is_stored(volume):
        return any(torch.equal(volume, image) for image in stored)

    assert all(is_stored(image[0]) for batch in batches[4:] for image in batch)
    assert not all(is_stored(image[0]) for batch in batches[:4] for image in batch)


def test_the_schedule_reaches_the_optimiser(cases, tmp_path):
    config = Config(
        data=str(cases), output=str(tmp_path / "run"), volume=(16, 16, 16), spacing=(1.5, 1.5, 2.0), base_channels=2,
        folds=3, device="cpu", iterations=5, lr_step=2, learning_rate=1e-3,
    )  # fmt: skip
    run = trainer.Trainer(config)
    rates, original = [], run.step.optimizer.step
    run.step.optimizer.step = lambda *a, **k: (
        rates.append([group["lr"] for group in run.step.optimizer.param_groups]), original(*a, **k)
    )  # fmt: skip
    assert run.train() is None
    assert rates == [pytest.approx([r, 2 * r]) for r in (1e-3, 1e-3, 1e-4, 1e-4, 1e-5)]


def test_checkpoints_are_saved_as_often_as_asked(cases, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(trainer.Trainer, "_save_last", lambda run: saved.append(run.iteration))
    config = {"data": str(cases), "volume": (16, 16, 16), "spacing": (1.5, 1.5, 2.0), "base_channels": 2, "folds": 3}
    trainer.Trainer(Config(**config, output=str(tmp_path / "a"), iterations=9, val_every=4, save_every=3)).train()
    assert saved == [1, 3, 4, 6, 8, 9]


def test_progress_on_a_terminal(cases, tmp_path):
    """A bar with loss, validation Dice, volumes/s and the time left."""
    leader, follower = pty.openpty()
    # 24 lines of 120 columns; a new one has none, and shows nothing
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    arguments = ["--data", cases, "--output", tmp_path / "run", *ON_DATA]
    process = subprocess.Popen(
        [sys.executable, "-m", "vnet_fast.train", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=follower, cwd=ROOT,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    while True:
        try:
            shown += os.read(leader, 4096)
        except OSError:
            break
    os.close(leader)
    assert process.wait() == 0
    last = [line for line in shown.decode().replace("\r", "\n").splitlines() if "6/6" in line][-1]
    assert "validation Dice 0." in last
    assert "volumes/s" in last
    assert "<00:00" in last


def test_whole_chain(cases, tmp_path, run_verb):
    """Train, predict the validation cases, evaluate: the ball in noise is found."""
    run, masks = tmp_path / "run", tmp_path / "masks"
    learn = ["--optimizer", "adamw", "--learning-rate", 2e-3, "--iterations", 60, "--val-every", 30]
    assert run_verb(train, "--data", cases, "--output", run, *TINY, *["--folds", 3], *learn)[0] == 0
    code, out, err = run_verb(
        predict, "--checkpoint", run / "best.pt", "--input", cases, "--output", masks, "--validation-only"
    )
    assert code == 0, err
    assert "2 of 2 volumes segmented" in out
    code, out, err = run_verb(evaluate, "--predictions", masks, "--labels", cases, "--output", tmp_path / "report.json")
    assert code == 0, err
    (report,) = json.loads((tmp_path / "report.json").read_text())["predictions"].values()
    assert len(report["cases"]) == 2
    assert report["summary"]["1"]["whole"]["dice"]["mean"] > 0.8
    assert "mean ± SD" in out


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 1, marks=pytest.mark.exhaustive, id="SIGINT-1"),
        pytest.param(signal.SIGTERM, 0, id="SIGTERM-0"),
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


def in_header(path, old, new):
    """Changes message of a header that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_image_of(folder, name, other):
    """Replaces the image of one case by that of another."""
    for suffix in (".mhd", ".zraw"):
        (folder / f"{name}{suffix}").write_bytes(
            (folder / f"{other}{suffix}").read_bytes().replace(other.encode(), name.encode())
        )


BAD_DATA = {
    "missing data": (lambda f: (f / "Case02.zraw").unlink(), "Case02.mhd: its data file Case02.zraw is missing"),
    "truncated": (
        lambda f: (f / "Case02.zraw").write_bytes(b"x" * 9),
        "Case02.zraw: truncated: 9 compressed bytes can't hold the 11520",
    ),
    "no mask": (lambda f: (f / "Case02_segmentation.mhd").unlink(), "Case02.mhd: no mask for this image"),
    "mask of another place": (
        lambda f: in_header(f / "Case02_segmentation.mhd", "Offset = 0 0 0", "Offset = 0 5 0"),
        "Case02_segmentation.mhd: its origin is 0 5 0, that of Case02.mhd is 0 0 0",
    ),
    "mask of another size": (
        lambda f: write_case(f, "Case02", size=(18, 18, 18)) and write_image_of(f, "Case02", "Case03"),
        "Case02_segmentation.mhd: its size is 18 18 18, that of Case02.mhd is 20 18 16",
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_one_line(cases, tmp_path, run_verb, kind):
    change, message = BAD_DATA[kind]
    change(cases)
    code, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *ON_DATA)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_bad_data_without_debug_shows_no_traceback(cases, tmp_path, run_verb):
    (cases / "Case02.zraw").unlink()
    for arguments, shown in (([], False), (["--debug"], True)):
        _, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *ON_DATA, *arguments)
        assert ("Traceback" in err) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "argument --iterations: must be a whole number above 0; got '0'"),
        (["--learning-rate", "nan"], "argument --learning-rate: must be a number above 0; got 'nan'"),
        (["--learning-rate", "inf"], "must be a number above 0; got 'inf'"),
        (["--volume", "64", "-1", "64"], "argument --volume"),
        (["--levels", "5", "--volume", "64", "8", "64"], "--volume: must be at least 16 along each axis; got 64 8 64"),
        (["--volume", "64", "4", "64", "--levels", "4"], "--volume: must be at least 8 along each axis; got 64 4 64"),
        (["--levels", "6"], "argument --levels: invalid choice: 6"),
        (["--norm", "layer"], "argument --norm: invalid choice: 'layer'"),
        (["--spacing", "1", "0", "1"], "argument --spacing"),
        (["--fold", "5"], "--fold: must be below --folds (5); got 5"),
        (["--fold", "each"], "argument --fold: must be all or a whole number, 0 or more; got 'each'"),
        (["--folds", "1"], "--folds: must be at least 2; got 1"),
        (["--momentum", "1"], "--momentum: must be below 1; got 1.0"),
        (["--topology", "unet"], "argument --topology: invalid choice: 'unet'"),
        (["--amp", "fp8"], "argument --amp: invalid choice: 'fp8'"),
        (["--iteration", "5"], "unrecognized arguments: --iteration 5"),
        (["--labels", "x"], "--labels: given without --data"),
        (["--data", ""], "argument --data: must be a path; got ''"),
        (["--seed", "99999999999999999999999"], "--seed: must be below 2^63"),
        (["--folds", "150", "--fold", "120"], "the phantoms: 100 cases for 150 folds. Give --folds 100 or less"),
        (["--data", "/nowhere"], "/nowhere: no such folder"),
        (["--resume", "/nowhere"], "/nowhere/config.json: no such file"),
        (["--device", "cuda"], "--device: no CUDA device is available. Use --device cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line(tmp_path, run_verb, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = run_verb(train, *arguments, "--output", tmp_path / "run")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(tmp_path, run_verb):
    (tmp_path / "file").write_text("x")
    code, _, err = run_verb(train, "--output", tmp_path / "file" / "run", *TINY)
    assert code == 2
    assert "can't be made (Not a directory). Choose another --output" in err


def test_fewer_cases_than_folds(cases, tmp_path, run_verb):
    code, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *TINY, "--folds", 7)
    assert code == 2
    assert "6 cases for 7 folds. Give --folds 6 or less, or add cases" in err


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


def test_defaults_with_data_are_the_papers():
    config = configure({"data": "somewhere", "output": "run"})
    # a test of devices has the precision
    assert config == Config(data="somewhere", output="run", amp=config.amp)
    assert (config.volume, config.spacing) == ((128, 128, 64), (1.0, 1.0, 1.5))
    assert (config.optimizer, config.learning_rate, config.momentum) == ("sgd", 1e-4, 0.99)
    assert (config.weight_decay, config.lr_step, config.batch_size) == (5e-4, 25_000, 2)
    assert (config.base_channels, config.topology, config.loss) == (16, "paper", "dice")


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


def test_no_workers_are_left(cases, tmp_path, run_verb):
    import multiprocessing

    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--folds", 3, "--iterations", 2, "--workers", 1, "--output", tmp_path / "run"
    )
    assert code == 0, err
    assert multiprocessing.active_children() == []


def test_a_second_signal_ends_at_once():
    stop = signals.StopSignal()
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def test_losses_by_name():
    assert isinstance(configuration.LOSSES["dice"](), DiceLoss)
    assert isinstance(configuration.LOSSES["weighted-ce"](), WeightedCrossEntropy)
    loss = configuration.LOSSES["dice-ce"]()
    assert isinstance(loss, DiceCELoss)
    assert loss.dice.batch
    assert not loss.dice.include_background


def test_resume_refuses_other_cases(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    before = (run / "config.json").read_bytes()
    write_case(cases, "Case03b", seed=9)
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "its cases have changed: Case03b. Restore them, or start a new run" in err
    assert (run / "config.json").read_bytes() == before


def test_resume_in_another_precision(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    for iterations, amp in ((7, "fp16"), (8, "bf16"), (9, "off")):
        code, _, err = run_verb(train, "--resume", run, "--iterations", iterations, "--amp", amp)
        assert code == 0, err


def test_a_run_stopped_at_its_end_is_finished_by_resuming(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    (run / "summary.json").unlink()
    assert run_verb(train, "--resume", run)[0] == 0
    assert json.loads((run / "summary.json").read_text())["iterations"] == 6


def test_resume_takes_no_other_output(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    code, _, err = run_verb(train, "--resume", run, "--output", tmp_path / "other", "--iterations", 9)
    assert code == 2
    assert "--output: given with --resume" in err


@pytest.mark.parametrize("change", [{"volume": 5}, {"topology": "unet"}, {"seed": -1}, {"learning_rate": "x"}], ids=str)
def test_a_config_changed_by_hand(cases, tmp_path, run_verb, change):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    stored = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**stored, **change}))
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "config.json: not what a run stores" in err


def test_a_damaged_log(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    (run / "log.csv").write_text("nonsense\n1\n")
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "log.csv: not a log" in err
    (run / "log.csv").unlink()
    (run / "log.csv").mkdir()
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "log.csv: Is a directory" in err


def test_resumed_config_must_be_readable(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: can't be read"):
        configure({"resume": str(tmp_path)})


def test_options_are_documented(capsys):
    parser = train.command_line.parser_of(Config, "vnet_fast.train")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "size of the network's input, voxels (default: 128 128 64)" in shown
    assert "--lr-step N" in shown
