"""A label whose voxels count in no loss and no metric."""

import csv
import json

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from tests.verbs.test_recipe import assert_same_run
from tests.volumes import write_case
from vnet_fast import evaluate, plotting, report, train

TINY = ["--volume", 16, 16, 16, "--spacing", 1.2, 1.1, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
FAST = ["--recipe", "fast", "--iterations", 4, "--val-every", 2]
# pixels of a picture's title
TITLE = 40


def write_data(folder, ignored, second=False):
    """Six cases, of which the last rows are marked with a label; the corner has label 2 if asked."""
    folder.mkdir()
    for index in range(6):
        _, path = write_case(folder, f"Case{index}", index)
        mask = sitk.ReadImage(str(path))
        labels = sitk.GetArrayFromImage(mask)
        if second:
            labels[2:8, 2:7, 2:8] = 2
        labels[:, 10:] = ignored
        marked = sitk.GetImageFromArray(labels)
        marked.CopyInformation(mask)
        sitk.WriteImage(marked, str(path), useCompression=True)
    return folder


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize(
    "options",
    [
        [*FAST, "--patches", "on"],
        *(
            pytest.param(options, marks=pytest.mark.exhaustive)
            for options in (FAST, ["--iterations", 2], [*FAST, "--regions", "ball: 1", "all: 1 2"])
        ),
    ],
    ids=["patches", "centres", "paper", "regions"],
)
def test_a_run_does_not_depend_on_which_label_is_ignored(tmp_path, run_verb, options):
    runs = []
    for ignored in (3, 7):
        data, run = write_data(tmp_path / f"data{ignored}", ignored, second=True), tmp_path / f"run{ignored}"
        code, out, err = run_verb(train, "--data", data, *TINY, *options, "--ignore-label", ignored, "--output", run)
        assert code == 0, err
        assert "2 classes" in out or "regions ball, all" in out
        runs.append(run)
    assert_same_run(*runs)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_it_is_no_class(tmp_path, run_verb):
    data = write_data(tmp_path / "data", 2)
    code, out, err = run_verb(train, "--data", data, *TINY, *FAST, "--ignore-label", 2, "--output", tmp_path / "run")
    assert code == 0, err
    assert ", 1 class (" in out
    # as a data set declares it
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "ignore": 2}}))
    code, out, err = run_verb(train, "--data", data, *TINY, *FAST, "--output", tmp_path / "declared")
    assert code == 0, err
    assert ", 1 class (" in out
    ours, theirs = (
        json.loads((tmp_path / name / "summary.json").read_text())["val_dice"] for name in ("run", "declared")
    )
    assert ours == theirs


def test_evaluation_leaves_its_voxels_out(tmp_path, run_verb):
    references, predictions = write_data(tmp_path / "marked", 9), tmp_path / "predictions"
    predictions.mkdir()
    for index in range(6):
        # right wherever it counts
        mask = sitk.ReadImage(str(references / f"Case{index}_segmentation.mhd"))
        labels = sitk.GetArrayFromImage(mask)
        labels[labels == 9] = 1
        predicted = sitk.GetImageFromArray(labels)
        predicted.CopyInformation(mask)
        sitk.WriteImage(predicted, str(predictions / f"Case{index}.mhd"))
    for options, expected in ((["--ignore-label", 9], 1.0), ([], None), (["--ignore-label", 9, "--binary"], 1.0)):
        table = tmp_path / "table.csv"
        code, _, err = run_verb(
            evaluate, "--predictions", predictions, "--labels", references, "--csv", table, *options
        )
        assert code == 0, err
        rows = [line.split(",") for line in table.read_text().splitlines()]
        column = rows[0].index("dice")
        dice = np.array([float(row[column]) for row in rows[1:] if row[column]])
        assert (dice == 1).all() == (expected == 1.0)
        if expected:
            assert len(dice) == 6


@pytest.mark.usefixtures("quick_training")
def test_a_declared_class_that_does_not_count_is_none(tmp_path, run_verb):
    """Neither in training nor in a table; the labels of classes have no gap."""
    data = write_data(tmp_path / "data", 3, second=True)
    names = {"background": 0, "ball": 1, "corner": 2, "other": 3}
    (data / "dataset.json").write_text(json.dumps({"labels": names}))
    training = ["--data", data, *TINY, "--iterations", 1, "--output", tmp_path / "run"]
    code, out, err = run_verb(train, *training, "--ignore-label", 3)
    assert code == 0, err
    assert "2 classes" in out
    predictions, table = tmp_path / "predictions", tmp_path / "table.csv"
    predictions.mkdir()
    for index in range(6):
        mask = sitk.ReadImage(str(data / f"Case{index}_segmentation.mhd"))
        sitk.WriteImage(mask, str(predictions / f"Case{index}.mhd"))
    common = ["--predictions", predictions, "--labels", data, "--csv", table]
    code, _, err = run_verb(evaluate, *common, "--ignore-label", 3)
    assert code == 0, err
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"1", "2"}
    assert {float(row["dice"]) for row in rows} == {1.0}
    code, _, err = run_verb(train, *training[:-1], tmp_path / "other", "--ignore-label", 2)
    assert code == 2
    assert err == (
        "error: --ignore-label: 2 is corner in dataset.json, which names labels above it. Number the labels without a "
        "gap, and the ignored one last\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ignore-label", 256], "--ignore-label: must be at most 255; got 256"),
        (["--ignore-label", 2, "--regions", "a: 1 2"], "--ignore-label: 2 is a label of a region. Take it out"),
    ],
)
def test_labels_that_evaluation_can_not_ignore(tmp_path, run_verb, options, message):
    data, predictions = (write_data(tmp_path / name, 2) for name in ("data", "predictions"))
    code, _, err = run_verb(evaluate, "--predictions", predictions, "--labels", data, *options)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ignore-label", 256], "--ignore-label: must be at most 255; got 256"),
        (["--ignore-label", 0], "argument --ignore-label: must be a whole number above 0; got '0'"),
        (["--ignore-label", 2, "--loss", "weighted-ce"], "--ignore-label: given with --loss weighted-ce. Give --loss"),
        (
            ["--ignore-label", 2, "--regions", "a: 1 2"],
            "--ignore-label: 2 is a label of a region. Take it out",
        ),
    ],
)
def test_labels_that_can_not_be_ignored(tmp_path, run_verb, options, message):
    data = write_data(tmp_path / "data", 2)
    code, _, err = run_verb(train, "--data", data, *TINY, *options, "--output", tmp_path / "run")
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_declared_label_and_a_loss_that_does_not_know_it(tmp_path, run_verb):
    data = write_data(tmp_path / "data", 2)
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "ignore": 2}}))
    code, _, err = run_verb(train, "--data", data, *TINY, "--loss", "weighted-ce", "--output", tmp_path / "run")
    assert code == 2
    assert err == "error: --loss: is weighted-ce, and the masks have a label to ignore. Give dice or dice-ce\n"


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_255_is_a_label_unless_it_is_ignored(tmp_path, run_verb):
    """Binary masks of 0 and 255 are as good as those of 0 and 1."""
    runs = []
    for label in (1, 255):
        data, run = tmp_path / f"data{label}", tmp_path / f"run{label}"
        data.mkdir()
        for index in range(6):
            _, path = write_case(data, f"Case{index}", index)
            sitk.WriteImage(sitk.ReadImage(str(path)) * label, str(path), useCompression=True)
        code, _, err = run_verb(train, "--data", data, *TINY, *FAST, "--binary", "--patches", "on", "--output", run)
        assert code == 0, err
        runs.append(run)
    assert_same_run(*runs)


def test_255_can_not_be_a_class_beside_an_ignored_label(tmp_path, run_verb):
    data = write_data(tmp_path / "data", 255)
    code, _, err = run_verb(train, "--data", data, *TINY, "--binary", "--ignore-label", 1, "--output", tmp_path / "run")
    assert code == 2
    assert "error: --ignore-label: Case0 has label 255, which no mask may have beside one that is ignored" in err


@pytest.mark.usefixtures("quick_training")
def test_a_run_does_not_go_on_with_another_one(tmp_path, run_verb):
    data, run = write_data(tmp_path / "data", 2), tmp_path / "run"
    labels = {"background": 0, "ball": 1, "ignore": 2}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert run_verb(train, "--data", data, *TINY, *FAST, "--output", run)[0] == 0
    (data / "dataset.json").write_text(json.dumps({"labels": {**labels, "ignore": 3, "more": 2}}))
    code, _, err = run_verb(train, "--resume", run, "--iterations", 6)
    assert code == 2
    assert f"error: {run}: its label to ignore has changed. Restore dataset.json, or start a new run" in err


def test_one_file_is_evaluated_as_its_data_set_says(tmp_path, run_verb):
    folder = tmp_path / "set"
    folder.mkdir()
    references = write_data(folder / "labelsTr", 9)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "ignore": 9}}))
    mask = sitk.ReadImage(str(references / "Case0_segmentation.mhd"))
    sitk.WriteImage(mask * sitk.Cast(mask != 9, sitk.sitkUInt8), str(tmp_path / "predicted.mhd"))
    table = tmp_path / "x.csv"
    code, _, err = run_verb(
        evaluate, "--predictions", tmp_path / "predicted.mhd", "--labels", references / "Case0_segmentation.mhd",
        "--csv", table,
    )  # fmt: skip
    assert code == 0, err
    assert len(table.read_text().splitlines()) == 2
    # what describes it is not needed
    (folder / "dataset.json").write_text("{")
    code, _, err = run_verb(
        evaluate, "--predictions", tmp_path / "predicted.mhd", "--labels", references / "Case0_segmentation.mhd"
    )
    assert code == 0, err
    assert err.startswith("warning: ")


def cleaned(folder, references, ignored):
    """Copies of volumes and masks, whose voxels with a label are background."""
    folder.mkdir()
    for path in sorted(references.glob("*.mhd")):
        image = sitk.ReadImage(str(path))
        if path.stem.endswith("_segmentation"):
            image *= sitk.Cast(image != ignored, sitk.sitkUInt8)
        sitk.WriteImage(image, str(folder / path.name), useCompression=True)
    return folder


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="labels"), pytest.param(["--binary"], id="binary", marks=pytest.mark.exhaustive)],
)
def test_it_is_no_structure_in_the_pictures_of_evaluate(tmp_path, run_verb, options):
    """Pixel by pixel they are those of masks that do not have it."""
    references = write_data(tmp_path / "marked", 9)
    without = cleaned(tmp_path / "clean", references, 9)
    pictures = []
    for name, labels, more in (("ours", references, ["--ignore-label", 9]), ("theirs", without, [])):
        predicted, figures = tmp_path / f"{name}.mhd", tmp_path / name
        # of classes, a prediction may have it too; where labels are one class, that would be a prediction of the class
        mask = sitk.ReadImage(str((without if options else labels) / "Case0_segmentation.mhd"))
        sitk.WriteImage(mask, str(predicted))
        arguments = ["--labels", labels / "Case0_segmentation.mhd", "--images", labels / "Case0.mhd", *options, *more]
        code, _, err = run_verb(evaluate, "--predictions", predicted, "--figures", figures, *arguments)
        assert code == 0, err
        pictures.append(pixels_of(figures / "worst.png"))
    # the title says the name of the case, which is that of the prediction
    np.testing.assert_array_equal(pictures[0][TITLE:], pictures[1][TITLE:])


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize("declared", [False, True], ids=["option", "declared"])
def test_it_is_no_structure_in_the_pictures_of_a_report(tmp_path, run_verb, monkeypatch, declared):
    data, run = write_data(tmp_path / "data", 9), tmp_path / "run"
    option = [] if declared else ["--ignore-label", 9]
    if declared:
        (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": 1, "ignore": 9}}))
    # one case is held out, so that it is the one that is drawn
    options = [*TINY, *FAST, "--folds", 6, *option]
    code, _, err = run_verb(train, "--data", data, *options, "--output", run)
    assert code == 0, err
    monkeypatch.setattr(plotting, "available", lambda: True)
    code, _, err = run_verb(report, "--run", run, "--device", "cpu")
    assert code == 0, err
    code, _, err = run_verb(
        evaluate, "--predictions", run / "predictions", "--labels", cleaned(tmp_path / "clean", data, 9),
        "--figures", tmp_path / "figures",
    )  # fmt: skip
    assert code == 0, err
    ours, theirs = (pixels_of(folder / "worst.png") for folder in (run / "report", tmp_path / "figures"))
    # without the title, because predictions where the label is do not count
    np.testing.assert_array_equal(ours[TITLE:], theirs[TITLE:])
