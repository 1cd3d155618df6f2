"""DICOM Segmentations from the command line: predicted, trained on, evaluated."""

import shutil
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")

from tests.io.dicom_slices import write_series  # noqa: E402
from tests.io.segmentation_files import decode, masks_on, write_segmentation  # noqa: E402
from tests.volumes import make_image, write_case  # noqa: E402
from vnet_fast import Segmenter, VNet, evaluate, evaluate_masks, plotting, predict, report, train  # noqa: E402
from vnet_fast.errors import InputError  # noqa: E402
from vnet_fast.io import volumes  # noqa: E402
from vnet_fast.io.grid import Grid  # noqa: E402
from vnet_fast.run import checkpoint  # noqa: E402

TINY = ["--volume", 16, 16, 16, "--spacing", 1.2, 1.1, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
SEGMENTS = """
[prostate]
name = "Gland"
category = { scheme = "SCT", value = "123037004", meaning = "Anatomical Structure" }
type = { scheme = "SCT", value = "41216001", meaning = "Prostate" }
colour = [255, 0, 0]
tracking_id = "gland 1"
description = "Predicted without a human"
"""


def run(run_verb, network, source, target, *more):
    return run_verb(predict, "--checkpoint", network, "--input", source, "--output", target, "--device", "cpu", *more)


@pytest.fixture
def network(tmp_path):
    """A function that saves a network whose outputs are above each other where a volume is brighter."""

    def save(classes=(), regions=(), volume=(16, 16, 16)):
        model = VNet(base_channels=2, num_classes=2 if regions else 3)
        with torch.no_grad():
            for weight in model.parameters():
                weight.zero_()
            # the residuals carry the input through the first stage and over the last skip
            for module in model.modules():
                if isinstance(module, torch.nn.PReLU):
                    module.weight.fill_(1)
            for output, (slope, limit) in enumerate([(1, 0.2), (1, 1.2)] if regions else [(0, 0), (1, 0.2), (2, 1.4)]):
                model.head.weight[output, 2:] = slope
                model.head.bias[output] = -2 * limit
        described = [{"name": name, "labels": list(labels)} for name, labels in regions]
        grid = {"spacing": [1.5, 1.5, 2.0], "volume": list(volume), "validation": []}
        checkpoint.save(tmp_path / "x.pt", model, **grid, classes=list(classes), regions=described)
        return tmp_path / "x.pt"

    return save


def write_scan(folder, seed=0, order=None, direction=OBLIQUE, **how):
    """A series with noise, whose files are in any order."""
    array = np.random.default_rng(seed).integers(0, 900, (12, 17, 19), dtype=np.int16)
    array = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(array), 1.5))
    image = make_image(array.astype(np.int16), (1.1, 1.2, 2.5), (10, -20, 30), direction)
    return write_series(folder, image, order, **how)


@pytest.mark.parametrize("order", [None, range(11, -1, -1), (3, 0, 7, 11, 5, 1, 10, 6, 2, 9, 4, 8)], ids=str)
def test_a_segmentation_is_the_mask(tmp_path, run_verb, network, order):
    model, source = network(["prostate", "lesion"]), write_scan(tmp_path / "series", order=order)
    for name in ("mask.nii.gz", "mask.dcm"):
        code, out, err = run(run_verb, model, source, tmp_path / "out" / name)
        assert code == 0, err
    assert "1 of 1 volumes segmented" in out
    mask, said = sitk.ReadImage(str(tmp_path / "out" / "mask.nii.gz")), pydicom.dcmread(tmp_path / "out" / "mask.dcm")
    labels, masks = sitk.GetArrayFromImage(mask), masks_on(said, mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    for number in (1, 2):
        np.testing.assert_array_equal(masks[number], labels == number)
    assert [item.SegmentLabel for item in said.SegmentSequence] == ["prostate", "lesion"]
    # evaluated in either role, it is the mask
    shutil.copy(tmp_path / "out" / "mask.dcm", tmp_path / "out" / "copy.dcm")
    for pair in (("mask.dcm", "mask.nii.gz"), ("mask.nii.gz", "mask.dcm"), ("copy.dcm", "mask.dcm")):
        arguments = "--predictions", tmp_path / "out" / pair[0], "--labels", tmp_path / "out" / pair[1]
        code, out, err = run_verb(evaluate, *arguments)
        assert code == 0, err
        assert out.count("1.000") >= 2
        assert pair[1] == "mask.nii.gz" or "prostate" in out


def test_regions_may_overlap(tmp_path, run_verb, network):
    model, source = network(regions=[("whole", (1, 2)), ("core", (2,))]), write_scan(tmp_path / "series")
    for name in ("mask.nii.gz", "mask.dcm"):
        assert run(run_verb, model, source, tmp_path / name)[0] == 0
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    said, labels = pydicom.dcmread(tmp_path / "mask.dcm"), sitk.GetArrayFromImage(mask)
    masks = masks_on(said, mask)
    assert (labels == 2).any()
    np.testing.assert_array_equal(masks[1], labels > 0)
    np.testing.assert_array_equal(masks[2], labels == 2)
    assert [item.SegmentLabel for item in said.SegmentSequence] == ["whole", "core"]
    assert said.SegmentsOverlap == "YES"
    code, _, err = run_verb(evaluate, "--predictions", tmp_path / "mask.dcm", "--labels", tmp_path / "mask.nii.gz")
    assert code == 2
    assert "mask.dcm: segments 1 (whole) and 2 (core) overlap" in err


def test_regions_of_one_label_have_its_number(tmp_path, run_verb, network):
    """So that a segmentation is measured like the mask of labels."""
    model, source = network(regions=[("back", (2,)), ("front", (1,))]), write_scan(tmp_path / "series")
    (tmp_path / "segments.toml").write_text('[2]\ndescription = "behind"\n')
    options = "--probabilities", "--segments", tmp_path / "segments.toml"
    assert run(run_verb, model, source, tmp_path / "mask.nii.gz", "--probabilities")[0] == 0
    assert run(run_verb, model, source, tmp_path / "mask.dcm", *options)[0] == 0
    Segmenter.load(model, device="cpu")(source).save(tmp_path / "ours.dcm", tmp_path / "segments.toml")
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    labels = sitk.GetArrayFromImage(mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    for name in ("mask.dcm", "ours.dcm"):
        said = pydicom.dcmread(tmp_path / name)
        assert [item.SegmentLabel for item in said.SegmentSequence] == ["front", "back"]
        assert said.SegmentSequence[1].SegmentDescription == "behind"
        for number, voxels in masks_on(said, mask).items():
            np.testing.assert_array_equal(voxels, labels == number)
        for regions in (None, ["back: 2", "front: 1"]):
            table = evaluate_masks(tmp_path / name, tmp_path / "mask.nii.gz", regions=regions)
            assert [row["dice"] for row in table] == [1, 1]
    fractional = pydicom.dcmread(tmp_path / "mask_probability.dcm")
    assert [item.SegmentLabel for item in fractional.SegmentSequence] == ["front", "back"]
    # `front` is the second output of the network, and the file of the second region
    front = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask_probability_2.nii.gz")))
    frame, group = fractional.pixel_array[0], fractional.PerFrameFunctionalGroupsSequence[0]
    position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
    assert group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == 1
    np.testing.assert_allclose(frame / 255, front[mask.TransformPhysicalPointToIndex(position)[2]], atol=0.01)


def test_regions_of_several_labels_are_not_measured_by_their_numbers(tmp_path, run_verb, network):
    model, source = network(regions=[("inner", (3,)), ("outer", (1, 2))]), write_scan(tmp_path / "series")
    for name in ("mask.nii.gz", "mask.dcm"):
        assert run(run_verb, model, source, tmp_path / name)[0] == 0
    pair = "--predictions", tmp_path / "mask.dcm", "--labels", tmp_path / "mask.nii.gz"
    code, _, err = run_verb(evaluate, *pair, "--regions", "inner: 3", "outer: 1 2")
    assert code == 2
    assert "mask.dcm: its segment 1 is inner, and inner is label 3. Name a mask of labels" in err
    assert "its segment 2 is outer" not in err


@pytest.mark.parametrize("named_by", ["segments", "dataset.json", "regions"])
@pytest.mark.parametrize("names", [("left", "RIGHT"), ("right", "left"), ("other", "left"), ("one", "two")], ids=str)
def test_segments_are_what_they_are_called(tmp_path, run_verb, named_by, names):
    series = write_scan(tmp_path / "A")
    labels = np.zeros((12, 17, 19), np.uint8)
    labels[3:8, 4:9, 4:9], labels[3:8, 4:9, 9:15] = 1, 2
    for folder in ("predicted", "labels"):
        (tmp_path / folder).mkdir()
    write_segmentation(tmp_path / "predicted" / "A.dcm", series, labels, names)
    if named_by == "segments":
        write_segmentation(tmp_path / "labels" / "A.dcm", series, labels, ("left", "right"))
    else:
        sitk.WriteImage(Grid.of(volumes.read_image(series)).image_from(labels), str(tmp_path / "labels" / "A.nii"))
    if named_by == "dataset.json":
        (tmp_path / "labels" / "dataset.json").write_text('{"labels": {"background": 0, "left": 1, "right": 2}}')
    more = ["--regions", "right: 2", "left: 1"] if named_by == "regions" else []
    pair = "--predictions", tmp_path / "predicted", "--labels", tmp_path / "labels"
    code, out, err = run_verb(evaluate, *pair, *more)
    if "left" in names[1:]:
        assert code == 2
        number, name, label = (2, "left", 1) if names[0] == "other" else (1, "right", 2)
        assert f"A.dcm: its segment {number} is {name}, and {name} is label {label}. Name a mask of labels" in err
        assert err.count("\n") == 1
    else:
        assert code == 0, err
        assert "1.000" in out
    # one foreground has no names
    assert run_verb(evaluate, *pair, "--binary")[0] == 0


def test_codes_and_probabilities(tmp_path, run_verb, network):
    model, source = network(["prostate", "lesion"]), write_scan(tmp_path / "series")
    (tmp_path / "segments.toml").write_text(SEGMENTS)
    given = "--segments", tmp_path / "segments.toml", "--probabilities"
    assert run(run_verb, model, source, tmp_path / "mask.dcm", *given)[0] == 0
    assert run(run_verb, model, source, tmp_path / "mask.nii.gz", "--probabilities")[0] == 0
    gland, lesion = pydicom.dcmread(tmp_path / "mask.dcm").SegmentSequence
    assert (gland.SegmentLabel, gland.SegmentDescription) == ("Gland", "Predicted without a human")
    code = gland.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning) == ("SCT", "41216001", "Prostate")
    assert gland.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
    assert (gland.TrackingID, bool(gland.TrackingUID)) == ("gland 1", True)
    # red, in CIELab
    np.testing.assert_allclose(np.array(gland.RecommendedDisplayCIELabValue) / 65535, [0.54, 0.82, 0.78], atol=0.02)
    assert lesion.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    assert "TrackingID" not in lesion
    fractional = pydicom.dcmread(tmp_path / "mask_probability.dcm")
    assert (fractional.SegmentationType, len(fractional.SegmentSequence)) == ("FRACTIONAL", 2)
    expected = [sitk.ReadImage(str(tmp_path / f"mask_probability_{number}.nii.gz")) for number in (1, 2)]
    for frame, group in zip(fractional.pixel_array, fractional.PerFrameFunctionalGroupsSequence, strict=True):
        image = expected[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        index = image.TransformPhysicalPointToIndex(position)[2]
        np.testing.assert_allclose(frame / 255, sitk.GetArrayFromImage(image)[index], atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_calibration_of_a_fractional_segmentation_is_not_measured(tmp_path, run_verb, network, kind):
    model, source = network(["prostate", "lesion"]), write_scan(tmp_path / "A")
    assert run(run_verb, model, source, tmp_path / "out" / "A.dcm", "--probabilities")[0] == 0
    assert run(run_verb, model, source, tmp_path / "labels" / "A.nii.gz")[0] == 0
    files = [tmp_path / "out", tmp_path / "labels"]
    if kind == "file":
        files = [files[0] / "A.dcm", files[1] / "A.nii.gz"]
    code, _, err = run_verb(evaluate, "--predictions", files[0], "--labels", files[1], "--calibration")
    assert code == 2
    assert "A.dcm: the probabilities beside it are a DICOM Segmentation (A_probability.dcm), which is not read" in err
    assert "Predict without --dicom-seg" in err
    assert err.count("\n") == 1


def test_several_series(tmp_path, run_verb, network):
    model, folder = network(), tmp_path / "in"
    for number, name in enumerate(("A", "B")):
        write_scan(folder / name, number, series=f"1.2.{number + 3}")
    code, out, err = run(run_verb, model, folder, tmp_path / "out", "--dicom-seg")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["A.dcm", "B.dcm"]
    for name, series in (("A", "1.2.3"), ("B", "1.2.4")):
        said = pydicom.dcmread(tmp_path / "out" / f"{name}.dcm")
        assert said.ReferencedSeriesSequence[0].SeriesInstanceUID == series
        assert said.SegmentSequence[0].SegmentLabel == "class 1"
    # the folder of masks is evaluated like any other
    shutil.copytree(tmp_path / "out", tmp_path / "labels")
    code, out, err = run_verb(evaluate, "--predictions", tmp_path / "out", "--labels", tmp_path / "labels")
    assert code == 0, err
    assert "A" in out
    # a series that lacks what is needed is named, and the other one segmented
    write_scan(folder / "C", 2, frame_of_reference=None)
    code, out, err = run(run_verb, model, folder, tmp_path / "more", "--dicom-seg")
    assert code == 2
    assert "2 of 3 volumes segmented" in out
    assert err.count("\n") == 1
    assert "000.dcm: lacks FrameOfReferenceUID" in err


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("x.nii", ["mask.dcm"], "x.nii: not a DICOM series, and only a series has a DICOM Segmentation"),
        ("mixed", ["out", "--dicom-seg"], "x.nii: not a DICOM series"),
        ("folder", ["mask.dcm"], "mask.dcm: one file for 1 volumes. Name a folder and give --dicom-seg"),
        ("series", ["mask.nii", "--dicom-seg"], "--dicom-seg: given with the output "),
        ("series", ["out", "--segments", "x.toml"], "--segments: given without an output as DICOM Segmentations"),
        ("series", ["series/mask.dcm"], "mask.dcm: would lie among the slices of a series"),
        ("series", ["series", "--dicom-seg"], "series.dcm: would lie among the slices of a series"),
        ("series", ["series"], "series.nii.gz: would lie among the slices of a series"),
        ("series", ["series/mask.nrrd"], "mask.nrrd: would lie among the slices of a series"),
        ("x.nii", ["series"], "x.nii: would lie among the slices of a series"),
        ("series", ["mask.dcm", "--segments", "missing.toml"], "missing.toml: no such file"),
        ("series", ["mask.dcm", "--segments", "x.toml"], "x.toml: 'gland' is no class of the network. Choose from"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, run_verb, network, monkeypatch, source, options, message):
    monkeypatch.chdir(tmp_path)
    model = network(["prostate", "lesion"])
    write_scan(tmp_path / "series")
    write_scan(tmp_path / "folder" / "A")
    for folder in (tmp_path, tmp_path / "mixed"):
        folder.mkdir(exist_ok=True)
        sitk.WriteImage(make_image(np.zeros((4, 4, 4), np.int16)), str(folder / "x.nii"))
    (tmp_path / "x.toml").write_text("[gland]\n")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = run(run_verb, model, source, *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    # nothing was predicted
    assert "device" not in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_a_missing_package_is_said_first(tmp_path, run_verb, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(run_verb, tmp_path / "no.pt", tmp_path, tmp_path / "mask.dcm")
    assert code == 2
    assert (
        f"mask.dcm: DICOM Segmentations need {package}, which is not installed. pip install 'vnet_fast[dicom]'" in err
    )
    assert err.count("\n") == 1


def write_data(folder, names=("left half", "right half"), count=6):
    """Cases of DICOM series, whose masks are DICOM Segmentations, in the Decathlon's layout."""
    for index in range(count):
        (folder / "files").mkdir(parents=True, exist_ok=True)
        (folder / "labelsTr").mkdir(exist_ok=True)
        image, mask = write_case(folder / "files", f"Case{index}", index, labels=2)
        series = write_series(folder / "imagesTr" / f"Case{index}", sitk.ReadImage(str(image)), range(15, -1, -1))
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(mask)))
        write_segmentation(folder / "labelsTr" / f"Case{index}.dcm", series, labels, names)
    return folder


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick_training")
def test_trained_on(tmp_path, run_verb, monkeypatch):
    data, trained = write_data(tmp_path / "data"), tmp_path / "run"
    code, out, err = run_verb(train, "--data", data, *TINY, "--iterations", 2, "--output", trained)
    assert code == 0, err
    assert "2 classes" in out
    content = checkpoint.load(trained / "best.pt")
    assert list(content["classes"]) == ["left half", "right half"]
    # the same cases as files train the same network
    plain = tmp_path / "plain"
    code, _, err = run_verb(train, "--data", data / "files", *TINY, "--iterations", 2, "--output", plain)
    assert code == 0, err
    for name, weight in checkpoint.load(plain / "best.pt")["model"].items():
        torch.testing.assert_close(content["model"][name], weight)
    code, out, err = run_verb(train, "--data", data, "--check", "--folds", 3)
    assert (code, "6 of 6 cases can be read, 0 warnings" in out) == (0, True), err
    # a folder for each segmentation, as archives export them
    for path in list((data / "labelsTr").iterdir()):
        (data / "labelsTr" / path.stem).mkdir()
        path.rename(data / "labelsTr" / path.stem / "1-1.dcm")
    monkeypatch.setattr(plotting, "available", lambda: True)
    code, out, err = run_verb(report, "--run", trained)
    assert code == 0, err
    assert "left half" in (trained / "report" / "report.html").read_text()


@pytest.mark.usefixtures("quick_training")
def test_the_planned_grid_is_that_of_the_images(tmp_path, run_verb):
    data = write_data(tmp_path / "data", count=3)
    plans = []
    for folder in (data, data / "files"):
        code, out, err = run_verb(
            train, "--data", folder, "--recipe", "fast", "--check", "--device", "cpu", "--folds", 3
        )
        assert code == 0, err
        plans.append(next(line for line in out.splitlines() if "voxels of" in line))
    assert plans[0] == plans[1]


def replace_segments(data, name, change):
    path = data / "labelsTr" / f"{name}.dcm"
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)


def rename(dataset):
    dataset.SegmentSequence[0].SegmentLabel = "heart"


def move(dataset):
    for group in dataset.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x + 5, y, z]


def overlap(dataset):
    dataset.PixelData = bytes([255] * len(dataset.PixelData))


@pytest.mark.usefixtures("quick_training")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename,
            "Case2.dcm: its segment 1 is heart, that of {labels}/Case0.dcm is left half. Number the segments alike",
        ),
        (move, "Case2.dcm: a frame lies at 5 0 "),
        pytest.param(
            overlap,
            "Case2.dcm: segments 1 (left half) and 2 (right half) overlap, and a mask has one label",
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["names", "place", "overlap"],
)
def test_labels_that_cannot_be_used_are_one_line(tmp_path, run_verb, change, message):
    data = write_data(tmp_path / "data", count=3)
    replace_segments(data, "Case2", change)
    for more in (["--check"], ["--iterations", 1, "--output", tmp_path / "run"]):
        code, _, err = run_verb(train, "--data", data, *TINY, *more)
        assert code == 2
        assert message.format(labels=data / "labelsTr") in err
        assert err.count("\n") == 1, err


def test_names_that_the_data_set_gives_come_first(tmp_path, run_verb):
    data = write_data(tmp_path / "data", count=3)
    replace_segments(data, "Case2", rename)
    (data / "dataset.json").write_text('{"labels": {"0": "background", "1": "one", "2": "two"}}')
    code, _, err = run_verb(train, "--data", data, *TINY, "--check")
    assert code == 0, err
    shutil.copytree(data / "labelsTr", tmp_path / "masks")
    code, out, err = run_verb(evaluate, "--predictions", tmp_path / "masks", "--labels", data / "labelsTr")
    assert code == 0, err
    assert "one" in out


@pytest.mark.exhaustive
def test_a_real_series(real_data, tmp_path, run_verb, network):
    model, source = network(volume=(128, 128, 32)), real_data / "dicom" / "Prostate3T-03-0001"
    for name in ("mask.nii.gz", "mask.dcm"):
        assert run(run_verb, model, source, tmp_path / name, "--all-components")[0] == 0
    mask = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    labels = sitk.GetArrayFromImage(mask)
    assert set(np.unique(labels)) == {0, 1, 2}
    masks = masks_on(pydicom.dcmread(tmp_path / "mask.dcm"), mask)
    for number in (1, 2):
        np.testing.assert_array_equal(masks[number], labels == number)
    # ITK reads the frames of a size like this, without their places
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "mask.dcm")))
    decoded = [frame for _, _, frame in decode(pydicom.dcmread(tmp_path / "mask.dcm"))]
    np.testing.assert_array_equal(frames > 0, decoded)
    found = volumes.read_mask(tmp_path / "mask.dcm", volumes.read_image(source), source)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels)
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(found), name), getattr(Grid.of(mask), name), atol=1e-4)


def test_the_interface_writes_the_same_file(tmp_path, run_verb, network):
    model, source = network(["prostate", "lesion"]), write_scan(tmp_path / "series")
    (tmp_path / "segments.toml").write_text(SEGMENTS)
    options = "--segments", tmp_path / "segments.toml"
    code, _, err = run(run_verb, model, source, tmp_path / "mask.dcm", *options)
    assert code == 0, err
    result = Segmenter.load(model, device="cpu")(source)
    result.save(tmp_path / "ours.dcm", tmp_path / "segments.toml")
    theirs, ours = (pydicom.dcmread(tmp_path / name) for name in ("mask.dcm", "ours.dcm"))
    assert ours.PixelData == theirs.PixelData
    assert [segment.SegmentLabel for segment in ours.SegmentSequence] == ["Gland", "lesion"]
    for write in (result.save, result.save_entropy):
        for name in ("mask.dcm", "mask.nii.gz"):
            with pytest.raises(InputError, match=r"would lie among the slices of a series\. Choose another path"):
                write(source / name)
    volume = write_case(tmp_path, "case", suffix=".nii.gz")[0]
    with pytest.raises(InputError, match="not a DICOM series, and only a series has a DICOM Segmentation"):
        Segmenter.load(model, device="cpu")(volume).save(tmp_path / "other.dcm")
    with pytest.raises(InputError, match="without the files of its DICOM series"):
        Segmenter.load(model, device="cpu")(sitk.ReadImage(str(volume))).save(tmp_path / "other.dcm")
    assert not (tmp_path / "other.dcm").exists()


def test_entropy_is_written_beside_it(tmp_path, run_verb, network):
    model, source = network(["prostate", "lesion"]), write_scan(tmp_path / "series")
    code, _, err = run(run_verb, model, source, tmp_path / "out" / "mask.dcm", "--entropy")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"mask.dcm", "mask_entropy.nii.gz"}
