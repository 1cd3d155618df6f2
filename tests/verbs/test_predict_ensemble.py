"""Predictions of several networks."""

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from vnet_fast import VNet, predict
from vnet_fast.prediction import networks
from vnet_fast.prediction.networks import load_networks
from vnet_fast.run import checkpoint


def save_network(path, seed, validation=("Case01", "Case04"), spacing=(1.5, 1.5, 2.0), volume=(16, 16, 16), **settings):
    torch.manual_seed(seed)
    model = VNet(**{"base_channels": 2, "num_classes": 3, **settings})
    with torch.no_grad():
        # as it is made, its probabilities hardly depend on the weights
        model.head.weight.mul_(20)
    state = {"spacing": list(spacing), "volume": list(volume), "validation": list(validation)}
    checkpoint.save(path, model, **state)
    return path


def test_batch_norm_is_folded_for_prediction(tmp_path):
    path = save_network(tmp_path / "x.pt", 0, norm="batch", levels=3)
    assert load_networks([str(path)], torch.device("cpu")).model.norm is None


def ensemble_of(run_verb, paths, source, target, *more):
    arguments = ["--input", source, "--output", target, "--device", "cpu", *more]
    return run_verb(predict, "--checkpoint", *paths, *arguments)


def test_of_several_checkpoints_the_probabilities_are_averaged(cases, tmp_path, run_verb):
    paths = [
        save_network(tmp_path / "a.pt", 0),
        save_network(tmp_path / "b.pt", 1, topology="caffe"),
        save_network(tmp_path / "c.pt", 2, base_channels=1),
    ]
    folders = [tmp_path / name for name in ("a", "b", "c", "all")]
    for chosen, folder in zip([*([path] for path in paths), paths], folders, strict=True):
        code, out, err = ensemble_of(run_verb, chosen, cases / "Case00.mhd", folder, "--probabilities")
        assert code == 0, err
        assert ("3 networks averaged" in out) == (chosen is paths)
    for label in (1, 2):
        name = f"Case00_probability_{label}.mhd"
        *each, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in folders)
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=0, atol=1e-6)
        assert min(np.abs(found - one).max() for one in each) > 1e-3


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"num_classes": 2}, "b.pt: its number of classes is 2, that of"),
        ({"spacing": (1.5, 1.5, 2.5)}, "b.pt: its spacing is 1.5 1.5 2.5, that of"),
        ({"volume": (16, 16, 32)}, "b.pt: its volume is 16 16 32, that of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_that_do_not_go_together(cases, tmp_path, run_verb, difference, message):
    paths = [save_network(tmp_path / "a.pt", 0), save_network(tmp_path / "b.pt", 1, **difference)]
    code, _, err = ensemble_of(run_verb, paths, cases, tmp_path / "out")
    assert code == 2
    assert message in err
    assert "a.pt is" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_validation_cases_of_several_are_those_that_none_trained_on(cases, tmp_path, run_verb):
    paths = [
        save_network(tmp_path / "a.pt", 0, ["Case01", "Case04"]),
        save_network(tmp_path / "b.pt", 1, ["Case02", "Case04"]),
    ]
    assert ensemble_of(run_verb, paths, cases, tmp_path / "out", "--validation-only")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("*.mhd")] == ["Case04.mhd"]
    paths.append(save_network(tmp_path / "c.pt", 2, ["Case03"]))
    code, _, err = ensemble_of(run_verb, paths, cases, tmp_path / "other", "--validation-only")
    assert code == 2
    assert "--validation-only: no case was held out by every run. Give one checkpoint" in err


def test_where_memory_is_short_for_one_all_networks_run_on_the_cpu(tmp_path, monkeypatch):
    paths = [save_network(tmp_path / f"{seed}.pt", seed) for seed in range(3)]
    build, tried, moved = checkpoint.build_model, [], []

    def build_model(content, path, device):
        tried.append((path.stem, device.type))
        if device.type == "meta" and path.stem == "1":
            raise torch.OutOfMemoryError
        return build(content, path, torch.device("cpu"))

    monkeypatch.setattr(checkpoint, "build_model", build_model)
    monkeypatch.setattr(torch.nn.ModuleList, "to", lambda models, device: (moved.append(device.type), models)[1])
    loaded = networks.load_networks(paths, torch.device("meta"))
    assert tried == [("0", "meta"), ("1", "meta"), ("1", "cpu"), ("2", "cpu")]
    assert (len(loaded.model), loaded.device.type, moved) == (3, "cpu", ["cpu"])
