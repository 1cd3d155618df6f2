"""The networks of checkpoints and of runs' folders."""

import json

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.prediction.networks import load_networks
from vnet_fast.run import checkpoint

CPU = torch.device("cpu")


def write(path, seed=0, classes=(), channels=None, **network):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid = {"spacing": [1.0, 1.0, 1.0], "volume": [16, 16, 16], "validation": [f"case{seed}"]}
    grid |= {"channels": channels} if channels else {}
    checkpoint.save(path, VNet(base_channels=2, **network), **grid, classes=list(classes))


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


def test_a_network_counts_once(run, folds):
    for paths in ((run, run / "best.pt"), (folds, folds / "fold1")):
        (folds / "fold1" / "config.json").write_text(json.dumps({"fold": 1, "folds": 3, "output": "folds/fold1"}))
        with pytest.raises(InputError, match=r"--checkpoint: names a checkpoint twice. Name each one once"):
            load_networks([str(path) for path in paths], CPU)


def test_a_fold_without_a_network_is_named(folds):
    (folds / "fold1" / "best.pt").unlink()
    with pytest.raises(InputError, match=r"fold1: has no best.pt yet. Resume with: .*--resume .*folds"):
        load_networks([str(folds)], CPU)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(InputError, match=r"config.json: no such file. Name the folder of a run"):
        load_networks([str(tmp_path)], CPU)


@pytest.mark.parametrize("unnamed", [False, True], ids=["two", "two after one without names"])
def test_networks_whose_classes_are_swapped(tmp_path, unnamed):
    """Averaged, they would be confused."""
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt")]
    for path, classes in zip(paths, ((), ("left", "right"), ("right", "left")), strict=True):
        write(tmp_path / path, classes=classes, num_classes=3)
    with pytest.raises(InputError) as error:
        load_networks(paths[0 if unnamed else 1 :], CPU)
    cause = f"its class 1 is right, that of {paths[1]} is left"
    assert str(error.value) == f"{paths[2]}: {cause}. Name checkpoints that agree in it"


def test_networks_whose_channels_are_swapped(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt", "d.pt")]
    for path, names in zip(paths, (("T1", "T2"), ("t1", "T2"), ("", ""), ("T2", "T1")), strict=True):
        channels = [{"name": name, "scaling": None} for name in names]
        write(tmp_path / path, in_channels=2, channels=channels)
    assert load_networks(paths[:3], CPU).count == 3
    with pytest.raises(InputError) as error:
        load_networks(paths, CPU)
    cause = f"its channel 0 is T2, that of {paths[0]} is T1"
    assert str(error.value) == f"{paths[3]}: {cause}. Name checkpoints that agree in it"


def test_classes_without_a_name_go_with_all(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.pt", "b.pt", "c.pt")]
    for path, classes in zip(paths, (("Left", ""), (), ("left", "right")), strict=True):
        write(tmp_path / path, classes=classes, num_classes=3)
    assert load_networks(paths, CPU).count == 3
