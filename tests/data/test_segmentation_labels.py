"""Cases whose masks are DICOM Segmentations, and the names of their classes."""

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("highdicom", reason="highdicom is not installed")

from tests.io.dicom_slices import write_series
from tests.io.segmentation_files import make_labels, make_volume, write_segmentation
from vnet_fast.data.cases import find_cases, pair_masks
from vnet_fast.data.classes import Classes
from vnet_fast.data.planning import find_geometries
from vnet_fast.data.preparation import read_case
from vnet_fast.errors import InputError
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid
from vnet_fast.regions import Region


@pytest.fixture
def cases(tmp_path):
    """The same case with a segmentation and with a file as its mask, in PROMISE12's layout."""
    labels = make_labels()
    for name in ("A", "B"):
        folder = write_series(tmp_path / name, make_volume(), (3, 0, 7, 5, 1, 6, 2, 4))
    write_segmentation(tmp_path / "A_segmentation.dcm", folder, labels, ("left", "right"))
    mask = Grid.of(volumes.read_image(folder)).image_from(labels)
    sitk.WriteImage(mask, str(tmp_path / "B_segmentation.nii.gz"))
    return find_cases(tmp_path)


def test_a_case_is_the_same_as_with_a_file(cases):
    assert [case.mask.name for case in cases] == ["A_segmentation.dcm", "B_segmentation.nii.gz"]
    _, _, ours = read_case(cases[0], (1, 1, 2.5), (16, 16, 8))
    _, _, theirs = read_case(cases[1], (1, 1, 2.5), (16, 16, 8))
    assert ours.labels == theirs.labels == (0, 1, 2)
    assert ours.mask.any()
    np.testing.assert_array_equal(ours.mask, theirs.mask)
    # for the plan it has the size of the volume, although it leaves out slices
    first, second = find_geometries(cases, Classes())
    assert first.size == second.size
    np.testing.assert_allclose(first.spacing, second.spacing, atol=1e-5)


def test_pairs_of_files(cases):
    seg, nifti = cases[0].mask, cases[1].mask
    assert pair_masks(seg, nifti)[0] == [("B", seg, nifti)]
    assert pair_masks(nifti, seg)[0] == [("A", nifti, seg)]


def test_names_of_segments(cases, tmp_path):
    seg, nifti = cases[0].mask, cases[1].mask
    assert Classes().named_by([seg]).names == {1: "left", 2: "right"}
    # unless the data set has other classes, or not all masks say it
    assert Classes(declared={1: "one"}).named_by([seg]).names == {1: "one"}
    assert Classes(binary=True).named_by([seg]).names == {}
    assert Classes(regions=(Region("all", (1, 2)),)).named_by([seg]).declared is None
    assert Classes().named_by([seg, nifti]).declared is None
    assert Classes().named_by([]).declared is None
    # a label that is left out has no class, and without gaps the others are classes
    assert Classes(ignored=2).named_by([seg]).names == {1: "left"}
    assert Classes(ignored=1).named_by([seg]).declared is None
    other = write_segmentation(tmp_path / "other.dcm", tmp_path / "A", make_labels(), ("LEFT", "Right"))
    assert Classes().named_by([seg, other]).names == {1: "left", 2: "right"}
    wrong = write_segmentation(tmp_path / "wrong.dcm", tmp_path / "A", make_labels(), ("right", "left"))
    with pytest.raises(InputError, match=r"wrong\.dcm: its segment 1 is right, that of .*A_segmentation\.dcm is left"):
        Classes().named_by([seg, other, wrong])
    # a damaged one is reported when the case is read
    wrong.write_bytes(wrong.read_bytes()[:500])
    assert Classes().named_by([seg, wrong]).names == {1: "left", 2: "right"}
