import csv
import json
import os

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image
from vnet_fast import evaluate
from vnet_fast.evaluation.evaluation import compare, names_of
from vnet_fast.evaluation.metrics import METRICS
from vnet_fast.evaluation.regions import REGIONS


@pytest.fixture
def folders(tmp_path):
    """References with two structures in three cases, and predictions that are shifted, equal, and empty."""
    for folder in ("predictions", "labels"):
        (tmp_path / folder).mkdir()
    reference = np.zeros((10, 20, 20), np.uint8)
    reference[2:6, 4:10, 4:10], reference[2:6, 4:10, 10:14] = 1, 2
    shifted = np.roll(reference, 2, axis=2)
    for name, prediction in (("a2", shifted), ("a10", reference), ("b", reference * 0)):
        sitk.WriteImage(make_image(reference, (0.5, 1, 2)), str(tmp_path / "labels" / f"{name}.nii.gz"))
        sitk.WriteImage(make_image(prediction, (0.5, 1, 2)), str(tmp_path / "predictions" / f"{name}.nii.gz"))
    return tmp_path / "predictions", tmp_path / "labels"


def only(path):
    """The content of a JSON file of one folder of predictions."""
    (content,) = json.loads(path.read_text())["predictions"].values()
    return content


def test_report(folders, tmp_path, run_verb):
    path = tmp_path / "report.json"
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    assert code == 0, err
    report = only(path)
    assert list(report["cases"]) == ["a2", "a10", "b"]
    shifted = report["cases"]["a2"]["1"]["whole"]
    # four of six columns overlap; the shift is two voxels of half a millimetre
    assert shifted["dice"] == pytest.approx(4 / 6)
    assert shifted["jaccard"] == pytest.approx(4 / 8)
    assert shifted["hausdorff_mm"] == pytest.approx(1.0)
    assert shifted["prediction_ml"] == pytest.approx(4 * 6 * 6 * 0.5 * 1 * 2 / 1000)
    perfect = {metric.name: metric.perfect for metric in METRICS if metric.perfect is not None}
    assert report["cases"]["a10"]["1"]["whole"].items() >= perfect.items()
    nothing = report["cases"]["b"]["1"]["whole"]
    assert (nothing["dice"], nothing["hausdorff_mm"], nothing["prediction_ml"]) == (0.0, None, 0.0)
    assert nothing["relative_volume_difference_percent"] == -100
    summary = report["summary"]["1"]["whole"]
    assert summary["dice"]["mean"] == pytest.approx((4 / 6 + 1 + 0) / 3)
    assert summary["dice"]["median"] == pytest.approx(4 / 6)
    assert summary["dice"]["standard_deviation"] == pytest.approx(np.std([4 / 6, 1, 0], ddof=1))
    distance = {"mean": 0.5, "standard_deviation": pytest.approx(0.70710678), "median": 0.5, "cases": 2}
    assert summary["hausdorff_mm"] == distance
    assert "class 1, whole: distances of 2 of 3 cases; in the others one mask is empty" in out
    assert ["a2", "1", "whole", "0.6667", "1.00"] in [line.split()[:5] for line in out.splitlines()]
    assert ["median", "1", "whole", "0.6667"] in [line.split()[:4] for line in out.splitlines()]
    assert len(list(tmp_path.glob("*report*"))) == 1


def test_binary_takes_all_labels_as_one(folders, tmp_path, run_verb):
    path = tmp_path / "report.json"
    run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path, "--binary")
    report = only(path)
    assert list(report["summary"]) == ["1"]
    assert report["cases"]["a2"]["1"]["whole"]["dice"] == pytest.approx(0.8)


def test_labels_that_are_in_some_cases_only(folders, tmp_path, run_verb):
    """Where neither mask has a label, there is nothing to rate; labels of no reference do not appear."""
    for folder in folders:
        sitk.WriteImage(make_image(np.zeros((10, 20, 20), np.uint8)), str(folder / "empty.nii.gz"))
        for path in folder.iterdir():
            image = sitk.ReadImage(str(path))
            sitk.WriteImage(sitk.Cast((image == 2) * 2, sitk.sitkUInt8), str(path))
    path = tmp_path / "report.json"
    _, out, _ = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    report = only(path)
    assert list(report["summary"]) == ["2"]
    dice = [report["cases"][name]["2"]["whole"]["dice"] for name in ("a2", "a10", "b")]
    assert report["summary"]["2"]["whole"]["dice"]["cases"] == 3
    assert report["summary"]["2"]["whole"]["dice"]["mean"] == pytest.approx(sum(dice) / 3)
    absent = report["cases"]["empty"]["2"]["whole"]
    assert (absent["dice"], absent["hausdorff_mm"], absent["reference_ml"]) == (None, None, 0.0)
    assert report["absent"] == {"2": 1}
    assert "class 2: in neither mask of 1 of 4 cases, which do not count" in out


def test_a_class_is_rated_where_only_the_prediction_has_it(folders, tmp_path, run_verb):
    for name in ("a2", "a10"):
        path = str(folders[1] / f"{name}.nii.gz")
        image = sitk.ReadImage(path)
        sitk.WriteImage(sitk.Cast(image == 1, sitk.sitkUInt8), path)
    path = tmp_path / "report.json"
    run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    dice = [case["2"]["whole"]["dice"] for case in only(path)["cases"].values()]
    assert dice == [0, 0, 0]


def declare(folder, labels):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


@pytest.mark.parametrize("beside", [False, True], ids=["in the folder", "beside labelsTr"])
def test_classes_have_the_names_that_the_data_set_declares(folders, tmp_path, run_verb, beside):
    labels = folders[1]
    if beside:
        labels = labels.rename(tmp_path / "labelsTr")
    declare(tmp_path if beside else labels, {"background": 0, "Anterior": 1, "Posterior": 2, "Both": 3})
    path, table = tmp_path / "report.json", tmp_path / "cases.csv"
    code, out, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", labels, "--output", path, "--csv", table
    )
    assert code == 0, err
    assert ["a2", "Anterior", "whole", "0.6667"] in [line.split()[:4] for line in out.splitlines()]
    # declared, but in no mask
    assert "Both: in neither mask of 3 of 3 cases, which do not count" in out
    assert json.loads(path.read_text())["classes"] == {"1": "Anterior", "2": "Posterior", "3": "Both"}
    assert only(path)["summary"]["3"]["whole"]["dice"] == dict.fromkeys(("mean", "standard_deviation", "median")) | {
        "cases": 0
    }
    with open(table, newline="") as file:
        assert {(row["class"], row["class_name"]) for row in csv.DictReader(file)} == {
            ("1", "Anterior"), ("2", "Posterior"), ("3", "Both")
        }  # fmt: skip


def test_a_single_pair_of_files(folders, tmp_path, run_verb):
    path, reference = tmp_path / "report.json", tmp_path / "expert.nii.gz"
    (folders[1] / "a2.nii.gz").rename(reference)
    code, _, err = run_verb(
        evaluate, "--predictions", folders[0] / "a2.nii.gz", "--labels", reference, "--output", path
    )
    assert code == 0, err
    assert list(only(path)["cases"]) == ["expert"]
    assert only(path)["cases"]["expert"]["1"]["whole"]["dice"] == pytest.approx(4 / 6)


def test_one_prediction_of_a_folder(folders, run_verb):
    code, out, _ = run_verb(evaluate, "--predictions", folders[0] / "a2.nii.gz", "--labels", folders[1])
    assert code == 0
    assert "a10" not in out
    assert "more reference masks" not in out


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ("predictions", "labels/a2.nii.gz", "a2.nii.gz: one reference mask for the folder"),
        ("predictions/none.nii.gz", "labels/a2.nii.gz", "none.nii.gz: no such file"),
        ("predictions/a2.nii.gz", "labels/none.nii.gz", "none.nii.gz: no such file"),
        ("predictions/none.nii.gz", "labels", "none.nii.gz: no such file"),
    ],
)
def test_files_that_are_no_pair(folders, tmp_path, run_verb, predictions, labels, message):
    code, _, err = run_verb(evaluate, "--predictions", tmp_path / predictions, "--labels", tmp_path / labels)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err


def test_names_are_text(folders, tmp_path, run_verb):
    """In a spreadsheet a case's name is no formula, and a newline in it breaks no line."""
    names = {"a2": "=cmd|' C'!A1", "a10": "+1", "b": "two\nlines\x1b[2J"}
    for folder in folders:
        for old, new in names.items():
            (folder / f"{old}.nii.gz").rename(folder / f"{new}.nii.gz")
    table = tmp_path / "cases.csv"
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--csv", table)
    assert code == 0, err
    with open(table, newline="") as file:
        cases = {row["case"] for row in csv.DictReader(file)}
    assert cases == {"'=cmd|' C'!A1", "'+1", r"two\nlines\x1b[2J"}
    assert len(table.read_text().splitlines()) == 1 + 6
    assert r"two\nlines\x1b[2J" in out
    assert "\x1b" not in out


def test_rows_of_the_csv(folders, tmp_path, run_verb):
    path = tmp_path / "cases.csv"
    code, _, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", folders[1], "--csv", path, "--regions", "--binary"
    )
    assert code == 0, err
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"], row["region"]) for row in rows] == [
        (case, "1", region) for case in ("a2", "a10", "b") for region in ("whole", "base", "apex")
    ]
    assert {row["predictions"] for row in rows} == {"predictions"}
    assert float(rows[0]["dice"]) == pytest.approx(0.8)
    # base and apex have one of four slices each, with 6 x 10 voxels of 1 mm3
    assert [float(row["reference_ml"]) for row in rows[3:6]] == pytest.approx([0.24, 0.06, 0.06])
    # an empty mask has no distance
    assert (rows[6]["hausdorff_mm"], rows[6]["dice"]) == ("", "0")


def write_observer(path):
    path.write_text("[dice]\nwhole = 0.5\nbase = 0.5\napex = 0.5\n[hausdorff_95_mm]\nwhole = 2\n")
    return path


def test_the_challenges_score(folders, tmp_path, run_verb):
    observer = write_observer(tmp_path / "observer.toml")
    common = ["--predictions", folders[0], "--labels", folders[1], "--binary", "--output", tmp_path / "report.json"]
    code, out, err = run_verb(evaluate, *common, "--observer", observer)
    assert code == 0, err
    report = only(tmp_path / "report.json")
    # Dice 0.8 is 0.4 times as far from perfect as the observer, and 1 mm is half as far
    measures = report["cases"]["a2"]["1"]
    assert [measures[region]["dice"] for region in ("whole", "base", "apex")] == pytest.approx([0.8] * 3)
    assert measures["whole"]["hausdorff_95_mm"] == pytest.approx(1.0)
    points = (3 * (100 - 15 * 0.4) + (100 - 15 * 0.5)) / 4
    assert report["scores"]["a2"]["1"] == pytest.approx(points)
    assert report["scores"]["a10"]["1"] == 100
    # Dice 0 is twice as far from perfect as the observer; an infinite distance has no points
    assert report["scores"]["b"]["1"] == pytest.approx((3 * 70 + 0) / 4)
    assert report["summary"]["1"]["whole"]["score"]["cases"] == 3
    assert out.splitlines()[0].split()[-1] == "score"
    code, out, _ = run_verb(evaluate, *common)
    assert code == 0
    assert "score" not in out
    assert "scores" not in only(tmp_path / "report.json")


@pytest.fixture
def second(folders):
    """Other predictions of the same cases: the references, with one more voxel in one case."""
    other = folders[0].parent / "other"
    other.mkdir()
    for path in folders[1].iterdir():
        image = sitk.ReadImage(str(path))
        if path.name.startswith("a10"):
            image[0, 0, 0] = 1
        sitk.WriteImage(image, str(other / path.name))
    return other


def test_several_predictions_side_by_side(folders, second, tmp_path, run_verb):
    path = tmp_path / "report.json"
    code, out, err = run_verb(
        evaluate, "--predictions", folders[0], second, "--labels", folders[1], "--output", path, "--binary",
        "--csv", tmp_path / "cases.csv",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(path.read_text())
    assert list(report["predictions"]) == ["predictions", "other"]
    dice, distance, _ = report["comparisons"]
    assert (dice["first"], dice["second"], dice["label"], dice["metric"]) == ("predictions", "other", 1, "dice")
    assert dice["differences"]["a2"] == pytest.approx(0.2)
    assert dice["differences"]["b"] == pytest.approx(1.0)
    # the reference has 240 voxels, and the prediction one more
    assert dice["differences"]["a10"] == pytest.approx(2 * 240 / 481 - 1)
    # the exact test of three cases, of which two have positive ranks
    assert dice["p_value"] == pytest.approx(0.5)
    # the case whose prediction is empty has no distance
    assert distance["differences"].keys() == {"a2", "a10"}
    assert "other - predictions, class 1, Dice: median difference +0.2000 (higher in 2, lower in 1 of 3 cases)" in out
    assert len((tmp_path / "cases.csv").read_text().splitlines()) == 1 + 2 * 3


def test_a_label_of_one_set_of_predictions_alone(folders, second, tmp_path, run_verb):
    """A stray voxel is no class of the data set; if it is declared, it is measured in both sets."""
    image = sitk.ReadImage(str(second / "b.nii.gz"))
    image[0, 0, 0] = 5
    sitk.WriteImage(image, str(second / "b.nii.gz"))
    path = tmp_path / "report.json"
    options = ["--predictions", folders[0], second, "--labels", folders[1], "--output", path]
    code, out, err = run_verb(evaluate, *options)
    assert code == 0, err
    assert list(json.loads(path.read_text())["predictions"]["other"]["summary"]) == ["1", "2"]
    assert "class 5: predicted in 1 of 3 cases, but in no reference and not declared; not measured" in out
    declare(folders[1], {"background": 0, "one": 1, "two": 2, "stray": 5})
    code, out, err = run_verb(evaluate, *options)
    assert code == 0, err
    report = json.loads(path.read_text())
    values = [report["predictions"][name]["cases"]["b"]["5"]["whole"]["dice"] for name in ("predictions", "other")]
    assert values == [None, 0.0]
    (comparison,) = [c for c in report["comparisons"] if (c["label"], c["metric"]) == (5, "dice")]
    assert comparison["differences"] == {}
    assert "other - predictions, stray, Dice: not defined in both for any case" in out


def test_predictions_of_other_cases_are_refused(folders, second, run_verb):
    (second / "b.nii.gz").unlink()
    code, _, err = run_verb(evaluate, "--predictions", folders[0], second, "--labels", folders[1])
    assert code == 2
    assert err.startswith("error: other: has no prediction of b, which predictions has.")
    assert err.count("\n") == 1


def write_probabilities(folders):
    """Of both labels: what is predicted is certain, but for a tenth."""
    for path in folders[0].glob("*.nii.gz"):
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for label in (1, 2):
            values = np.where(labels == label, 0.9, 0.05).astype(np.float32)
            name = path.name.replace(".nii.gz", f"_probability_{label}.nii.gz")
            sitk.WriteImage(make_image(values, (0.5, 1, 2)), str(folders[0] / name))


def test_calibration(folders, tmp_path, run_verb):
    write_probabilities(folders)
    path, table = tmp_path / "report.json", tmp_path / "cases.csv"
    common = ["--predictions", folders[0], "--labels", folders[1], "--output", path, "--csv", table]
    code, out, err = run_verb(evaluate, *common, "--calibration")
    assert code == 0, err
    measured = only(path)["calibration"]["1"]
    assert f"expected calibration error: class 1 {measured['expected_calibration_error']:.4f}, class 2 0." in out
    # of the case that is predicted as it is, what is inside is off by 0.1 and the rest of the volume by 0.05
    inside, voxels = 4 * 6 * 6, 10 * 20 * 20
    expected = (0.1 * inside + 0.05 * (voxels - inside)) / voxels
    assert measured["cases"]["a10"] == pytest.approx(expected, rel=1e-4)
    assert len(measured["bins"]) == 15
    last = measured["bins"][13]
    assert (last["from"], last["to"], last["voxels"]) == (pytest.approx(13 / 15), pytest.approx(14 / 15), 2 * inside)
    assert last["mean_probability"] == pytest.approx(0.9)
    # of the predicted voxels, all are inside in one case, and four of six columns in the other
    assert last["share"] == pytest.approx((1 + 4 / 6) / 2)
    assert measured["bins"][5] == {"from": 5 / 15, "to": 6 / 15, "voxels": 0, "mean_probability": None, "share": None}
    with open(table, newline="") as file:
        rows = {(row["case"], row["class"]): row["expected_calibration_error"] for row in csv.DictReader(file)}
    assert float(rows["a10", "1"]) == pytest.approx(expected, rel=1e-4)
    # without the option, nothing is read or said of it
    code, out, _ = run_verb(evaluate, *common)
    assert code == 0
    assert "calibration" not in out + path.read_text() + table.read_text()


def test_calibration_without_probabilities(folders, tmp_path, run_verb):
    code, out, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", folders[1], "--calibration", "--output", tmp_path / "x.json"
    )
    assert (code, err.count("\n"), out) == (2, 3, "")
    assert "a2.nii.gz: no probabilities beside it. Predict with --probabilities" in err
    assert not (tmp_path / "x.json").exists()


def test_folders_of_one_name_keep_their_paths(folders, tmp_path):
    assert names_of(["a/predictions", "b/predictions", "c"]) == ["a/predictions", "b/predictions", "c"]
    assert names_of(["a/predictions/"]) == ["predictions"]


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
    for arguments, message in (
        (["--predictions", tmp_path / "empty", "--labels", folders[1]], "no predicted masks"),
        (["--predictions", folders[0], "--labels", tmp_path / "nowhere"], "no such folder"),
        (["--predictions", folders[0], "--labels", tmp_path / "empty"], "no reference mask for it"),
        (["--predictions", folders[0]], "the following arguments are required: --labels"),
    ):
        code, _, err = run_verb(evaluate, *arguments)
        assert code == 2
        assert message in err
    code, _, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", tmp_path / "nowhere" / "x.json"
    )
    assert code == 2
    assert "can't be written" in err


def test_options_that_contradict_each_other(folders, tmp_path, run_verb):
    common = ["--predictions", folders[0], "--labels", folders[1]]
    for arguments, message in (
        ([*common, "--images", folders[0]], "--images: given without --figures"),
        (["--predictions", folders[0], f"{folders[0]}/", "--labels", folders[1]], "names a folder twice"),
        ([*common, "--output", tmp_path], "it is a folder"),
        ([*common, "--output", tmp_path / "x", "--csv", tmp_path / "x"], "--csv: is the file of --output"),
        ([*common, "--observer", tmp_path / "none.toml"], "none.toml: no such file"),
        ([*common, "--figures", tmp_path / "figures", "--output", tmp_path / "out"], "no volumes beside the reference"),
    ):
        code, _, err = run_verb(evaluate, *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_pictures(cases, tmp_path, run_verb):
    """The volumes are beside their reference masks; the predictions are parts of the references."""
    predictions, folder = tmp_path / "predictions", tmp_path / "figures"
    predictions.mkdir()
    for number, path in enumerate(sorted(cases.glob("*_segmentation.mhd"))):
        mask = sitk.ReadImage(str(path))
        mask[: 8 + number, :, :] = 0
        sitk.WriteImage(mask, str(predictions / f"{path.name.removesuffix('_segmentation.mhd')}.nii.gz"))
    common = ["--predictions", predictions, "--labels", cases, "--figures", folder]
    code, _, err = run_verb(evaluate, *common)
    assert code == 0, err
    names = {"distribution.png", "best.png", "median.png", "worst.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())
    code, _, err = run_verb(evaluate, *common, "--images", tmp_path)
    assert code == 2
    assert "no volumes" in err


@pytest.mark.parametrize("slices", [0, 1], ids=["empty", "a single slice"])
def test_regions_of_a_reference_without_thirds(tmp_path, slices):
    """Base and apex are the whole; in empty regions any prediction would be perfect."""
    reference, prediction = np.zeros((2, 6, 8, 8), np.uint8)
    reference[2 : 2 + slices, 2:6, 2:6], prediction[1:4, 2:4, 2:6] = 1, 1
    for name, mask in (("reference", reference), ("prediction", prediction)):
        sitk.WriteImage(make_image(mask), str(tmp_path / f"{name}.mha"))
    measures = compare(tmp_path / "prediction.mha", tmp_path / "reference.mha", region_names=REGIONS)[1]
    assert measures["whole"]["dice"] == pytest.approx(2 * 8 * slices / (16 * slices + 24))
    assert measures["base"] == measures["apex"] == measures["whole"]


def test_labels_of_references_without_a_prediction_are_classes_too(folders, tmp_path, run_verb):
    """A class that the predicted cases' references lack is still one of the data set."""
    for name in ("a2", "b"):
        path = str(folders[1] / f"{name}.nii.gz")
        image = sitk.ReadImage(path)
        sitk.WriteImage(sitk.Cast(image == 1, sitk.sitkUInt8), path)
    (folders[0] / "a10.nii.gz").unlink()
    path = tmp_path / "report.json"
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], "--output", path)
    assert code == 0, err
    assert "not measured" not in out
    dice = {name: case["2"]["whole"]["dice"] for name, case in only(path)["cases"].items()}
    # of the other, neither mask has it
    assert dice == {"a2": 0.0, "b": None}


@pytest.mark.parametrize("declared", [False, True], ids=["of no dataset.json", "that dataset.json lacks"])
@pytest.mark.parametrize("single", [False, True], ids=["a folder", "a file"])
def test_a_prediction_has_the_same_classes_in_a_folder_and_alone(folders, tmp_path, run_verb, single, declared):
    """They are those of all references, of which the only predicted one has label 1."""
    path = str(folders[1] / "a2.nii.gz")
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(path) == 1, sitk.sitkUInt8), path)
    for name in ("a10", "b"):
        (folders[0] / f"{name}.nii.gz").unlink()
    if declared:
        declare(folders[1], {"background": 0, "one": 1})
    predictions, path = folders[0] / "a2.nii.gz" if single else folders[0], tmp_path / "report.json"
    code, out, err = run_verb(evaluate, "--predictions", predictions, "--labels", folders[1], "--output", path)
    assert code == 0, err
    assert only(path)["cases"]["a2"]["2"]["whole"]["dice"] == 0
    assert "in no reference" not in out


@pytest.mark.parametrize("binary", [False, True])
def test_regions_and_a_label_to_ignore_that_are_declared(folders, run_verb, binary):
    declare(folders[1], {"background": 0, "both lobes": [1, 2], "ignore": 3})
    options = ["--binary"] if binary else []
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], *options)
    assert code == 0
    assert "warning" not in err
    assert "a2" in out
    assert ("both lobes" in out) != binary


@pytest.mark.parametrize("declares", [False, True], ids=["given", "declared"])
def test_a_label_to_ignore_that_is_part_of_a_declared_region(folders, run_verb, declares):
    """It is the same error as with --regions; without the regions, other classes would be measured."""
    ignored = {"ignore": 2} if declares else {}
    declare(folders[1], {"background": 0, "both lobes": [1, 2], **ignored})
    options = [] if declares else ["--ignore-label", 2]
    code, out, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--ignore-label: 2 is a label of a region in {folders[1] / 'dataset.json'}. Ignore another label" in err


@pytest.mark.parametrize("flag", ["--output", "--csv"])
def test_a_device_is_not_replaced(folders, tmp_path, run_verb, flag):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(tmp_path / "fifo")
    code, _, err = run_verb(evaluate, "--predictions", folders[0], "--labels", folders[1], flag, tmp_path / "link")
    assert code == 2
    assert f"{tmp_path / 'link'}: can't be written (not a regular file). Choose another {flag}" in err
    assert (tmp_path / "link").is_symlink()


def test_an_observer_that_is_a_fifo(folders, tmp_path, run_verb):
    os.mkfifo(tmp_path / "fifo")
    code, _, err = run_verb(
        evaluate, "--predictions", folders[0], "--labels", folders[1], "--observer", tmp_path / "fifo"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "fifo: can't be read (not a regular file)" in err
