"""The names of labels in the files of masks."""

import gzip
import struct
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk

from vnet_fast.io.grid import Grid
from vnet_fast.io.label_names import LABELS, WORKBENCH, colour_of
from vnet_fast.io.volumes import read_mask
from vnet_fast.io.writing import write

NAMES = {1: "whole <tumour>", 2: "Ödem & more\nlines", 3: "core"}
SHOWN = {1: "whole <tumour>", 2: "Ödem & more lines", 3: "core"}
GRID = Grid((5, 4, 3), (1.0, 1.5, 2.0), (3.0, -2.0, 7.0), (1, 0, 0, 0, -1, 0, 0, 0, -1))
MASK = np.random.default_rng(0).integers(0, 4, GRID.shape).astype(np.uint8)


def table_in(content):
    """The label table of a NIfTI file: dict from label to name and colour."""
    length, code = struct.unpack_from("<2i", content, 352)
    assert content[348:352] == b"\1\0\0\0"
    assert (length % 16, code) == (0, WORKBENCH)
    assert struct.unpack_from("<f", content, 108) == (352 + length,)
    assert struct.unpack_from("<h", content, 68) == (LABELS,)
    labels = ElementTree.fromstring(content[360 : 352 + length].rstrip(b"\0").decode()).iter("Label")
    return {
        int(label.get("Key")): (label.text, tuple(float(label.get(name)) for name in ("Red", "Green", "Blue")))
        for label in labels
    }


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_masks_with_names_hold_the_same_voxels(tmp_path, suffix):
    plain, named = tmp_path / f"plain{suffix}", tmp_path / f"named{suffix}"
    write(MASK, GRID, plain)
    write(MASK, GRID, named, NAMES)
    images = [read_mask(path) for path in (plain, named)]
    assert Grid.of(images[0]) == Grid.of(images[1])
    for image in images:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), MASK)
    extra = [path.name for path in tmp_path.iterdir() if path.stem.split(".")[0] not in ("plain", "named")]
    assert extra == []


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_has_a_label_table(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(MASK, GRID, path, NAMES)
    first = path.read_bytes()
    content = gzip.decompress(first) if suffix == ".nii.gz" else first
    table = table_in(content)
    assert table.pop(0) == ("background", (0, 0, 0))
    assert {label: name for label, (name, _) in table.items()} == SHOWN
    assert table[2][1] == pytest.approx(colour_of(2))
    write(MASK, GRID, path, NAMES)
    assert path.read_bytes() == first


def test_nrrd_has_the_fields_of_a_segmentation(tmp_path):
    path = tmp_path / "a.nrrd"
    write(MASK, GRID, path, NAMES)
    image = sitk.ReadImage(str(path))
    fields = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    for number, (label, name) in enumerate(SHOWN.items()):
        assert fields[f"Segment{number}_Name"] == name
        assert fields[f"Segment{number}_LabelValue"] == str(label)
        assert fields[f"Segment{number}_Extent"] == "0 4 0 3 0 2"


def test_colours_repeat():
    assert colour_of(1) == colour_of(8) != colour_of(2)
