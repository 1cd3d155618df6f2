"""Headers as other programs write them are read, and as SimpleITK reads them."""

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.written_by_itk import ARRAY, SIMPLE_ITK, SPACING
from tests.io.written_nifti import NIFTIS
from tests.io.written_text import TEXTS
from vnet_fast.io import formats, volumes
from vnet_fast.io.grid import Grid

WRITTEN = {**SIMPLE_ITK, **TEXTS, **NIFTIS}


def assert_reads_as_itk(path):
    """Reads a file, compares with SimpleITK's own reader, and returns the image."""
    image = volumes.read_image(path)
    expected = sitk.ReadImage(str(path), sitk.sitkFloat32)
    if expected.GetDimension() == 4:
        expected = expected[..., 0]
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), sitk.GetArrayViewFromImage(expected))
    assert Grid.of(image) == Grid.of(expected)
    return image


@pytest.mark.parametrize("name", WRITTEN)
def test_headers_of_other_programs(tmp_path, name):
    path = WRITTEN[name](tmp_path)
    image = assert_reads_as_itk(path)
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(image), ARRAY)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)
    # masks are read alike, and the files are found
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_mask(path)), ARRAY)
    assert path in formats.files_of(path)


def test_there_are_many_programs():
    assert len(WRITTEN) >= 60
    assert len({name.split()[0] for name in (*TEXTS, *NIFTIS)}) >= 12


def with_dictionary(image, reader, *index):
    """Returns an image with all that a reader has read of its file."""
    for key in reader.GetMetaDataKeys(*index):
        image.SetMetaData(key, reader.GetMetaData(*index, key))
    return image


def read_real(data, name):
    """Reads a real volume with its dictionary by SimpleITK: a file, one point in time of a file, or a series."""
    if name.startswith("dicom"):
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(data / name)))
        reader.MetaDataDictionaryArrayUpdateOn()
        reader.LoadPrivateTagsOn()
        return with_dictionary(reader.Execute(), reader, 0)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(next(data.glob(name))))
    image = reader.Execute()
    return with_dictionary(image if image.GetDimension() == 3 else image[..., 0], reader)


@pytest.mark.parametrize(
    "name",
    ["promise12/Case00.mhd", "Task04_Hippocampus/imagesTr/*_001.nii.gz", "Task04_Hippocampus/labelsTr/*_001.nii.gz",
     "native/*.nii.gz", "left_atrium/imagesTr/*", "brats2013/imagesTr/*", "brats2013/labelsTr/*",
     "dicom/Prostate3T-03-0001"],
)  # fmt: skip
def test_real_volumes_written_by_itk_with_all_that_it_has_read(tmp_path, real_data, name):
    image = read_real(real_data, name)
    for suffix in (".mha", ".mhd", ".nrrd"):
        path = tmp_path / f"x{suffix}"
        sitk.WriteImage(image, str(path))
        assert_reads_as_itk(path)
