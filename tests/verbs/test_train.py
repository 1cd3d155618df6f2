"""The runs of `train`: what they leave, which settings reach them, and their progress."""

import csv
import fcntl
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch

import vnet_fast
from tests.volumes import write_case
from vnet_fast import evaluate, predict, train
from vnet_fast.data import training_data
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.losses import DiceLoss, WeightedCrossEntropy
from vnet_fast.run import checkpoint, configuration
from vnet_fast.run.configuration import Config
from vnet_fast.run.configure import configure
from vnet_fast.training import optimizer, trainer

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
    best = tmp_path / "a run" / "best.pt"
    arguments = ["--data", folder, "--output", best.parent, *TINY, "--folds", 3, "--iterations", 1]
    code, out, err = run_verb(train, *arguments, *(["--binary"] if binary else []))
    assert code == 0, err
    assert f"predict with: python -m vnet_fast.predict --checkpoint '{best}' --input" in out
    assert checkpoint.load(best)["architecture"]["num_classes"] == classes
    summary = json.loads((best.parent / "summary.json").read_text())
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
    assert (type(plain.step.optimizer), type(other.step.optimizer)) == (optimizer.SGD, optimizer.AdamW)
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


def test_defaults_with_data_are_the_papers():
    config = configure({"data": "somewhere", "output": "run"})
    # a test of devices has the precision
    assert config == Config(data="somewhere", output="run", amp=config.amp)
    assert (config.volume, config.spacing) == ((128, 128, 64), (1.0, 1.0, 1.5))
    assert (config.optimizer, config.learning_rate, config.momentum) == ("sgd", 1e-4, 0.99)
    assert (config.weight_decay, config.lr_step, config.batch_size) == (5e-4, 25_000, 2)
    assert (config.base_channels, config.topology, config.loss) == (16, "paper", "dice")


@pytest.mark.exhaustive
def test_no_workers_are_left(cases, tmp_path, run_verb):
    import multiprocessing

    code, _, err = run_verb(
        train, "--data", cases, *TINY, "--folds", 3, "--iterations", 2, "--workers", 1, "--output", tmp_path / "run"
    )
    assert code == 0, err
    assert multiprocessing.active_children() == []


def test_losses_by_name():
    assert isinstance(configuration.LOSSES["dice"](), DiceLoss)
    assert isinstance(configuration.LOSSES["weighted-ce"](), WeightedCrossEntropy)
    loss = configuration.LOSSES["dice-ce"]()
    assert isinstance(loss, DiceCELoss)
    assert loss.dice.batch
    assert not loss.dice.include_background


def test_options_are_documented(capsys):
    parser = train.command_line.parser_of(Config, "vnet_fast.train")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "size of the network's input, voxels, or auto (default: 128 128 64)" in shown
    assert "--lr-step N" in shown
