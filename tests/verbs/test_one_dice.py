"""Training, prediction, evaluation and the report give one number for the same masks."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import SimpleITK as sitk

from tests.reporting.page_reader import PageReader
from tests.volumes import write_case
from vnet_fast import __main__, evaluate, plotting, predict, report, train

# a grid larger than the volumes, and coarser
SETTINGS = ["--volume", 24, 24, 16, "--spacing", 1.5, 1.5, 2.5, "--base-channels", 1, "--device", "cpu", "--seed", 1]
SETTINGS += ["--folds", 2, "--iterations", 12, "--learning-rate", 0.02, "--optimizer", "adamw"]
NAMES = {"background": 0, "Anterior": 1, "Posterior": 2, "Nowhere": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, its data and what it printed: two classes with names, and a third that is in no mask."""
    folder = tmp_path_factory.mktemp("one")
    data = folder / "data"
    for part in ("imagesTr", "labelsTr"):
        (data / part).mkdir(parents=True)
    for index in range(6):
        paths = write_case(folder, f"c{index}", index, suffix=".nii.gz", labels=2)
        for path, part in zip(paths, ("imagesTr", "labelsTr"), strict=True):
            path.rename(data / part / f"c{index}.nii.gz")
    (data / "dataset.json").write_text(json.dumps({"labels": NAMES}))
    run = folder / "run"
    arguments = ["train", "--data", data, "--output", run, *SETTINGS]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("HOME", str(folder))
        with pytest.raises(SystemExit) as stopped:
            __main__.main(list(map(str, arguments)))
    assert stopped.value.code == 0
    return run, data, printed.getvalue()


def test_the_numbers_agree(trained, tmp_path, run_verb):
    run, data, out = trained
    summary = json.loads((run / "summary.json").read_text())
    common = ["--checkpoint", run / "best.pt", "--input", data, "--output", tmp_path / "masks"]
    assert run_verb(predict, *common, "--device", "cpu", "--validation-only")[0] == 0
    code, table, err = run_verb(
        evaluate, "--predictions", tmp_path / "masks", "--labels", data, "--output", tmp_path / "x.json"
    )
    assert code == 0, err
    measured = json.loads((tmp_path / "x.json").read_text())["predictions"]["masks"]
    assert summary["val_dice"] == pytest.approx(measured["mean_dice"], abs=1e-6)
    per_class = [measured["summary"][label]["whole"]["dice"]["mean"] for label in "123"]
    # at least one of the two is predicted, or the test would say nothing
    assert max(per_class[:2]) > 0.1
    assert per_class[2] is None
    assert summary["val_dice_per_class"] == [pytest.approx(per_class[0]), pytest.approx(per_class[1]), None]
    for name, dice in summary["val_dice_per_case_and_class"].items():
        measured_dice = [measured["cases"][name][label]["whole"]["dice"] for label in "12"]
        assert dice[:2] == pytest.approx(measured_dice, abs=1e-6)
    assert re.search(rf"validation Dice {summary['val_dice']:.4f} \(Anterior {per_class[0]:.4f}, Posterior", out)
    assert ["mean", "±", "SD", "Anterior", "whole", f"{per_class[0]:.4f}"] in [
        line.split()[:6] for line in table.splitlines()
    ]


def test_the_report_agrees_and_names_the_classes(trained, tmp_path, run_verb):
    run, _, _ = trained
    code, _, err = run_verb(report, "--run", run, "--output", tmp_path / "page", "--device", "cpu")
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    page = PageReader((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    result = page.tables[0]
    assert [row[1] for row in result[1:]] == ["Anterior", "Posterior", "Nowhere"]
    for row, dice in zip(result[1:3], summary["val_dice_per_class"][:2], strict=True):
        assert float(row[4].split()[0]) == pytest.approx(dice, abs=5e-5)


@pytest.mark.usefixtures("quick_training")
def test_of_phantoms_the_grids_are_one(tmp_path, run_verb, monkeypatch):
    """The network's grid is that of their files, so that both validations see the same masks."""
    from vnet_fast.data import training_data

    monkeypatch.setattr(training_data, "NUM_PHANTOMS", 4)
    run = tmp_path / "run"
    assert run_verb(train, "--output", run, *SETTINGS, "--amp", "off")[0] == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_dice"] > 0
    assert summary["network_grid_dice"] == pytest.approx(summary["val_dice"], abs=1e-6)


@pytest.mark.usefixtures("quick_training")
def test_a_run_is_finished_even_if_its_files_are_gone(trained, tmp_path, run_verb, monkeypatch):
    """Only the number on the network's grid is there then, and a line says why."""
    from vnet_fast.training import trainer

    data, run = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    for index in range(4):
        write_case(data, f"c{index}", index)
    finish = trainer.finish
    monkeypatch.setattr(
        trainer, "finish", lambda *given: ([path.unlink() for path in data.glob("*.zraw")], finish(*given))
    )
    code, out, err = run_verb(train, "--data", data, "--output", run, *SETTINGS)
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["val_dice"] is None
    assert 0 <= summary["network_grid_dice"] <= 1
    assert "no Dice on the volumes' own grids: " in out
    assert f"validation Dice {summary['network_grid_dice']:.4f} on the network's grid" in out
    # once they are back, resuming measures what was not measured
    monkeypatch.setattr(trainer, "finish", finish)
    for index in range(4):
        write_case(data, f"c{index}", index)
    code, out, err = run_verb(train, "--resume", run)
    assert code == 0, err
    again = json.loads((run / "summary.json").read_text())
    assert again["val_dice"] is not None
    assert again["network_grid_dice"] == summary["network_grid_dice"]
    code, _, err = run_verb(train, "--resume", run)
    assert code == 2
    assert "Give more --iterations" in err


@pytest.mark.usefixtures("quick_training")
@pytest.mark.exhaustive
@pytest.mark.parametrize("declared", [False, True])
def test_a_trained_class_that_no_held_out_mask_has(tmp_path, run_verb, monkeypatch, declared):
    """Its false positives count, with names or without, and names are found beside the masks."""
    data, run = tmp_path / "data", tmp_path / "run"
    for part in ("imagesTr", "labelsTr"):
        (data / part).mkdir(parents=True)
    for index in range(4):
        # with this seed the first and the third are held out by fold 1
        paths = write_case(tmp_path, f"c{index}", index, suffix=".nii.gz", labels=1 + index % 2)
        for path, part in zip(paths, ("imagesTr", "labelsTr"), strict=True):
            path.rename(data / part / f"c{index}.nii.gz")
    if declared:
        (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "One": 1, "Two": 2}}))
    folders = ["--data", data / "imagesTr", "--labels", data / "labelsTr"]
    code, _, err = run_verb(train, *folders, "--output", run, *SETTINGS, "--fold", 1)
    assert code == 0, err
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["val_dice_per_case"]) == {"c0", "c2"}
    assert summary["classes"] == (["One", "Two"] if declared else ["class 1", "class 2"])
    code, _, err = run_verb(
        evaluate, "--predictions", run / "predictions", "--labels", data, "--output", tmp_path / "x.json"
    )
    assert code == 0, err
    measured = json.loads((tmp_path / "x.json").read_text())["predictions"]["predictions"]
    assert list(measured["summary"]) == ["1", "2"]
    assert measured["mean_dice"] == pytest.approx(summary["val_dice"], abs=1e-6)
    monkeypatch.setattr(plotting, "available", lambda: True)
    code, _, err = run_verb(report, "--run", run, "--output", tmp_path / "page", "--device", "cpu")
    assert code == 0, err
    page = PageReader((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    assert [row[1] for row in page.tables[0][1:]] == (["One", "Two"] if declared else ["1", "2"])


def test_a_mask_in_the_padding_would_have_counted(trained):
    """The volumes are smaller than the grid: without that, the first test would say less."""
    _, data, _ = trained
    image = sitk.ReadImage(str(data / "imagesTr" / "c0.nii.gz"))
    extent = np.array(image.GetSize()) * image.GetSpacing()
    assert (extent < np.array([24, 24, 16]) * [1.5, 1.5, 2.5]).all()
