"""Regions of labels from the command line: trained on, resumed, predicted, evaluated, reported."""

import json
import re
import signal

import numpy as np
import pytest
import SimpleITK as sitk

from tests.verbs.test_recipe import assert_same_run, stop_at
from tests.volumes import write_case
from vnet_fast import VNet, evaluate, export, predict, report, train
from vnet_fast.evaluation.metrics import dice
from vnet_fast.regions import parse_regions
from vnet_fast.run import checkpoint

TINY = ["--volume", 16, 16, 16, "--spacing", 1.2, 1.1, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
FAST = ["--recipe", "fast", "--iterations", 4, "--val-every", 2]
# label 2 is the half of the ball on the right
TEXTS = ["ball: 1 2", "right: 2"]
REGIONS = ["--regions", *TEXTS]


@pytest.fixture
def data(tmp_path):
    """Six cases with two labels, in the Decathlon's layout."""
    folder = tmp_path / "data"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for index in range(6):
        image, mask = write_case(folder / "imagesTr", f"Case{index}", index, suffix=".nii.gz", labels=2)
        mask.rename(folder / "labelsTr" / image.name)
    return folder


def masks_in(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize(
    "options",
    [
        [*FAST, "--patches", "on"],
        *(pytest.param(options, marks=pytest.mark.exhaustive) for options in (FAST, ["--iterations", 2])),
    ],
    ids=["patches", "centres", "paper"],
)
def test_from_training_to_evaluation(data, tmp_path, run_verb, options):
    run, masks = tmp_path / "run", tmp_path / "masks"
    code, out, err = run_verb(train, "--data", data, *TINY, *options, *REGIONS, "--output", run)
    assert code == 0, err
    assert ", regions ball, right (prepared volumes in" in out
    content = checkpoint.load(run / "best.pt")
    assert content["architecture"]["num_classes"] == 2
    assert content["regions"] == [{"name": "ball", "labels": [1, 2]}, {"name": "right", "labels": [2]}]
    code, out, err = run_verb(
        predict, "--checkpoint", run / "best.pt", "--input", data, "--output", masks, "--device", "cpu",
        "--probabilities",
    )  # fmt: skip
    assert code == 0, err
    found, references = masks_in(masks), masks_in(data / "labelsTr")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == ["ball", "right"]
    of_cases = summary["val_dice_per_case_and_class"]
    assert of_cases
    for name, values in of_cases.items():
        mask, reference = found[f"{name}.nii.gz"], references[f"{name}.nii.gz"]
        expected = [dice(region.of(mask), region.of(reference)) for region in parse_regions(TEXTS)]
        np.testing.assert_allclose(values, expected, atol=1e-4)
        np.testing.assert_array_equal(masks_in(run / "predictions")[f"{name}.nii.gz"], mask)
        for number in (1, 2):
            probability = found[f"{name}_probability_{number}.nii.gz"]
            assert (probability >= 0).all()
            assert (probability <= 1).all()
    table = tmp_path / "x.json"
    code, out, err = run_verb(
        evaluate, "--predictions", run / "predictions", "--labels", data, *REGIONS, "--output", table
    )
    assert code == 0, err
    assert "ball" in out
    assert "right" in out
    code, _, err = run_verb(export, "--checkpoint", run / "best.pt", "--output", tmp_path / "x.pt2")
    assert code == 0, err


def test_masks_are_written_by_probabilities(data, tmp_path, run_verb):
    model, path = VNet(base_channels=2), tmp_path / "x.pt"
    for weight in model.parameters():
        weight.data.zero_()
    # the ball is everywhere, and its right half nowhere
    model.head.bias.data = model.head.bias.data.new_tensor([1.0, -1.0])
    described = {
        "spacing": [1.2, 1.1, 2.0], "volume": [16, 16, 16], "validation": [], "classes": ["ball", "right"],
        "regions": [{"name": "ball", "labels": [1, 2]}, {"name": "right", "labels": [2]}],
    }  # fmt: skip
    checkpoint.save(path, model, **described)
    image = data / "imagesTr" / "Case0.nii.gz"
    for bias, expected in (((1.0, -1.0), {0, 1}), ((1.0, 1.0), {0, 2}), ((-1.0, 1.0), {0, 2}), ((-1.0, -1.0), {0})):
        model.head.bias.data = model.head.bias.data.new_tensor(bias)
        checkpoint.save(path, model, **described)
        code, _, err = run_verb(predict, "--checkpoint", path, "--input", image, "--output", tmp_path / "m.nii.gz")
        assert code == 0, err
        # beyond the centre of a larger volume is background
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "m.nii.gz"))))) == expected


@pytest.mark.exhaustive
def test_a_report(data, tmp_path, run_verb):
    run = tmp_path / "run"
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, *REGIONS, "--output", run)
    assert code == 0, err
    code, _, err = run_verb(report, "--run", run, "--output", tmp_path / "report", "--calibration")
    assert code == 0, err
    text = (tmp_path / "report" / "report.html").read_text()
    # the viewer draws the contours of regions, and the calibration is theirs
    settings = json.loads(re.search(r'class="settings">(.*?)</script>', text)[1])
    assert [(shown["title"], shown["labels"]) for shown in settings["classes"]] == [("ball", [1, 2]), ("right", [2])]
    assert re.search(r"expected calibration error: ball 0\.\d+, right 0\.\d+", text)
    assert "ball" in text
    assert "right" in text


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_regions_that_a_data_set_declares(data, tmp_path, run_verb, monkeypatch):
    labels = {"background": 0, "ball": [1, 2], "right": 2}
    (data / "dataset.json").write_text(json.dumps({"labels": labels}))
    whole, parts, given = tmp_path / "whole", tmp_path / "parts", tmp_path / "given"
    arguments = ["--data", data, *TINY, *FAST]
    assert run_verb(train, *arguments, "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    assert run_verb(train, "--resume", parts)[0] == 0
    assert_same_run(parts, whole)
    code, out, err = run_verb(evaluate, "--predictions", whole / "predictions", "--labels", data)
    assert code == 0, err
    assert "ball" in out
    # as those that are given
    assert run_verb(train, *arguments, *REGIONS, "--output", given)[0] == 0
    for name, mask in masks_in(whole / "predictions").items():
        np.testing.assert_array_equal(masks_in(given / "predictions")[name], mask)


@pytest.mark.usefixtures("quick_training")
def test_a_run_does_not_go_on_with_other_regions(data, tmp_path, run_verb):
    run = tmp_path / "run"
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": [1, 2], "right": 2}}))
    assert run_verb(train, "--data", data, *TINY, *FAST, "--output", run)[0] == 0
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": [1, 2], "right": 1}}))
    code, _, err = run_verb(train, "--resume", run, "--iterations", 6)
    assert code == 2
    assert f"error: {run}: its regions have changed. Restore dataset.json, or start a new run" in err


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_many_regions_are_stored_and_read_again(data, tmp_path, run_verb):
    run = tmp_path / "run"
    texts = ["all: 1 2", "left: 1", "right: 2", "right or three: 2 3", "left or four: 1 4"]
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, "--regions", *texts, "--output", run)
    assert code == 0, err
    assert "warning: where all alone is predicted, masks have label 1, which is left, left or four too" in err
    assert len(checkpoint.load(run / "best.pt")["regions"]) == 5
    assert run_verb(train, "--resume", run, "--iterations", 5)[0] == 0


@pytest.mark.usefixtures("quick_training")
def test_labels_of_no_region_are_said(data, tmp_path, run_verb):
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, "--regions", "right: 2", "--output", tmp_path / "run")
    assert code == 0, err
    assert "warning: labels of masks that are in no region: 1\n" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--regions", "ball"], "--regions: must be names with labels; got 'ball'. Give regions as"),
        (["--regions", "ball: 1 2", "other: 7"], "--regions: other has the labels 7, which no mask has. Correct its"),
        ([*REGIONS, "--binary"], "--regions: given with --binary. Leave one of them out"),
        ([*REGIONS, "--loss", "weighted-ce"], "--regions: given with --loss weighted-ce. Give --loss dice or dice-ce"),
    ],
)
def test_regions_that_are_none(data, tmp_path, run_verb, options, message):
    code, _, err = run_verb(train, "--data", data, *TINY, *options, "--output", tmp_path / "run")
    assert code == 2
    assert err.splitlines()[-1].startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_a_declared_region_that_no_mask_has(data, tmp_path, run_verb):
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "ball": [1, 2], "other": 7}}))
    code, _, err = run_verb(train, "--data", data, *TINY, "--output", tmp_path / "run")
    assert code == 2
    message = f"error: {data / 'dataset.json'}: other has the labels 7, which no mask has. Correct its labels"
    assert err.splitlines()[-1] == message


def test_networks_of_other_regions_are_not_averaged(data, tmp_path, run_verb):
    for name, labels in (("a", [1, 2]), ("b", [1])):
        regions = [{"name": "ball", "labels": labels}, {"name": "right", "labels": [2]}]
        checkpoint.save(
            tmp_path / f"{name}.pt", VNet(base_channels=1), spacing=[1.0] * 3, volume=[16] * 3, validation=[],
            regions=regions,
        )  # fmt: skip
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    code, _, err = run_verb(predict, "--checkpoint", *paths, "--input", data, "--output", tmp_path / "masks")
    assert code == 2
    assert "its list of regions is ball: 1; right: 2, that of" in err


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_fine_tuning_from_labels_to_regions_has_a_new_output_layer(data, tmp_path, run_verb):
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert run_verb(train, "--data", data, *TINY, *FAST, "--binary", "--output", run)[0] == 0
    code, out, err = run_verb(
        train, "--data", data, *FAST, *REGIONS, "--folds", 3, "--device", "cpu", "--init", run / "best.pt", "--output",
        tuned,
    )  # fmt: skip
    assert code == 0, err
    assert "its output layer is new, for 2 regions instead of 1 class" in out
