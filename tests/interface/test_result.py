"""What the segmentation of a volume offers."""

import math

import numpy as np
import pytest
import SimpleITK as sitk

from tests.interface.conftest import image_of, read
from vnet_fast import InputError, Segmenter, plotting
from vnet_fast.io.grid import Grid
from vnet_fast.io.volumes import read_mask

REGIONS = [{"name": "whole", "labels": [1, 2]}, {"name": "core", "labels": [2]}]


@pytest.fixture
def noise(tmp_path):
    array = np.random.default_rng(0).normal(100, 20, (12, 14, 16)).astype(np.float32)
    sitk.WriteImage(image_of(array), str(tmp_path / "noise.nii.gz"))
    return tmp_path / "noise.nii.gz"


def test_probabilities_of_classes(noise, random_network):
    result = Segmenter.load(random_network(network={"num_classes": 3}), device="cpu", all_components=True)(noise)
    probabilities = result.probabilities
    assert (probabilities.shape, probabilities.dtype) == ((3, 12, 14, 16), np.float32)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.labels, probabilities.argmax(0))
    # float64, of the definition
    p = probabilities.astype(np.float64)
    np.testing.assert_allclose(result.entropy, -(p * np.log(p)).sum(0), atol=1e-5)
    assert result.entropy.dtype == np.float32
    assert 0 <= result.entropy.min() < result.entropy.max() <= math.log(3) + 1e-6


def test_probabilities_of_regions(noise, random_network):
    network = random_network(network={"num_classes": 2}, regions=REGIONS, classes=["whole", "core"])
    result = Segmenter.load(network, device="cpu", all_components=True)(noise)
    p = result.probabilities.astype(np.float64)
    assert p.shape == (2, 12, 14, 16)
    binary = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(result.entropy, binary.mean(0), atol=1e-5)
    assert result.entropy.max() <= math.log(2) + 1e-6
    voxel = math.prod(result.spacing) / 1000
    expected = {"whole": np.isin(result.labels, [1, 2]).sum() * voxel, "core": (result.labels == 2).sum() * voxel}
    assert result.volumes_ml == pytest.approx(expected)
    assert expected["whole"] > 0


def test_where_the_network_sees_nothing_the_background_is_certain(tmp_path, trained):
    array = np.random.default_rng(0).normal(100, 20, (16, 16, 60)).astype(np.float32)
    with pytest.warns(UserWarning, match="larger"):
        result = Segmenter.load(trained, device="cpu")(array, spacing=(1.5, 1.5, 2))
    assert not result.entropy[..., :10].any()
    assert result.entropy[..., 24:36].all()
    assert (result.probabilities[0, ..., :10] == 1).all()


def test_volumes_by_name_or_label(noise, random_network):
    named = random_network("named.pt", {"num_classes": 3}, classes=["anterior", "posterior"])
    twins = random_network("twins.pt", {"num_classes": 3}, classes=["part", "part"])
    plain = random_network("plain.pt", {"num_classes": 3})
    found = [Segmenter.load(path, device="cpu")(noise) for path in (named, twins, plain)]
    assert [list(result.volumes_ml) for result in found] == [["anterior", "posterior"], [1, 2], [1, 2]]
    result = found[0]
    assert result.volumes_ml["posterior"] == pytest.approx((result.labels == 2).sum() * 1.2 * 1.1 * 2 / 1000)
    assert result.labels.any()


def test_the_mask_is_written_with_its_names(noise, tmp_path, random_network):
    path = random_network(network={"num_classes": 3}, classes=["anterior", "posterior"])
    result = Segmenter.load(path, device="cpu")(noise)
    result.save(tmp_path / "new" / "mask.nii.gz")
    result.save(str(tmp_path / "mask.seg.nrrd"))
    result.save_entropy(tmp_path / "new" / "map.mha")
    mask = read_mask(tmp_path / "new" / "mask.nii.gz", read(noise))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), result.labels)
    assert read(tmp_path / "mask.seg.nrrd").GetMetaData("Segment1_Name") == "posterior"
    entropy = read(tmp_path / "new" / "map.mha")
    assert (entropy.GetPixelID(), Grid.of(entropy)) == (sitk.sitkFloat32, Grid.of(result.mask))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(entropy), result.entropy)


def test_the_volume_is_never_replaced(noise, tmp_path, trained):
    result, before = Segmenter.load(trained, device="cpu")(noise), noise.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(noise)
    for path in (noise, tmp_path / "link.nii.gz"):
        for write in (result.save, result.save_entropy):
            with pytest.raises(InputError, match=r"would replace the volume itself. Choose another path"):
                write(path)
    assert noise.read_bytes() == before
    with pytest.raises(InputError, match="not a supported format"):
        result.save(tmp_path / "mask.txt")


def test_what_was_computed_is_kept_until_it_is_deleted(noise, trained):
    result = Segmenter.load(trained, device="cpu")(noise)
    first = result.probabilities
    assert result.probabilities is first
    del result.probabilities
    assert result.probabilities is not first
    np.testing.assert_array_equal(result.probabilities, first)


def test_the_picture(case, tmp_path, random_network, trained):
    from matplotlib.figure import Figure

    result = Segmenter.load(trained, device="cpu")(case[0])
    figure = result.show()
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert figure.get_suptitle() == "case.nii.gz"
    # three slices with one structure each, and its name below
    assert [len(axes.collections) for axes in figure.axes] == [1, 1, 1]
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == ["class 1"]
    named = random_network(network={"num_classes": 3}, classes=["anterior", "the $posterior$"])
    figure = Segmenter.load(named, device="cpu")(case[0]).show("a title")
    figure.savefig(tmp_path / "x.png")
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["anterior", r"the \$posterior\$"]


def test_the_picture_of_an_empty_mask(trained):
    array = np.random.default_rng(0).uniform(100, 101, (8, 8, 8))
    segment = Segmenter.load(trained, device="cpu")
    result = segment(array, spacing=(2, 2, 2))
    result.labels[:] = 0
    assert [len(axes.collections) for axes in result.show().axes] == [0, 0, 0]


def test_a_picture_without_matplotlib(case, segmenter, monkeypatch):
    monkeypatch.setattr(plotting, "available", lambda: False)
    with pytest.raises(InputError, match=r"matplotlib is not installed. pip install 'vnet_fast\[plots\]'"):
        segmenter(case[0]).show()


def test_it_says_what_it_is(case, segmenter):
    assert repr(segmenter(case[0])) == "Result(case.nii.gz, 20 x 18 x 16 voxels of 1.2 x 1.1 x 2 mm)"


def test_messages_name_no_option_of_the_command(noise, tmp_path, trained):
    result = Segmenter.load(trained, device="cpu")(noise)
    with pytest.raises(InputError, match=r"segments describe a DICOM Segmentation. Name a .dcm file") as found:
        result.save(tmp_path / "mask.nii.gz", segments=tmp_path / "segments.toml")
    assert "--" not in str(found.value)
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    with pytest.raises(InputError, match=r"not a DICOM series, .*. Choose another path") as found:
        result.save(tmp_path / "mask.dcm")
    assert "--" not in str(found.value)
