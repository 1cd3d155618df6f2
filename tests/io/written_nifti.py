"""NIfTI files with headers as other programs write them: makers, as in `written_by_itk.py`."""

import gzip
import struct

import numpy as np

from tests.io.written_by_itk import ARRAY

CODES = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}


def nifti(**changes):
    """A NIfTI file, in which `changes` replace what most programs write.

    `dim`, `pixdim`, `units`, `qform`, `sform`, `quaternion`, `offset`, `rows`: as in the header. `dtype`: of the
    voxels, with their order of bytes. `slope`, `intercept`: of the scaling. `description`: a text. `extension`:
    bytes between header and voxels. `suffix`: `.nii` or `.nii.gz`.
    """
    has = {
        "suffix": ".nii.gz", "dtype": "<i2", "dim": (3, 5, 4, 3, 1, 1, 1, 1), "pixdim": (1, 0.5, 0.75, 3, 0, 0, 0, 0),
        "units": 10, "qform": 1, "sform": 1, "quaternion": (0, 0, 0), "offset": (-10, 20, 30), "slope": 1,
        "rows": (0.5, 0, 0, -10, 0, 0.75, 0, 20, 0, 0, 3, 30), "intercept": 0, "description": "", "extension": b"",
        **changes,
    }  # fmt: skip

    def make(folder):
        # without a slope the voxels are not scaled
        slope, intercept = (has["slope"], has["intercept"]) if has["slope"] > 0 else (1, 0)
        data = ((ARRAY - intercept) / slope).astype(has["dtype"])
        order = has["dtype"][0] if has["dtype"][0] in "<>" else "<"
        header = bytearray(352)
        for form, place, *values in (
            ("i", 0, 348), ("8h", 40, *has["dim"]), ("2h", 70, CODES[has["dtype"][1:]], 8 * data.itemsize),
            ("8f", 76, *has["pixdim"]), ("3f", 108, 352 + len(has["extension"]), has["slope"], has["intercept"]),
            ("B", 123, has["units"]), ("80s", 148, has["description"].encode()),
            ("2h", 252, has["qform"], has["sform"]), ("6f", 256, *has["quaternion"], *has["offset"]),
            ("12f", 280, *has["rows"]), ("4s", 344, b"n+1"), ("B", 348, bool(has["extension"])),
        ):  # fmt: skip
            struct.pack_into(order + form, header, place, *values)
        content = bytes(header) + has["extension"] + data.tobytes()
        path = folder / f"x{has['suffix']}"
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    return make


OBLIQUE_ROWS = (-0.48, 0.21, 0, -10, -0.14, -0.72, 0, 20, 0, 0, 3, 30)
# of the same rotation
OBLIQUE_QUATERNION = (0, 0, -0.9899495)
FLIPPED_ROWS = (-0.5, 0, 0, -10, 0, 0.75, 0, 20, 0, 0, 3, 30)
FLIPPED_FORM = {"quaternion": (0, 1, 0), "pixdim": (-1, 0.5, 0.75, 3, 1, 1, 1, 1), "rows": FLIPPED_ROWS}
XML = b"<?xml version='1.0' ?><AFNI_attributes />".ljust(56, b"\0")
FREESURFER_ROWS = (-0.5, 0, 0, -10, 0, 0, 3, 20, 0, -0.75, 0, 30)

NIFTIS = {
    "nibabel": nifti(units=0, qform=0, sform=2, slope=np.nan, intercept=np.nan, rows=OBLIQUE_ROWS),
    "nibabel float": nifti(units=0, qform=0, sform=2, slope=np.nan, intercept=np.nan, dtype="<f4", suffix=".nii"),
    "ants": nifti(units=2, quaternion=OBLIQUE_QUATERNION, rows=OBLIQUE_ROWS, dtype="<f4"),
    "ants without sform": nifti(units=2, sform=0, rows=[0] * 12, quaternion=(0, 0, 1)),
    "fsl": nifti(dim=(4, 5, 4, 3, 1, 1, 1, 1), description="6.0.5:9e026117", **FLIPPED_FORM),
    "fsl of four axes": nifti(dim=(4, 5, 4, 3, 1, 1, 1, 1), dtype="<f4", description="FSL5.0", sform=4, qform=4),
    "fsl big-endian": nifti(dtype=">i2", description="FSL3.3", suffix=".nii", **FLIPPED_FORM),
    "dcm2niix": nifti(description="TE=93;Time=143255.130;phase=1", quaternion=OBLIQUE_QUATERNION, rows=OBLIQUE_ROWS),
    "freesurfer": nifti(
        dim=(3, 5, 4, 3, 1, 1, 1, 1), dtype="|u1", description="FreeSurfer Oct 28 2020", rows=FREESURFER_ROWS,
        quaternion=(0.5, -0.5, 0.5), offset=(-10, 20, 30), pixdim=(-1, 0.5, 0.75, 3, 2.3, 1, 1, 1), qform=0,
    ),
    "spm": nifti(dtype="<i2", slope=0.5, intercept=2, description="spm - realigned", qform=2, sform=2, suffix=".nii"),
    "afni": nifti(extension=struct.pack("<2i", 64, 4) + XML, units=10),
    "mrtrix": nifti(description="MRtrix version: 3.0.3", slope=1, dtype="<u4", suffix=".nii"),
    "no scaling": nifti(slope=0, dtype="<u2"),
    "no forms": nifti(qform=0, sform=0, offset=(0, 0, 0)),
}  # fmt: skip
