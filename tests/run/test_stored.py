"""Settings, results and logs that someone has changed: refused with one line that names what is wrong."""

import itertools
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from vnet_fast.errors import InputError
from vnet_fast.run import memory
from vnet_fast.run.configuration import Config, stored_config
from vnet_fast.run.configure import configure
from vnet_fast.run.folder import PROCESS, RunFolder, finished_at, read_summary
from vnet_fast.run.log import read_log

SOUND = {"val_dice": 0.5, "best_iteration": 4, "iterations": 6, "val_dice_per_case": {"A": 0.5}}
NO_FILES = [os.mkfifo, lambda path: path.symlink_to("/dev/zero")]


def store(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**asdict(Config(output="runs/a", volume=(16, 16, 16))), **changes}))
    return path


def test_what_a_run_stores_is_read(tmp_path):
    changes = {"data": "-x --seed 5", "fold": "all", "amp": "bf16", "val_every": 3, "tensorboard": True, "seed": 2**62}
    store(tmp_path, **changes)
    config = stored_config(tmp_path)
    assert {name: getattr(config, name) for name in changes} == changes
    assert config.volume == (16, 16, 16)


WRONG = [
    ({"iterations": 10**9 * 5}, "argument --iterations: must be at most 2147483647; got '5000000000'"),
    ({"iterations": "240"}, "iterations has a value of another type"),
    ({"iterations": 240.0}, "argument --iterations: must be a whole number above 0; got '240.0'"),
    ({"iterations": True}, "iterations has a value of another type"),
    ({"iterations": False}, "iterations has a value of another type"),
    ({"iterations": None}, "iterations has no value"),
    ({"iterations": [240]}, "iterations has a value of another type"),
    ({"iterations": 10**4000}, "argument --iterations: must be a whole number above 0; got '1000*'…"),
    ({"binary": 1}, "binary has a value of another type"),
    ({"binary": None}, "binary has a value of another type"),
    ({"data": 5}, "data has a value of another type"),
    ({"data": {"a": 1}}, "data has a value of another type"),
    ({"data": ["a"]}, "data has a value of another type"),
    ({"data": ""}, "argument --data: must be a path; got ''"),
    ({"data": "a\0b"}, r"argument --data: must be a path; got 'a\\x00b'"),
    ({"data": "\ud800"}, r"argument --data: must be a path; got '\\ud800'"),
    ({"volume": [16, 16]}, "--volume must be three numbers; got 16 16"),
    ({"volume": [16, 16, "auto"]}, "--volume must be three numbers; got 16 16 auto"),
    ({"volume": [16, 16, [16]]}, "volume has a value of another type"),
    ({"volume": [16, 16, 8]}, "--volume must be at least 16 along each axis; got 16 16 8"),
    ({"volume": [16, 16, "--seed=7"]}, "volume has a value of another type"),
    ({"spacing": [1, 1, float("nan")]}, "argument --spacing: must be a number above 0; got 'nan'"),
    ({"spacing": [1, 1, 1e-300]}, "--spacing must be from 1e-06 to 1e.06 mm; got 1.0 1.0 1e-300"),
    ({"learning_rate": float("inf")}, "argument --learning-rate: must be a number above 0; got 'inf'"),
    ({"learning_rate": 1e200}, r"argument --learning-rate: must be at most 1e\+30; got '1e\+200'"),
    ({"amp": "x" * 5000}, "argument --amp: invalid choice"),
    ({"folds": 10**6}, "--folds must be at most 10000; got 1000000"),
    ({"fold": 7}, r"--fold must be below --folds \(5\); got 7"),
    ({"workers": 10**9}, "--workers must be at most 1024; got 1000000000"),
    ({"momentum": 1.0}, "--momentum must be below 1; got 1.0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_setting_is_named(tmp_path, changes, message):
    path = store(tmp_path, **changes)
    with pytest.raises(InputError, match=rf"config.json: not what a run stores \({message}") as raised:
        stored_config(tmp_path)
    assert len(str(raised.value)) < 400 + len(str(path))
    assert "\n" not in str(raised.value)


CONTENTS = {
    "deep": (b'{"seed": ' * 100_000, "nested too deeply"),
    "digits": (b'{"seed": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    "list": (b"[]", r"must be an object; got \[\]"),
    "huge": (b" " * (17 << 20), "longer than 16 MB"),
    "bytes": (b"\xff", "not in UTF-8"),
    "empty": (b"", "Expecting value"),
    "twice": (b'{"seed": 1, "seed": 2}', "an object has the key 'seed' twice"),
}


@pytest.mark.parametrize(("content", "message"), CONTENTS.values(), ids=CONTENTS)
def test_files_that_hold_no_object(tmp_path, content, message):
    for name in ("config.json", "summary.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"config.json: can't be read \({message}"):
        stored_config(tmp_path)
    with pytest.raises(InputError, match=rf"summary.json: not a run's result \({message}"):
        read_summary(tmp_path)
    assert finished_at(tmp_path) is None


@pytest.mark.parametrize("make", NO_FILES, ids=["FIFO", "zeros"])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    for name in ("config.json", "summary.json", "log.csv", PROCESS):
        make(tmp_path / name)
    for read, name in ((stored_config, "config"), (read_summary, "summary")):
        with pytest.raises(InputError, match=rf"{name}.json: .*not a regular file"):
            read(tmp_path)
    with pytest.raises(InputError, match=r"log.csv: not a log \(.*not a regular file"):
        read_log(tmp_path / "log.csv")
    for name in ("config.json", "log.csv"):
        with pytest.raises(InputError, match=rf"{name}: is of no run"):
            RunFolder(tmp_path)
        (tmp_path / name).unlink()
    RunFolder(tmp_path).close()
    assert not (tmp_path / PROCESS).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": "6"}, "its iterations must be a whole number, 0 or more; got '6'"),
        ({"iterations": True}, "its iterations must be a whole number, 0 or more; got True"),
        ({"best_iteration": -1}, "its best_iteration must be"),
        ({"val_dice": [0.5]}, r"its val_dice must be a Dice; got \[0.5\]"),
        ({"val_dice_per_case": {"A": "x"}}, "its val_dice_per_case must be a Dice for each case; got a dict"),
        ({"val_dice_per_class": [[0.5]]}, "its val_dice_per_class must be a list of Dice; got a list"),
    ],
)
def test_a_wrong_result_is_named(tmp_path, change, message):
    (tmp_path / "summary.json").write_text(json.dumps({**SOUND, **change}))
    with pytest.raises(InputError, match=rf"summary.json: not a run's result \({message}"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps(SOUND))
    assert read_summary(tmp_path) == SOUND


def machine_of(monkeypatch, gigabytes):
    monkeypatch.setattr(memory, "memory_of", lambda device: int(gigabytes * 1e9))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"volume": [2048] * 3},
            "--volume: steps on 2 of 2048 x 2048 x 2048 voxels, 16 channels, and 100 phantoms take",
        ),
        ({"volume": [2048] * 3}, r"Give --volume 128 128 256, which would fit"),
        ({"volume": [2048] * 3, "check": True, "data": "d"}, "Give --volume 512 512 1024, which would fit"),
        ({"volume": [512] * 3}, "Give --volume 128 128 256, which would fit"),
        ({"volume": [512] * 3, "check": True, "data": "d"}, None),
        ({"volume": [10**9] * 3}, "and 100 phantoms take at least a million GB, and the cpu has 24.0 GB. Give"),
        ({"batch_size": 10**9, "recipe": "paper"}, "Give --batch-size 10 or less, which would fit"),
        ({"base_channels": 2**30, "data": "d"}, "Give a smaller --base-channels"),
        (
            {"base_channels": 512, "data": "d"},
            "steps on 2 of 128 x 128 x 64 voxels, 512 channels take at least 6",
        ),
        ({"volume": [384] * 3, "base_channels": 1, "batch_size": 1}, "1 channels, and 100 phantoms take at least 2"),
        ({}, None),
        ({"volume": [256, 256, 64], "data": "d"}, None),
    ],
    ids=str,
)
def test_what_can_not_fit_is_refused_before_it_is_made(monkeypatch, given, message):
    machine_of(monkeypatch, 24)
    given = {"device": "cpu", "output": "x", "amp": "off", **given}
    given.setdefault("volume", [128, 128, 64])
    given.setdefault("base_channels", 16)
    if message is None:
        configure(given)
        return
    with pytest.raises(InputError, match=message) as raised:
        configure(given)
    assert "\n" not in str(raised.value)


def test_the_suggested_size_is_accepted(monkeypatch):
    machine_of(monkeypatch, 8)
    given = {"device": "cpu", "output": "x", "data": "d", "base_channels": 16, "volume": [400, 300, 200]}
    with pytest.raises(InputError) as raised:
        configure(given)
    words = str(raised.value).split("Give --volume ")[1].split()
    configure({**given, "volume": list(map(int, words[:3])), "batch_size": 1})


def test_this_machine_has_memory():
    import torch

    from vnet_fast.data.training_data import NUM_PHANTOMS

    assert 1e8 < memory.memory_of(torch.device("cpu")) < 1e15
    assert memory.PHANTOMS == NUM_PHANTOMS


def test_a_network_has_as_many_numbers_as_the_estimate():
    import torch

    from vnet_fast.run.checkpoint import skeleton

    channels = {"in_channels": 1, "num_classes": 2}
    settings = itertools.product(("paper", "caffe"), (1, 16, 64), memory.WEIGHTS, (3, 5))
    for topology, width, levels, kernel_size in settings:
        architecture = {"base_channels": width, "topology": topology, "levels": levels, "kernel_size": kernel_size}
        network = skeleton({**channels, "norm": None, **architecture})
        count = sum(weight.numel() for weight in network.parameters())
        load = memory.Load(torch.device("cpu"), 1, width, False, False, levels, kernel_size)
        # the topologies differ more, the fewer levels there are, and other layers count more beside small kernels
        most = 4 if kernel_size == 3 else 1.5 if levels == 5 else 1.75
        assert 1 < count * memory.WEIGHT_BYTES / load.of_weights() < most


def test_the_window_of_a_checkpoint_fits(tmp_path, monkeypatch):
    from vnet_fast.run.checkpoint import grid_of

    machine_of(monkeypatch, 24)
    content = {"spacing": [1, 1, 1], "volume": [2048] * 3, "validation": [], "architecture": {"in_channels": 1}}
    with pytest.raises(InputError, match=r"x.pt: a volume of 2048 x 2048 x 2048 takes at least 137.4 GB"):
        grid_of(content, Path(tmp_path / "x.pt"))
