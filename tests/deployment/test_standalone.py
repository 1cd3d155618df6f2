"""The programs of a pipeline folder compute what this package does, with NumPy and SimpleITK alone."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image, write_case
from vnet_fast import VNet
from vnet_fast.data.channels import Channel
from vnet_fast.deployment.pipeline import channel_facts, settings_of
from vnet_fast.deployment.standalone import network, volumes
from vnet_fast.errors import InputError
from vnet_fast.io.grid import covering_size, working_grid
from vnet_fast.io.volumes import read_image
from vnet_fast.prediction import windows
from vnet_fast.prediction.components import largest_components
from vnet_fast.prediction.inference import LEFT_RIGHT, NO_FLIP, predict_probabilities
from vnet_fast.prediction.plan import plan
from vnet_fast.prediction.task import Task

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
# of the axes to the head, the right and the front
TURNED = (0, -1, 0, 0, 0, -1, 1, 0, 0)


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE, TURNED], ids=["LPS", "oblique", "turned"])
@pytest.mark.parametrize("spacing", [(1.1, 1.2, 2.5), (1.5, 1.5, 2.0)], ids=["other", "equal"])
@pytest.mark.parametrize("size", [(19, 17, 14), (40, 10, 21)])
def test_grids_are_those_of_training(direction, spacing, size):
    image = make_image(np.zeros(size[::-1], np.float32), spacing, (10, -20, 30), direction)
    centre = working_grid(image, (1.5, 1.5, 2.0), (16, 16, 16))
    covering = working_grid(image, centre.spacing, covering_size(image, centre))
    for expected, is_covering in ((centre, False), (covering, True)):
        found = volumes.network_grid(image, (1.5, 1.5, 2.0), (16, 16, 16), is_covering)
        assert tuple(found.size) == expected.size
        for name in ("spacing", "origin", "direction"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-9)


@pytest.mark.parametrize("channel", [Channel(), Channel("CT", (-50.0, 200.0, 40.0, 30.0))], ids=["MR", "CT"])
@pytest.mark.parametrize("kind", ["values", "with an outside", "two values", "of a part"])
def test_intensities_are_those_of_training(channel, kind):
    values = np.random.default_rng(0).normal(50, 60, (9, 8, 7)).astype(np.float32)
    if kind == "two values":
        values = (values > 50).astype(np.float32)
    if kind == "with an outside":
        values[:2] = math.nan
    reference = values[2:6] if kind == "of a part" else values
    found = network.normalised(values, reference, channel_facts(channel))
    np.testing.assert_array_equal(found, channel.normalised(values, reference))
    assert found.dtype == np.float32


def test_a_constant_volume_is_refused():
    with pytest.raises(ValueError, match="all voxels have the same value"):
        network.normalised(np.ones((3, 3, 3), np.float32), np.ones((3, 3, 3), np.float32), channel_facts(Channel()))


@pytest.mark.parametrize("length", [16, 17, 40, 100])
@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.99])
def test_windows_are_those_of_prediction(length, overlap):
    first = windows.starts(length, 16, overlap)
    weights = windows.axis_weights(length, 16, first)
    found = list(network.windows_of(length, 16, overlap, windows.SIGMA))
    assert [(where.start, where.stop) for where, _ in found] == [(start, start + 16) for start in first]
    for (_, ours), theirs in zip(found, weights, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("overlapping", [False, True], ids=["softmax", "sigmoid"])
def test_probabilities_are_those_of_pytorch(overlapping):
    logits = np.random.default_rng(0).normal(0, 50, (3, 4, 5, 6)).astype(np.float32)
    x = torch.from_numpy(logits)
    expected = torch.sigmoid(x) if overlapping else torch.softmax(x, 0)
    np.testing.assert_allclose(network.activated(logits, overlapping), expected.numpy(), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("overlapping", [False, True], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_averages_are_those_of_prediction(count, mirrored, overlapping):
    """Over networks, over left and right, and over windows."""
    torch.manual_seed(0)
    models = torch.nn.ModuleList(VNet(2, 3, 2, levels=2, kernel_size=3) for _ in range(count)).eval()
    for model in models:
        # as it is made, its probabilities hardly depend on the weights
        torch.nn.init.normal_(model.head.weight)
    values = np.random.default_rng(0).normal(size=(2, 12, 16, 21)).astype(np.float32)
    flips = LEFT_RIGHT if mirrored else NO_FLIP
    expected = predict_probabilities(models, values, None, (8, 16, 16), 0.5, flips, overlapping=overlapping)

    def runtime(model):
        return lambda batch: model(torch.from_numpy(batch)).detach().numpy()

    settings = {"size": [16, 16, 8], "windows": {"sigma": windows.SIGMA}, "regions": [1, 2, 3] if overlapping else []}
    found = network.probabilities(list(map(runtime, models)), values, settings, 0.5, mirrored)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert float(np.ptp(expected)) > 0.3


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 1.0])
def test_the_largest_component_is_that_of_prediction(share):
    """With few voxels, many components have the same size; the first one is kept."""
    for seed in range(5):
        inside = np.random.default_rng(seed).random((7, 9, 11)) < share
        expected = largest_components(inside.astype(np.uint8)) > 0
        np.testing.assert_array_equal(network.largest_component(inside), expected)


def names(pairs):
    return [([file.name for file in files], mask.name) for files, mask in pairs]


@pytest.mark.parametrize("several", [False, True])
def test_the_files_are_those_of_prediction(tmp_path, several):
    for name in ("A_0000", "A_0001", "B", "C_0000"):
        write_case(tmp_path, name, suffix=".nii.gz")
    (tmp_path / ".hidden.nii.gz").touch()
    (tmp_path / "A_0000_segmentation.nii.gz").unlink()
    found = volumes.plan(tmp_path, tmp_path / "out", several)
    assert sorted(names(found)) == sorted(names(plan(tmp_path, tmp_path / "out", None, several)))
    single = volumes.plan(tmp_path / "A_0000.nii.gz", tmp_path / "out", several)
    if several:
        assert names(single) == [(["A_0000.nii.gz", "A_0001.nii.gz"], "A.nii.gz")]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "truncated or damaged"),
        (lambda content: b"", "can't be read"),
        (lambda content: content[:60] + bytes(40) + content[100:], "truncated or damaged|can't be read"),
    ],
    ids=["half", "empty", "damaged"],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_damaged_files_are_refused(tmp_path, suffix, damage, message):
    """ITK reads half a NIfTI file without an error."""
    path, _ = write_case(tmp_path, "x", suffix=suffix)
    assert len(volumes.read([path], 1)) == 1
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(volumes.InputError, match=message):
        volumes.read([path], 1)


def test_a_dicom_series_is_read_as_by_this_package(tmp_path):
    """To the last digit of its spacing, on which the darkest voxels depend."""
    # tilted, with positions that are rounded as in a real series
    cosine, sine = 0.978147601168029, 0.207911688774898
    positions = [round(-11.321127 + 3.3 * cosine * number, 6) for number in range(19)]
    write_dicom(tmp_path / "x", positions, axes=(1, 0, 0, 0, cosine, sine), shift=-sine / cosine, seed=0)
    (found,) = volumes.read([tmp_path / "x"], 1)
    expected = read_image(tmp_path / "x")
    assert volumes.Grid.of(found)[:2] == (expected.GetSize(), expected.GetSpacing())
    np.testing.assert_allclose(found.GetOrigin(), expected.GetOrigin(), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    ((files, mask),) = volumes.plan(tmp_path / "x", tmp_path / "out", False)
    assert (files[0].name, mask) == ("x", tmp_path / "out" / "x.nii.gz")
    assert names(volumes.plan(tmp_path, tmp_path / "out", False)) == [(["x"], "x.nii.gz")]


def test_series_that_are_not_one_volume_are_refused(tmp_path):
    write_dicom(tmp_path / "gap", [0, 2, 4, 8, 10])
    with pytest.raises(volumes.InputError, match="not evenly spaced"):
        volumes.read([tmp_path / "gap"], 1)
    write_dicom(tmp_path / "two", [0, 2, 4])
    write_dicom(tmp_path / "two", [0, 2, 4], series="1.2.3.5")
    with pytest.raises(volumes.InputError, match="has 2 DICOM series"):
        volumes.read([tmp_path / "two"], 1)


def test_volumes_among_slices_are_not_dropped(tmp_path):
    """The folder is that of a series, and nothing in it is segmented."""
    write_dicom(tmp_path, [0, 2, 4])
    (tmp_path / ".hidden.nii").touch()
    ((files, _),) = volumes.plan(tmp_path, tmp_path / "out", False)
    assert len(volumes.read(files, 1)) == 1
    (tmp_path / "B.nii.gz").write_bytes(b"x")
    ((files, _),) = volumes.plan(tmp_path, tmp_path / "out", False)
    with pytest.raises(volumes.InputError) as found:
        volumes.read(files, 1)
    with pytest.raises(InputError) as expected:
        read_image(tmp_path)
    assert str(found.value) == str(expected.value)


def test_volumes_that_do_not_fit_are_refused(tmp_path):
    path, _ = write_case(tmp_path, "x", suffix=".mha")
    with pytest.raises(volumes.InputError, match="its number of channels is 1, the network's 2"):
        volumes.read([path], 2)
    other, _ = write_case(tmp_path, "y", size=(20, 18, 15), suffix=".mha")
    with pytest.raises(volumes.InputError, match="different grids"):
        volumes.read([path, other], 2)
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32)
    image[0, 0, 0] = math.nan
    sitk.WriteImage(image, str(path))
    with pytest.raises(volumes.InputError, match="NaN or infinite"):
        volumes.read([path], 1)
    sitk.WriteImage(sitk.Compose([sitk.Cast(image, sitk.sitkUInt8)] * 3), str(path))
    with pytest.raises(volumes.InputError, match="one value for each voxel"):
        volumes.read([path], 1)


def test_nothing_replaces_a_volume(tmp_path):
    path, _ = write_case(tmp_path, "x", suffix=".nrrd")
    for output in (tmp_path, path):
        with pytest.raises(volumes.InputError, match="would replace the volume itself"):
            volumes.plan(path, output, False)
    with pytest.raises(volumes.InputError, match=r"Write \.mha instead"):
        volumes.plan(path, tmp_path / "mask.mhd", False)
    with pytest.raises(volumes.InputError, match="no such file or folder"):
        volumes.plan(tmp_path / "no", tmp_path, False)
    with pytest.raises(volumes.InputError, match="not a supported format"):
        volumes.plan(path.rename(tmp_path / "x.txt"), tmp_path / "out", False)


def drop(settings, key):
    """Settings without a key, wherever it is."""
    if isinstance(settings, list):
        return [drop(part, key) for part in settings]
    if not isinstance(settings, dict):
        return settings
    return {name: drop(part, key) for name, part in settings.items() if name != key}


def test_settings_without_a_part_are_refused(tmp_path):
    channels = (Channel("MR"), Channel("CT", (-50.0, 200.0, 40.0, 30.0)))
    task = Task((1.5, 1.5, 2.0), (16, 16, 16), channels=channels)
    written = settings_of(VNet(2, 2, 2, levels=2), task, ["network.onnx"], tta=True)
    path = tmp_path / "pipeline.json"
    path.write_text(json.dumps(written))
    assert network.load_settings(path) == written
    unread = {"producer", "name"}
    nested = {*written["windows"], *written["channels"][1], *written["channels"][1]["scaling"]}
    for key in ({*written} | nested) - unread:
        path.write_text(json.dumps(drop(written, key)))
        with pytest.raises(network.InputError) as error:
            network.load_settings(path)
        assert str(error.value) == f"{path}: has no {key}. Export the folder again"


@pytest.mark.parametrize("content", ["", "[]", "1", '{"format": 1}', '{"format": 2'])
def test_settings_of_something_else_are_refused(tmp_path, content):
    path = tmp_path / "pipeline.json"
    path.write_text(content)
    with pytest.raises(network.InputError, match=r"pipeline.json: .*\. Export the folder again$"):
        network.load_settings(path)


def test_a_runtime_that_fails_without_a_word_is_one_line(tmp_path, monkeypatch):
    class SpeechlessError(Exception):
        pass

    def fail(*arguments, **options):
        raise SpeechlessError

    runtime = SimpleNamespace(InferenceSession=fail)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    with pytest.raises(network.InputError, match=r"can't be loaded \(SpeechlessError\)"):
        network.load_network(tmp_path / "network.onnx", "onnxruntime", (16, 16, 16))
