"""Files that SimpleITK writes: makers, functions of a folder that write a volume and return its path.

All hold the same voxels, spacing and origin, as do those of `written_text.py` and `written_nifti.py`.
"""

import numpy as np
import SimpleITK as sitk

from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image

# fits every pixel type
ARRAY = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
SPACING, ORIGIN = (0.5, 0.75, 3.0), (10.0, -20.0, 30.0)
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
# what a series can carry into a header of another format
DICTIONARY = {
    "0008|0060": "MR",
    "0008|103e": "t2 = fast: \\axial ",
    "0010|4000": "first line\nsecond line\nthird = line: with signs\n\nlast line",
    "0018|1030": "Prostata für Müller",
    "0020|9165": "x" * 1500,
    "0029|1010": "UHJvc3RhdGUtM1QA",
    "0029|1020": " ",
    "0040|a043": "",
    "ITK_FileNotes": "5.0.10",
    "Modality": "MET_MOD_MR",
    "aux_file": "a: b",
    "descrip": "TE=93;Time=143255.130;phase=1",
    "pixdim[1]": "0.5",
    "qoffset_x": "-10",
    "qto_xyz": "1 0 0 10",
    "sform_code": "1",
    "srow_x": "-0.5 0 0 -10",
    "toffset": "0",
    "vox_offset": "352",
}


def image_of(dtype=np.int16, direction=OBLIQUE, dictionary=None):
    """The volume as a SimpleITK image."""
    image = make_image(ARRAY.astype(dtype), SPACING, ORIGIN, direction)
    for key, value in (dictionary or {}).items():
        image.SetMetaData(key, value)
    return image


def by_itk(suffix, compressed=False, dtype=np.int16, dictionary=None, direction=OBLIQUE):
    """A file that SimpleITK writes."""

    def make(folder):
        sitk.WriteImage(image_of(dtype, direction, dictionary), str(folder / f"x{suffix}"), useCompression=compressed)
        return folder / f"x{suffix}"

    return make


def copied_by_itk(source_suffix, suffix, compressed=False):
    """A file that SimpleITK writes of an image that it has read from another file, with all that it has read."""

    def make(folder):
        source = folder / f"source{source_suffix}"
        sitk.WriteImage(image_of(dictionary={"modality": "MR", "unit": "a=b"}), str(source))
        sitk.WriteImage(sitk.ReadImage(str(source)), str(folder / f"x{suffix}"), useCompression=compressed)
        return folder / f"x{suffix}"

    return make


def series_by_itk(suffix, compressed=False):
    """A file that SimpleITK writes of a DICOM series, with the fields of its first slice."""

    def make(folder):
        files = sorted(write_dicom(folder / "series", (0, 3, 6)).iterdir())
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(file) for file in files])
        reader.MetaDataDictionaryArrayUpdateOn()
        reader.LoadPrivateTagsOn()
        reader.Execute()
        image = image_of(dictionary={key: reader.GetMetaData(0, key) for key in reader.GetMetaDataKeys(0)})
        sitk.WriteImage(image, str(folder / f"x{suffix}"), useCompression=compressed)
        return folder / f"x{suffix}"

    return make


SIMPLE_ITK = {
    **{f"itk {suffix}": by_itk(suffix) for suffix in (".mha", ".mhd", ".nrrd", ".nhdr", ".nii", ".nii.gz")},
    **{f"itk {suffix} compressed": by_itk(suffix, True) for suffix in (".mha", ".mhd", ".nrrd", ".nhdr")},
    **{
        f"itk {np.dtype(dtype)} {suffix}": by_itk(suffix, True, dtype)
        for dtype in (np.uint8, np.int8, np.uint16, np.uint32, np.int64, np.float32, np.float64)
        for suffix in (".mha", ".nrrd")
    },
    **{f"itk {np.dtype(d)} .nii.gz": by_itk(".nii.gz", True, d) for d in (np.uint8, np.int8, np.uint32, np.float64)},
    **{
        f"itk with a dictionary {suffix} {compressed}": by_itk(suffix, compressed, dictionary=DICTIONARY)
        for suffix, compressed in ((".mha", False), (".mha", True), (".mhd", True), (".nrrd", True), (".nhdr", False))
    },
    **{
        f"itk {suffix} from {source}": copied_by_itk(source, suffix, suffix == ".mhd")
        for source in (".nii.gz", ".nrrd", ".mha")
        for suffix in (".mha", ".mhd", ".nrrd", ".nhdr", ".nii.gz")
    },
    **{
        f"itk {suffix} from a series": series_by_itk(suffix, suffix == ".mha")
        for suffix in (".mha", ".mhd", ".nrrd", ".nii.gz")
    },
}
