"""The networks of checkpoints and of runs' folders."""

import json

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.prediction.networks import load_networks
from vnet_fast.run import checkpoint

CPU = torch.device("cpu")


def write(path, seed=0, **network):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"spacing": [1.0, 1.0, 1.0], "volume": [16, 16, 16], "validation": [f"case{seed}"]}
    checkpoint.save(path, VNet(base_channels=2, **network), **grid)


@pytest.fixture
def run(tmp_path):
    write(tmp_path / "run" / "best.pt", num_classes=3)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"fold": 0, "output": "run"}))
    return tmp_path / "run"


@pytest.fixture
def folds(tmp_path):
    for fold in range(3):
        write(tmp_path / "folds" / f"fold{fold}" / "best.pt", seed=fold)
    (tmp_path / "folds" / "config.json").write_text(json.dumps({"fold": "all", "folds": 3, "output": "folds"}))
    return tmp_path / "folds"


def test_a_folder_is_the_best_network_of_its_run(run):
    of_folder, of_file = (load_networks([str(path)], CPU) for path in (run, run / "best.pt"))
    assert (of_folder.count, of_folder.outputs, of_folder.held_out) == (1, 3, {"case0"})
    ours, theirs = (networks.model.state_dict() for networks in (of_folder, of_file))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_cross_validation_is_an_ensemble(folds):
    networks = load_networks([str(folds)], CPU)
    assert (networks.count, networks.outputs, networks.held_out) == (3, 2, set())
    assert len(networks.model) == 3


def test_a_fold_without_a_network_is_named(folds):
    (folds / "fold1" / "best.pt").unlink()
    with pytest.raises(InputError, match=r"fold1: has no best.pt yet. Resume with: .*--resume .*folds"):
        load_networks([str(folds)], CPU)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"config.json: no such file. Name the folder of a run"):
        load_networks([str(tmp_path)], CPU)
