"""Volumes of several channels from the command line: trained on, resumed, predicted, evaluated, reported, exported."""

import json
import signal

import numpy as np
import pytest
import SimpleITK as sitk

from tests.data.test_channels import SPACING, write_channels
from tests.verbs.test_recipe import assert_same_run, stop_at
from vnet_fast import VNet, evaluate, export, predict, report, train
from vnet_fast.run import checkpoint

TINY = ["--volume", 16, 16, 16, "--spacing", *SPACING, "--base-channels", 1, "--device", "cpu", "--folds", 3]
FAST = ["--recipe", "fast", "--iterations", 4, "--val-every", 2]
NAMES = {"0": "FLAIR", "1": "T1c"}


@pytest.fixture(params=["4-D", pytest.param("files", marks=pytest.mark.exhaustive)])
def data(tmp_path, request):
    """Six cases of two channels, of up to 30 voxels along an axis."""
    return write_data(tmp_path / "data", request.param)


def write_data(folder, kind="4-D"):
    for index in range(6):
        write_channels(folder, f"Case{index}", 2, index, kind == "4-D", (30 - index, 18, 16))
    (folder / "dataset.json").write_text(json.dumps({"modality": NAMES}))
    return folder


def masks_in(folder):
    return {path.name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in sorted(folder.glob("*.nii.gz"))}


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize(
    "recipe", [FAST, pytest.param(["--iterations", 2], marks=pytest.mark.exhaustive)], ids=["patches", "paper"]
)
def test_from_training_to_masks_and_export(data, tmp_path, run_verb, recipe):
    run, masks = tmp_path / "run", tmp_path / "masks"
    code, out, err = run_verb(train, "--data", data, *TINY, *recipe, "--output", run)
    assert code == 0, err
    assert "1 class, 2 channels (FLAIR, T1c) (prepared volumes in" in out
    content = checkpoint.load(run / "best.pt")
    assert content["architecture"]["in_channels"] == 2
    assert content["channels"] == [{"name": name, "scaling": None} for name in ("FLAIR", "T1c")]
    code, out, err = run_verb(
        predict, "--checkpoint", run / "best.pt", "--input", data, "--output", masks, "--device", "cpu"
    )
    assert code == 0, err
    assert "6 of 6 volumes segmented" in out
    assert list(masks_in(masks)) == [f"Case{index}.nii.gz" for index in range(6)]
    for name, mask in masks_in(run / "predictions").items():
        np.testing.assert_array_equal(mask, masks_in(masks)[name])
    code, out, err = run_verb(export, "--checkpoint", run / "best.pt", "--output", tmp_path / "x.pt2")
    assert code == 0, err
    assert "input (N, 2, 16, 16, 16) float32" in out


@pytest.mark.exhaustive
def test_pictures_show_the_first_channel(tmp_path, run_verb):
    data, run, figures = write_data(tmp_path / "data", "files"), tmp_path / "run", tmp_path / "figures"
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, "--output", run)
    assert code == 0, err
    code, _, err = run_verb(
        evaluate, "--predictions", run / "predictions", "--labels", data, "--output", tmp_path / "x.json", "--figures",
        figures,
    )  # fmt: skip
    assert code == 0, err
    assert len(list(figures.glob("*.png"))) >= 2
    code, _, err = run_verb(report, "--run", run, "--output", tmp_path / "report.html")
    assert code == 0, err


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_a_run_stopped_and_resumed_is_the_whole_run(tmp_path, run_verb, monkeypatch):
    data, whole, parts = write_data(tmp_path / "data"), tmp_path / "whole", tmp_path / "parts"
    arguments = ["--data", data, *TINY, *FAST]
    assert run_verb(train, *arguments, "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    (data / "dataset.json").write_text(json.dumps({"modality": {"0": "T1c", "1": "FLAIR"}}))
    code, _, err = run_verb(train, "--resume", parts)
    assert code == 2
    assert "its channels have changed from 2 channels (FLAIR, T1c) to 2 channels (T1c, FLAIR)" in err
    (data / "dataset.json").write_text(json.dumps({"modality": NAMES}))
    assert run_verb(train, "--resume", parts)[0] == 0
    assert_same_run(parts, whole)


def test_one_volume_by_its_first_channel(tmp_path, run_verb):
    data, path = write_data(tmp_path / "data", "files"), tmp_path / "x.pt"
    checkpoint.save(path, VNet(2, base_channels=1), spacing=list(SPACING), volume=[16, 16, 16], validation=[])
    options = ["--checkpoint", path, "--device", "cpu"]
    first, masks = data / "imagesTr" / "Case3_0000.nii.gz", tmp_path / "masks"
    code, _, err = run_verb(predict, *options, "--input", first, "--output", masks)
    assert code == 0, err
    assert list(masks_in(masks)) == ["Case3.nii.gz"]
    code, _, err = run_verb(predict, *options, "--input", data / "imagesTr" / "Case3_0001.nii.gz", "--output", masks)
    assert code == 2
    assert "Case3_0001.nii.gz: has 1 channel, and the network was trained on 2 channels. Name a 4-D NIfTI file" in err


def test_a_network_of_one_channel_takes_no_volume_of_two(tmp_path, run_verb, trained):
    data = write_data(tmp_path / "data")
    code, _, err = run_verb(
        predict, "--checkpoint", trained, "--input", data / "imagesTr" / "Case0.nii.gz", "--output", tmp_path / "m.nii"
    )
    assert code == 2
    assert "has 2 channels, and the network was trained on 1 channel. Split it into files, and name what" in err
    assert err.count("\n") == 1


def test_channels_in_another_order_are_not_predicted(tmp_path, run_verb):
    data, path = write_data(tmp_path / "data"), tmp_path / "x.pt"
    channels = [{"name": name, "scaling": None} for name in ("T1c", "FLAIR")]
    checkpoint.save(
        path, VNet(2, base_channels=1), spacing=list(SPACING), volume=[16, 16, 16], validation=[], channels=channels
    )
    code, _, err = run_verb(predict, "--checkpoint", path, "--input", data, "--output", tmp_path / "masks")
    assert code == 2
    assert err.startswith(f"error: {data / 'dataset.json'}: names the channels FLAIR, T1c, and the network was trained")


@pytest.mark.parametrize("option", [[], ["--check"]], ids=["training", "--check"])
def test_all_cases_with_other_channels_are_named(tmp_path, run_verb, option):
    data = write_data(tmp_path / "data")
    write_channels(data, "Case1", 1, 1)
    write_channels(data, "Case4", 3, 4)
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, *option, "--output", tmp_path / "run")
    assert code == 2
    remedy = "Add what is missing, or take the case out"
    lines = [
        f"error: {data / 'imagesTr' / f'Case{case}.nii.gz'}: has {count}, and dataset.json of {data} names 2. {remedy}"
        for case, count in ((1, "1 channel"), (4, "3 channels"))
    ]
    assert err.splitlines()[-2:] == lines
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quick_training")
def test_ct_is_scaled_by_the_data_set_in_training_and_prediction(tmp_path, run_verb):
    data, run = write_data(tmp_path / "data"), tmp_path / "run"
    (data / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT", "1": "T1c"}}))
    code, _, err = run_verb(train, "--data", data, *TINY, *FAST, "--output", run)
    assert code == 0, err
    ct, mr = checkpoint.load(run / "best.pt")["channels"]
    assert mr["scaling"] is None
    low, high, mean, deviation = ct["scaling"]
    assert 130 < low < 165 < mean < 195 < high < 230
    assert 5 < deviation < 15
    code, _, err = run_verb(
        predict, "--checkpoint", run / "best.pt", "--input", data, "--output", tmp_path / "masks", "--device", "cpu"
    )
    assert code == 0, err
    for name, mask in masks_in(run / "predictions").items():
        np.testing.assert_array_equal(mask, masks_in(tmp_path / "masks")[name])


def test_the_check_shows_the_intensities_of_every_channel(tmp_path, run_verb):
    folder = write_data(tmp_path / "data", "files")
    code, out, err = run_verb(train, "--data", folder, "--check", *TINY)
    assert code == 0, err
    (row,) = [line for line in out.splitlines() if line.startswith("Case0 ")]
    for number in range(2):
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / f"Case0_000{number}.nii.gz")))
        assert f"{values.min():.6g} to {values.max():.6g}" in row
