import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.prediction.fake_graphs import graphs
from tests.volumes import make_image
from vnet_fast import VNet, predict
from vnet_fast.data.phantom import phantoms
from vnet_fast.data.preparation import read_case
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import writing
from vnet_fast.prediction import held_out
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.fold_options import ALL
from vnet_fast.run.folder import fold_folder, write_config

__all__ = ["graphs"]
VOLUME, SPACING = (16, 16, 16), (1.5, 1.5, 2.0)
NAMES = [f"Case{index:02d}" for index in range(6)]


def save_best(folder, seed, validation, names=NAMES):
    torch.manual_seed(seed)
    model = VNet(base_channels=1)
    with torch.no_grad():
        # so that each seed makes other masks
        model.head.weight.mul_(20)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(
        folder / "best.pt",
        model,
        iteration=3,
        spacing=list(SPACING),
        volume=list(VOLUME),
        validation=validation,
        training=[name for name in names if name not in validation],
    )


@pytest.fixture
def run(cases, tmp_path):
    """A run that held out two cases, as training leaves it."""
    folder = tmp_path / "run"
    save_best(folder, 0, ["Case04", "Case01"])
    write_config(folder, Config(data=str(cases), output=str(folder), volume=VOLUME, spacing=SPACING))
    return folder


def array_of(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def predict_folder(run_verb, path, cases, target, *more):
    arguments = ["--checkpoint", path, "--input", cases, "--output", target, "--device", "cpu", "--validation-only"]
    code, _, err = run_verb(predict, *arguments, *more)
    assert code == 0, err


def change_config(run, **changes):
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_they_are_those_that_predict_writes(cases, run, tmp_path, run_verb, amp):
    change_config(run, amp=amp)
    found = held_out.held_out(run, "cpu")
    assert [case.name for case in found] == ["Case01", "Case04"]
    predict_folder(run_verb, run / "best.pt", cases, tmp_path / "masks", "--amp", amp)
    for case in found:
        assert case.image == cases / f"{case.name}.mhd"
        assert case.reference == cases / f"{case.name}_segmentation.mhd"
        assert case.prediction == run / "predictions" / f"{case.name}.mhd"
        mask = array_of(case.prediction)
        assert 0 < mask.mean() < 1
        np.testing.assert_array_equal(mask, array_of(tmp_path / "masks" / f"{case.name}.mhd"))


@pytest.fixture
def segmented(monkeypatch):
    """The names of the volumes that are predicted."""
    names, original = [], held_out.segment

    def segment(model, paths, *rest, **how):
        names.append(paths[0].stem)
        return original(model, paths, *rest, **how)

    monkeypatch.setattr(held_out, "segment", segment)
    return names


def forget(run):
    (run / "predictions" / "made_by.json").write_text("{")


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda run: None, []),
        (lambda run: save_best(run, 1, ["Case04", "Case01"]), ["Case04", "Case01"]),
        (lambda run: save_best(run, 0, ["Case04", "Case02"]), ["Case02"]),
        (lambda run: change_config(run, amp="bf16"), ["Case04", "Case01"]),
        (lambda run: (run / "predictions" / "Case01.mhd").unlink(), ["Case01"]),
        (lambda run: (run / "predictions" / "Case04.zraw").unlink(), ["Case04"]),
        (forget, ["Case04", "Case01"]),
    ],
    ids=["nothing", "weights", "another case", "precision", "a mask lost", "its voxels lost", "a damaged record"],
)
def test_only_what_is_not_there_is_predicted_again(run, segmented, change, again):
    held_out.held_out(run, "cpu")
    assert segmented == ["Case04", "Case01"]
    segmented.clear()
    change(run)
    held_out.held_out(run, "cpu")
    assert segmented == again


@pytest.mark.parametrize(("no_graph", "captured"), [(False, 1), (True, 0)], ids=["a graph", "none"])
def test_the_cases_share_a_graph(run, graphs, no_graph, captured):
    save_best(run, 0, ["Case00", "Case01", "Case02", "Case04"])
    change_config(run, no_graph=no_graph)
    held_out.held_out(run, "cpu")
    assert len(graphs) == captured


def test_a_kill_leaves_only_whole_predictions_that_count(run, segmented, monkeypatch):
    held_out.held_out(run, "cpu")
    save_best(run, 1, ["Case04", "Case01"])
    write, count = writing.write, []

    def killed(array, grid, path, names):
        write(array, grid, path, names)
        count.append(path)
        if len(count) == 2:
            # written, but not yet listed
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            held_out.held_out(run, "cpu")
    segmented.clear()
    # neither the old network's record nor the new one's names the second
    save_best(run, 0, ["Case04", "Case01"])
    held_out.held_out(run, "cpu")
    assert segmented == ["Case04", "Case01"]


def test_of_a_cross_validation_each_by_its_own_fold(cases, tmp_path, run_verb):
    run, parts = tmp_path / "run", (["Case00", "Case03"], ["Case02", "Case05"], ["Case01", "Case04"])
    for fold, names in enumerate(parts):
        save_best(fold_folder(run, fold), fold, names)
        predict_folder(run_verb, fold_folder(run, fold) / "best.pt", cases, tmp_path / "masks")
    config = Config(data=str(cases), output=str(run), volume=VOLUME, spacing=SPACING, folds=3, fold=ALL)
    write_config(run, config)
    found = held_out.held_out(run, "cpu")
    assert [case.name for case in found] == NAMES
    for case in found:
        assert case.prediction.parent == run / "predictions"
        np.testing.assert_array_equal(array_of(case.prediction), array_of(tmp_path / "masks" / case.prediction.name))
    # a fold of other cases would let some be held out twice, or trained on
    save_best(fold_folder(run, 2), 2, ["Case01", "Case04"], [*NAMES, "Case06"])
    with pytest.raises(InputError, match=r"fold2: was trained on other cases than the folds before \(Case06\)"):
        held_out.held_out(run, "cpu")
    # those of a split may have other cases, but none that is held out twice
    write_config(run, replace(config, split="splits_final.json"))
    assert [case.name for case in held_out.held_out(run, "cpu")] == NAMES
    save_best(fold_folder(run, 2), 2, ["Case01", "Case05"])
    with pytest.raises(InputError, match=r"fold2: held out cases that a fold before it did \(Case05\)"):
        held_out.held_out(run, "cpu")
    (fold_folder(run, 1) / "best.pt").unlink()
    with pytest.raises(InputError, match=r"fold1: has no best.pt yet. Resume with: .* --resume .*run$"):
        held_out.held_out(run, "cpu")


def test_phantoms_are_written_and_are_those_that_were_validated(tmp_path):
    run, config = tmp_path / "run", Config(volume=VOLUME, spacing=(6.0, 6.0, 8.0), seed=3)
    names = [f"phantom{index:02d}" for index in range(4)]
    save_best(run, 0, ["phantom01", "phantom03"], names)
    content = checkpoint.load(run / "best.pt")
    content["spacing"] = list(config.spacing)
    torch.save(content, run / "best.pt")
    write_config(run, replace(config, output=str(run)))
    found = held_out.held_out(run, "cpu")
    assert [case.name for case in found] == ["phantom01", "phantom03"]
    trained_beside = {case.name: case for case in phantoms(config.seed, 4, config.volume, config.spacing)}
    for case in found:
        files = held_out.Case(case.name, case.image, case.reference)
        (image,), _, prepared = read_case(files, config.spacing, config.volume)
        assert image.GetSpacing() == pytest.approx(config.spacing)
        np.testing.assert_array_equal(prepared.ranks, trained_beside[case.name].ranks)
        np.testing.assert_array_equal(prepared.mask, trained_beside[case.name].mask)
        assert array_of(case.prediction).shape == VOLUME


def test_labels_of_a_binary_run_stay_as_the_file_has_them(cases, run):
    change_config(run, binary=True)
    mask = cases / "Case01_segmentation.mhd"
    sitk.WriteImage(make_image(7 * array_of(mask), (1.2, 1.1, 2.0)), str(mask), useCompression=True)
    assert array_of(held_out.held_out(run, "cpu")[0].reference).max() == 7


def test_what_is_missing_is_one_line(cases, run, tmp_path):
    for folder, message in ((tmp_path / "nowhere", "config.json: no such file"), (cases, "config.json: no such file")):
        with pytest.raises(InputError, match=message):
            held_out.held_out(folder, "cpu")
    for suffix in (".mhd", ".zraw"):
        (cases / f"Case04{suffix}").unlink()
    with pytest.raises(InputErrors, match=r"Case04: the run held it out, but the case or its mask is missing"):
        held_out.held_out(run, "cpu")
    cases.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"cases: no such folder, and .*run was trained on it. Restore it, or write"):
        held_out.held_out(run, "cpu")
    change_config(run, data=str(tmp_path / "moved"))
    with pytest.raises(InputErrors, match=r"moved/Case04: the run held it out"):
        held_out.held_out(run, "cpu")
    (run / "best.pt").unlink()
    with pytest.raises(InputError, match=r"run: has no best.pt yet"):
        held_out.held_out(run, "cpu")


def test_a_volume_that_cannot_be_read_does_not_keep_the_others(cases, run):
    (cases / "Case04.zraw").write_bytes(b"nonsense")
    with pytest.raises(InputErrors, match=r"Case04.zraw"):
        held_out.held_out(run, "cpu")
    assert [path.stem for path in (run / "predictions").glob("*.mhd")] == ["Case01"]


def test_probabilities_beside_the_masks(cases, run, tmp_path, run_verb, capsys):
    """They are those that predict writes; masks without them are predicted again, once."""
    held_out.held_out(run, "cpu")
    assert not list((run / "predictions").glob("*_probability*"))
    capsys.readouterr()
    found = held_out.held_out(run, "cpu", probabilities=True)
    assert "predicting 2 cases" in capsys.readouterr().out
    predict_folder(run_verb, run / "best.pt", cases, tmp_path / "masks", "--probabilities")
    for case in found:
        for file in case.files(1):
            np.testing.assert_array_equal(array_of(file), array_of(tmp_path / "masks" / file.name))
    capsys.readouterr()
    for probabilities in (True, False):
        held_out.held_out(run, "cpu", probabilities=probabilities)
        assert "predicting" not in capsys.readouterr().out
    found[0].files(1)[1].unlink()
    held_out.held_out(run, "cpu", probabilities=True)
    assert "predicting 1 cases" in capsys.readouterr().out


def test_probabilities_of_another_network_are_not_used(run, capsys):
    """The masks were predicted by it without probabilities."""
    held_out.held_out(run, "cpu", probabilities=True)
    save_best(run, 1, ["Case04", "Case01"])
    held_out.held_out(run, "cpu")
    capsys.readouterr()
    held_out.held_out(run, "cpu", probabilities=True)
    assert "predicting 2 cases" in capsys.readouterr().out
