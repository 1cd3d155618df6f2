import json

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import make_image

from vnet_fast import evaluate


@pytest.fixture
def folders(tmp_path):
    """References of two structures in three cases, and predictions shifted, equal, and empty."""
    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
    reference = np.zeros((10, 20, 20), np.uint8)
    reference[2:6, 4:10, 4:10], reference[2:6, 4:10, 10:14] = 1, 2
    shifted = np.roll(reference, 2, axis=2)
    for name, prediction in (("a2", shifted), ("a10", reference), ("b", reference * 0)):
        sitk.WriteImage(make_image(reference, (0.5, 1, 2)), str(tmp_path / "labels" / f"{name}.nii.gz"))
        sitk.WriteImage(make_image(prediction, (0.5, 1, 2)), str(tmp_path / "predictions" / f"{name}.nii.gz"))
    return tmp_path / "predictions", tmp_path / "labels"


def test_report(folders, tmp_path, run_verb):
    path = tmp_path / "report.json"
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    assert code == 0, err
    report = json.loads(path.read_text())
    assert list(report["cases"]) == ["a2", "a10", "b"]
    shifted = report["cases"]["a2"]
    # six columns of which four overlap; shifted by two voxels of half a millimetre
    assert shifted["1"]["dice"] == pytest.approx(4 / 6)
    assert shifted["1"]["hausdorff_mm"] == pytest.approx(1.0)
    assert report["cases"]["a10"] == {k: {"dice": 1.0, "hausdorff_mm": 0.0} for k in ("1", "2")}
    assert report["cases"]["b"]["1"] == {"dice": 0.0, "hausdorff_mm": None}
    summary = report["summary"]["1"]
    assert summary["dice"]["mean"] == pytest.approx((4 / 6 + 1 + 0) / 3)
    assert summary["dice"]["standard_deviation"] == pytest.approx(np.std([4 / 6, 1, 0], ddof=1))
    assert summary["hausdorff_mm"] == {"mean": 0.5, "standard_deviation": pytest.approx(0.70710678), "cases": 2}
    assert "one is empty" in out
    assert ["a2", "1", "0.6667", "1.00"] in [line.split() for line in out.splitlines()]
    assert len(list(tmp_path.glob("*report*"))) == 1


def test_binary_takes_all_labels_as_one(folders, tmp_path, run_verb):
    path = tmp_path / "report.json"
    run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path, "--binary")
    report = json.loads(path.read_text())
    assert list(report["summary"]) == ["1"]
    assert report["cases"]["a2"]["1"]["dice"] == pytest.approx(0.8)


def test_labels_that_are_in_some_cases_only(folders, tmp_path, run_verb):
    """Every label counts in every case: where neither mask has it, they agree. Others do not appear."""
    for folder in folders:
        sitk.WriteImage(make_image(np.zeros((10, 20, 20), np.uint8)), str(folder / "empty.nii.gz"))
        for path in folder.iterdir():
            image = sitk.ReadImage(str(path))
            sitk.WriteImage(sitk.Cast((image == 2) * 2, sitk.sitkUInt8), str(path))
    path = tmp_path / "report.json"
    run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    report = json.loads(path.read_text())
    assert list(report["summary"]) == ["2"]
    assert report["summary"]["2"]["dice"]["cases"] == 4
    assert report["cases"]["empty"]["2"] == {"dice": 1.0, "hausdorff_mm": 0.0}


def test_references_without_a_prediction_are_counted(folders, run_verb):
    (folders[0] / "b.nii.gz").unlink()
    _, out, _ = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1])
    assert "1 more reference masks have no prediction" in out


def test_masks_on_other_grids_are_all_named(folders, run_verb):
    for name in ("a2", "b"):
        sitk.WriteImage(make_image(np.zeros((10, 20, 20), np.uint8), (1, 1, 2)), str(folders[0] / f"{name}.nii.gz"))
    code, _, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1])
    assert code == 2
    assert err.count("its spacing is 1 1 2, that of") == 2


def test_wrong_paths(folders, tmp_path, run_verb):
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        (["--predictions", tmp_path / "empty", "--labels", folders[1]], "no predicted masks"),
        (["--predictions", folders[0], "--labels", tmp_path / "nowhere"], "no such folder"),
        (["--predictions", folders[0], "--labels", tmp_path / "empty"], "no reference mask for it"),
        (["--predictions", folders[0]], "the following arguments are required: --labels"),
    ):
        code, _, err = run_verb(evaluate, *arguments)
        assert code == 2
        assert words in err
    code, _, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", tmp_path / "nowhere" / "x.json"
    )
    assert code == 2
    assert "can't be written" in err
