"""`evaluate_masks` measures what the command measures, in rows."""

import csv
import math
import shutil

import pytest
import SimpleITK as sitk

from tests.volumes import write_case
from vnet_fast import InputError, InputErrors, evaluate, evaluate_masks

SUBJECT = ["predictions", "case", "class", "class_name", "region"]


@pytest.fixture
def masks(tmp_path):
    """Folders of predictions and of references of three cases, with two classes."""
    for index in range(3):
        _, mask = write_case(tmp_path, f"Case{index}", seed=index, labels=2, suffix=".mha")
        for folder, label in (("labels", 0), ("masks", 1), ("others", 2)):
            (tmp_path / folder).mkdir(exist_ok=True)
            image = sitk.ReadImage(str(mask))
            # in others one class is missing
            image = sitk.BinaryErode(image, [1, 1, 0], sitk.sitkBall, 0.0, 1.0) if label == 1 else image
            sitk.WriteImage(image * (image != 2) if label == 2 else image, str(tmp_path / folder / f"Case{index}.mha"))
    return tmp_path


def test_rows_are_those_of_the_command(masks, run_verb, capsys):
    table = evaluate_masks(masks / "masks", masks / "labels")
    assert capsys.readouterr() == ("", "")
    arguments = "--predictions", masks / "masks", "--labels", masks / "labels", "--csv", masks / "x.csv"
    code, out, err = run_verb(evaluate, *arguments)
    assert code == 0, err
    assert out == f"{table}\n"
    with open(masks / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(table) == len(rows) == 6
    for ours, theirs in zip(table, rows, strict=True):
        assert list(ours) == list(theirs)
        assert [str(ours[name]) for name in SUBJECT] == [theirs[name] for name in SUBJECT]
        assert ours["dice"] == pytest.approx(float(theirs["dice"]), rel=1e-7)
    assert list(table[0])[:5] == SUBJECT
    assert table[0]["case"] == "Case0"
    assert {row["class"] for row in table} == {1, 2}
    assert 0 < table[0]["dice"] < 1
    assert table[1]["dice"] == 1


def test_the_mean_is_that_of_the_json_file(masks, run_verb):
    import json

    table = evaluate_masks(masks / "masks", masks / "labels")
    arguments = "--predictions", masks / "masks", "--labels", masks / "labels", "--output", masks / "x.json"
    assert run_verb(evaluate, *arguments)[0] == 0
    report = json.loads((masks / "x.json").read_text())
    assert table.mean_dice == {"masks": pytest.approx(report["predictions"]["masks"]["mean_dice"])}


def test_several_sets_are_compared(masks):
    table = evaluate_masks([str(masks / "masks"), masks / "others"], masks / "labels")
    assert [row["predictions"] for row in table] == ["masks"] * 6 + ["others"] * 6
    assert {comparison.metric for comparison in table.comparisons} >= {"dice"}
    missing = table[7]
    assert (missing["class"], missing["dice"], missing["hausdorff_mm"]) == (2, 0, math.inf)
    assert "paired Wilcoxon p" in str(table)


def test_options(masks):
    assert {row["class"] for row in evaluate_masks(masks / "masks", masks / "labels", binary=True)} == {1}
    thirds = evaluate_masks(masks / "masks", masks / "labels", regions=())
    assert [row["region"] for row in thirds][:3] == ["whole", "base", "apex"]
    regions = evaluate_masks(masks / "masks", masks / "labels", regions=["both: 1 2", "one: 1"])
    assert [row["class_name"] for row in regions][:2] == ["both", "one"]
    ignoring = evaluate_masks(masks / "masks", masks / "labels", ignore_label=2)
    assert {row["class"] for row in ignoring} == {1}


def test_a_single_mask(masks, tmp_path):
    shutil.copy(masks / "others" / "Case1.mha", tmp_path)
    (row,) = evaluate_masks(tmp_path / "Case1.mha", masks / "others" / "Case1.mha")
    assert (row["case"], row["dice"]) == ("Case1", 1)


def test_pandas_takes_the_rows(masks):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(evaluate_masks(masks / "masks", masks / "labels", regions=()))
    assert frame.groupby("class")["dice"].mean().index.tolist() == [1, 2]
    assert frame["dice"].dtype == float


def test_errors(masks):
    with pytest.raises(InputError, match="names a folder twice"):
        evaluate_masks([masks / "masks", masks / "masks"], masks / "labels")
    with pytest.raises(InputError, match="given with --binary"):
        evaluate_masks(masks / "masks", masks / "labels", binary=True, regions=["a: 1"])
    with pytest.raises(TypeError, match="a sequence of texts"):
        evaluate_masks(masks / "masks", masks / "labels", regions="a: 1")
    with pytest.raises(InputError, match="no such folder"):
        evaluate_masks(masks / "nowhere", masks / "labels")
    for index in (0, 2):
        shutil.copy(masks / "Case1.mha", masks / "masks" / f"Case{index}.mha")
        (masks / "masks" / f"Case{index}.mha").write_bytes(b"nonsense")
    with pytest.raises(InputErrors) as found:
        evaluate_masks(masks / "masks", masks / "labels")
    assert len(found.value.errors) == 2


def test_a_description_that_can_not_be_read_is_a_warning(masks):
    (masks / "labels" / "dataset.json").write_text("{")
    with pytest.warns(UserWarning, match=r"dataset.json"):
        assert len(evaluate_masks(masks / "masks", masks / "labels")) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_label": 0}, "--ignore-label: must be a whole number above 0; got '0'"),
        ({"ignore_label": -1}, "--ignore-label: must be a whole number above 0; got '-1'"),
        ({"ignore_label": 1.5}, "--ignore-label: must be a whole number above 0; got '1.5'"),
        ({"ignore_label": "1"}, "--ignore-label: must not be of the type str; got '1'"),
        ({"ignore_label": True}, "--ignore-label: must be no truth value; got True"),
        ({"binary": "no"}, "--binary: must be True or False; got 'no'"),
        ({"calibration": 1}, "--calibration: must be True or False; got 1"),
        ({"regions": [1]}, "--regions: must not be of the type list"),
        ({"regions": 1}, "--regions: must not be of the type int"),
        ({"regions": 0}, "--regions: must not be of the type int"),
        ({"observer": ""}, "--observer: must be a path"),
    ],
)
def test_wrong_options(options, message, masks):
    with pytest.raises(InputError, match=message):
        evaluate_masks(masks / "masks", masks / "labels", **options)


def test_no_predictions(masks):
    with pytest.raises(ValueError, match="predictions must name at least one"):
        evaluate_masks([], masks / "labels")
