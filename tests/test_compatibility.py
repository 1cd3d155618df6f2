"""Files that version 0.1.0 wrote are still read: checkpoints and settings. Its prepared volumes are made again."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.volumes import write_case
from vnet_fast import predict
from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import Case
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import stored_config
from vnet_fast.run.folder import RunFolder, finished_at

HEADER = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 0 0 0
ElementSpacing = 2 2 3
DimSize = 4 3 2
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""
# what 0.1.0 named the entry of the two files below, for a grid of 16x16x16 voxels of 2x2x3 mm
KEY = "7ec005cbe0a2c4843ccfbc1fd409ebba"
CONFIG = {
    "data": None, "labels": None, "output": "runs/a", "cache": None, "resume": None, "amp": "auto", "device": "cpu",
    "topology": "paper", "base_channels": 8, "volume": [48, 48, 32], "spacing": [2.5, 2.5, 3.0], "batch_size": 2,
    "iterations": 240, "optimizer": "adamw", "learning_rate": 0.0003, "momentum": 0.99, "weight_decay": 0.0005,
    "lr_step": 180, "loss": "dice", "binary": False, "folds": 5, "fold": 0, "workers": 0, "no_graph": False,
    "deterministic": False, "no_augment": False, "val_every": 80, "save_every": None, "tensorboard": False,
    "check": False, "seed": 0,
}  # fmt: skip


def weights(width=1, classes=2):
    """The weights of a network of the paper's topology, by the names and shapes of 0.1.0."""
    generator = torch.Generator().manual_seed(0)
    found = {}

    def add(name, *shape, channels=None):
        found[f"{name}.weight"] = 0.1 * torch.randn(shape, generator=generator)
        found[f"{name}.bias"] = torch.zeros(shape[0] if channels is None else channels)

    def stage(name, entering, channels, count):
        for i in range(count):
            add(f"{name}.layers.{i}.convolution", channels, entering if i == 0 else channels, 5, 5, 5)
            found[f"{name}.layers.{i}.activation.weight"] = torch.full((channels,), 0.25)

    for level, count in enumerate((1, 2, 3, 3, 3)):
        channels = width * 2**level
        stage(f"left.{level}", 1 if level == 0 else channels, channels, count)
        if level < 4:
            add(f"down.{level}.convolution", 2 * channels, channels, 2, 2, 2)
            found[f"down.{level}.activation.weight"] = torch.full((2 * channels,), 0.25)
    for step, count in enumerate((3, 3, 2, 1)):
        skip = width * 2 ** (3 - step)
        entering = 2 * skip if step == 0 else 4 * skip
        add(f"up.{step}.convolution", entering, skip, 2, 2, 2, channels=skip)
        found[f"up.{step}.activation.weight"] = torch.full((skip,), 0.25)
        stage(f"right.{step}", 2 * skip, 2 * skip, count)
    add("head", classes, 2 * width, 1, 1, 1)
    return found


@pytest.fixture
def old_checkpoint(tmp_path):
    content = {
        "format": 1,
        "architecture": {"in_channels": 1, "num_classes": 2, "base_channels": 1, "topology": "paper"},
        "model": weights(),
        "iteration": 5,
        "best": {"iteration": 5, "dice": 0.5, "per_case": {"A": [0.5]}},
        "config": {**CONFIG, "volume": (48, 48, 32), "spacing": (2.5, 2.5, 3.0)},
        "batch": 2,
        "spacing": [1.5, 1.5, 2.0],
        "volume": [16, 16, 16],
        "training": ["B"],
        "validation": ["A"],
    }
    path = tmp_path / "best.pt"
    torch.save(content, path)
    return path


def test_a_checkpoint_predicts(old_checkpoint, tmp_path, run_verb):
    content = checkpoint.load(old_checkpoint)
    network = checkpoint.build_model(content, old_checkpoint, torch.device("cpu"))
    assert network.state_dict().keys() == content["model"].keys()
    image, _ = write_case(tmp_path, "A")
    code, _, err = run_verb(predict, "--checkpoint", old_checkpoint, "--input", image, "--output", tmp_path / "m.mha")
    assert code == 0, err
    assert sitk.ReadImage(str(tmp_path / "m.mha")).GetSize() == sitk.ReadImage(str(image)).GetSize()


def test_the_settings_and_the_result_of_a_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "summary.json").write_text(json.dumps({"val_dice": 0.9, "iterations": 240}))
    (tmp_path / "last.pt").write_bytes(b"")
    config = stored_config(tmp_path)
    assert (config.volume, config.spacing, config.val_every) == ((48, 48, 32), (2.5, 2.5, 3.0), 80)
    assert finished_at(tmp_path) == 240
    RunFolder(tmp_path, resume=True).close()


def test_prepared_volumes_are_made_again(tmp_path, capsys):
    """They have no digest, so that nothing shows whether they are still what was prepared."""
    for name, values in (("a", range(24)), ("a_segmentation", [voxel // 12 for voxel in range(24)])):
        (tmp_path / f"{name}.mha").write_bytes(HEADER.encode() + bytes(values))
    case = Case("a", tmp_path / "a.mha", tmp_path / "a_segmentation.mha")
    cache = Cache(tmp_path / "cache", (2.0, 2.0, 3.0), (16, 16, 16))
    assert cache.key(case) != KEY
    arrays = {
        "labels": np.array([0, 1]),
        "ranks": np.arange(4096, dtype=np.uint16).reshape(16, 16, 16),
        "table": np.linspace(-1, 1, 65536, dtype=np.float32),
        "mask": np.ones((16, 16, 16), np.uint8),
    }
    np.savez(tmp_path / "cache" / f"{KEY}.npz", **arrays)
    (prepared,) = cache.load([case])
    assert prepared.labels == (0, 1)
    assert not np.array_equal(prepared.ranks, arrays["ranks"])
    # the old entry is not read, so that nothing is said about it
    assert not capsys.readouterr().out
