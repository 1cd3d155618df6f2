"""Cases that must be refused: for each its maker, the message, and the file that the message must name."""

import gzip
import os
from functools import partial

import numpy as np
import SimpleITK as sitk

from tests.io.bad_makers import (
    MASK,
    SIZE,
    Bad,
    bad_image,
    bad_mask,
    bad_series,
    changed_bytes,
    changed_header,
    changed_number,
    cut_slice,
    fifo_slice,
    flip,
    labelled,
    make_bomb,
    make_socket,
    no_regular_file,
    spiked,
    two_orientations,
    two_series,
    unpaired,
    with_extra_file,
)
from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image

SINGULAR, SHEARED, LONG = "1 0 0 1 0 0 0 0 1", "1 0 0 0.2 1 0 0 0 1", "2 0 0 0 2 0 0 0 2"
DIRECTION = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
SPACING, SIZES = "ElementSpacing = 1 1 2", "DimSize = 8 7 6"
changed_nrrd_header = partial(changed_header, suffix=".nrrd")
OUTSIDE, SHORT = "its data file lies outside its folder", "truncated"
NOT_PERPENDICULAR = "whose axes are not perpendicular unit vectors"
SEVERAL = "is 4-D (8 x 7 x 6 x 2) with 1 value per voxel, not 3-D. Split it into its points in time or channels"
FIVE = "is 5-D (8 x 7 x 6 x 2 x 3) with 1 value per voxel, not 3-D. Split it into its points in time or channels"
NOISE = np.random.default_rng(7).bytes(3000)
DIRECTIONS = "space directions: (1,0,0) (0,1,0) (0,0,2)"

STREAMS = {
    "gzip cut in half": changed_bytes(
        lambda c: c[: len(c) // 2], ".nii.gz", "truncated: the compressed data ends early"
    ),
    "gzip without its end": changed_bytes(lambda c: c[:-4], ".nii.gz", "truncated: the compressed data ends early"),
    "gzip with a wrong checksum": changed_bytes(lambda c: c[:-8] + b"abcd" + c[-4:], ".nii.gz", "CRC check failed"),
    "gzip damaged": changed_bytes(flip, ".nii.gz", "damaged gzip data"),
    "gzip that is none": changed_bytes(gzip.decompress, ".nii.gz", "damaged gzip data (Not a gzipped file"),
    "gzip with more behind": changed_bytes(lambda c: c + b"more", ".nii.gz", "damaged gzip data"),
    "gzip bomb": changed_bytes(make_bomb, ".nii.gz", "longer than the 672 bytes that its header states"),
    "gzip bomb by its header": changed_number(
        "<3h", 42, (1000, 1000, 1000), "compressed bytes can't hold the 2000000352"
    ),
    "zlib cut": changed_bytes(lambda c: c[:-9], ".mhd", SHORT, True, ".zraw"),
    "zlib damaged": changed_bytes(flip, ".mhd", "damaged compressed data", True, ".zraw"),
    "zlib with more behind": changed_bytes(
        lambda c: c + b"more", ".mhd", "has extra bytes after its compressed data", True, ".zraw"
    ),
    "nrrd gzip cut": changed_bytes(lambda c: c[:-9], ".nrrd", SHORT, True),
    "nrrd gzip with a wrong checksum": changed_bytes(
        lambda c: c[:-8] + b"abcd" + c[-4:], ".nrrd", "damaged compre", True
    ),
    "nhdr gzip damaged": changed_bytes(flip, ".nhdr", "damaged compressed data", True, ".raw.gz"),
    "raw shorter": changed_bytes(
        lambda c: c[:-1], ".mhd", "truncated: 671 bytes where its header states 672", file=".raw"
    ),
    "raw longer": changed_bytes(
        lambda c: c + b"x", ".mhd", "longer than the 672 bytes that its header states", file=".raw"
    ),
    "mha shorter": changed_bytes(lambda c: c[:-2], ".mha", SHORT),
    "mha longer": changed_bytes(lambda c: c + b"xx", ".mha", "longer than the 672 bytes that its header states"),
    "nrrd shorter": changed_bytes(lambda c: c[:-2], ".nrrd", SHORT),
    "nii shorter": changed_bytes(lambda c: c[:-2], ".nii", SHORT),
    "nii longer": changed_bytes(lambda c: c + b"xx", ".nii", "longer than the 672 bytes that its header states"),
    "empty nii": changed_bytes(lambda c: b"", ".nii", "an empty file"),
    "empty nii gz": changed_bytes(lambda c: b"", ".nii.gz", "an empty file"),
    "empty mha": changed_bytes(lambda c: b"", ".mha", "an empty file"),
    "empty nrrd": changed_bytes(lambda c: b"", ".nrrd", "an empty file"),
    "random nii": changed_bytes(lambda c: NOISE, ".nii", "not a NIfTI file"),
    "random nii gz": changed_bytes(lambda c: NOISE, ".nii.gz", "damaged gzip data"),
    "random mha": changed_bytes(lambda c: NOISE, ".mha", "not a MetaImage header"),
    "random nrrd": changed_bytes(lambda c: NOISE, ".nrrd", "not an NRRD file"),
}

HEADERS = {
    "size zero": changed_header(SIZES, "DimSize = 8 0 6", "its header gives a size of 8 0 6"),
    "size negative": changed_header(SIZES, "DimSize = 8 -7 6", "its header gives a size of 8 -7 6"),
    "size absurd": changed_header(
        SIZES, "DimSize = 100000 100000 100000", "gives 1,000,000,000,000,000 voxels, more than"
    ),
    "nii size zero": changed_number("<h", 44, 0, "its header gives a size of 8 0 6"),
    "nii size absurd": changed_number("<3h", 42, (32767, 32767, 32767), "gives 35,181,150,961,663 voxels, more than"),
    "nrrd size absurd": changed_nrrd_header(
        "sizes: 8 7 6", "sizes: 100000 100000 100000", "gives 1,000,000,000,000,000 voxels"
    ),
    **{
        f"spacing {word}": changed_header(
            SPACING, f"ElementSpacing = 1 {word} 2", f"its spacing is 1 {shown} 2 mm, outside"
        )
        for word, shown in {"0": "0", "-1": "-1", "nan": "nan", "1e-9": "1e-09", "1e6": "1000000"}.items()
    },
    **{
        f"nii spacing {value}": changed_number("<f", 84, value, "2 mm, outside 0.001 to 1000 mm")
        for value in (0.0, -1.0, float("nan"), 1e-9, 1e6)
    },
    "nii two spacings": changed_number(
        "<f", 84, 1.5, "its spacing is 1 1.5 2 mm by its pixdim and 1 1 2 mm by its sform"
    ),
    "nii quaternion of no rotation": changed_number(
        "<3f", 256, (5, 5, 5), "its quaternion is 5 5 5, longer than 1, which is no rotation"
    ),
    "nrrd spacing zero": changed_nrrd_header(
        DIRECTIONS, DIRECTIONS.replace("0,1,0", "0,0,0"), "its spacing is 1 0 2 mm, outside"
    ),
    "nrrd spacing nan": changed_nrrd_header(DIRECTIONS, DIRECTIONS.replace("0,1,0", "0,nan,0"), "damaged header"),
    "spacing missing": changed_header(SPACING, "Comment = no", "damaged header: ElementSpacing is missing"),
    "origin far away": changed_header(
        "Offset = 0 0 0", "Offset = 0 1e9 0", "its origin is 0 1e+09 0 mm, more than 1,000,000 mm from zero"
    ),
    "direction singular": changed_header(DIRECTION, f"TransformMatrix = {SINGULAR}", NOT_PERPENDICULAR),
    "direction sheared": changed_header(DIRECTION, f"TransformMatrix = {SHEARED}", NOT_PERPENDICULAR),
    "direction too long": changed_header(DIRECTION, f"TransformMatrix = {LONG}", NOT_PERPENDICULAR),
    "direction zero": changed_header(DIRECTION, "TransformMatrix = 0 0 0 0 0 0 0 0 0", NOT_PERPENDICULAR),
    "nii direction sheared": changed_number("<f", 284, 0.3, NOT_PERPENDICULAR),
    "nii direction skewed": changed_number("<f12xf", 284, (0.6, -0.8), NOT_PERPENDICULAR),
    "nrrd direction sheared": changed_nrrd_header(DIRECTIONS, DIRECTIONS.replace("(0,1", "(0.3,1"), NOT_PERPENDICULAR),
    "element type unknown": changed_header("MET_SHORT", "MET_STRANGE", "its ElementType MET_STRANGE is not supported"),
    "nii type unknown": changed_number("<h", 70, 77, "damaged header: 3 axes of type 77"),
    "nii type of another length": changed_number("<h", 70, 16, "damaged header: 3 axes of type 16 with 16 bits"),
    "nii voxels within the header": changed_number("<f", 108, 0, "its voxels begin at byte 0"),
    "nrrd type unknown": changed_nrrd_header("type: short", "type: strange", "its type strange is not supported"),
    "nrrd encoding unknown": changed_nrrd_header("encoding: raw", "encoding: zip", "its encoding zip is not supported"),
    "field misspelt": changed_header(
        "ElementSpacing", "ElementSpaceing", "'ElementSpaceing' is not a known field; ElementSpac"
    ),
    "field twice": changed_header(SIZES, f"{SIZES}\n{SIZES}", "DimSize is given twice"),
    "voxels as text": changed_header("BinaryData = True", "BinaryData = False", "its voxels are written as text"),
}
FILES = {
    "data file missing": changed_header("NAME.raw", "nothing.raw", "its data file nothing.raw is missing"),
    "data file absolute": changed_header("NAME.raw", "/etc/hostname", f"{OUTSIDE} (/etc/hostname)"),
    "data file in a parent folder": changed_header("NAME.raw", "../x.raw", f"{OUTSIDE} (../x.raw)"),
    "data file is the header": changed_header("NAME.raw", "NAME.mhd", "names itself as its data file"),
    "data file is the header, by a detour": changed_header("NAME.raw", "./NAME.mhd", "names itself as its data file"),
    "data in a list of files": changed_header("NAME.raw", "LIST", "its data is spread over several files"),
    "data file is a folder": changed_header("NAME.raw", ".", "its data file . is not a regular file"),
    "nhdr absolute": changed_header("NAME.raw.gz", "/etc/hostname", f"{OUTSIDE} (/etc/hostname)", ".nhdr"),
    "nhdr parent": changed_header("NAME.raw.gz", "../x.raw.gz", f"{OUTSIDE} (../x.raw.gz)", ".nhdr"),
    "nhdr itself": changed_header("NAME.raw.gz", "NAME.nhdr", "names itself as its data file", ".nhdr"),
    "nhdr missing": changed_header("NAME.raw.gz", "nothing.gz", "its data file nothing.gz is missing", ".nhdr"),
    "folder": no_regular_file(os.mkdir, "not a regular file"),
    "fifo": no_regular_file(os.mkfifo, "not a regular file"),
    "socket": no_regular_file(make_socket, "not a regular file"),
    "symlink loop": no_regular_file(lambda path: path.symlink_to(path), "can't be read (Too many levels of symbolic"),
    "symlink to nothing": no_regular_file(lambda path: path.symlink_to("nowhere"), "a link to a missing file"),
    "data file is a fifo": no_regular_file(os.mkfifo, "is not a regular file", ".raw", ".mhd"),
    "data file is a socket": no_regular_file(make_socket, "is not a regular file", ".raw", ".mhd"),
    "data file is a link to itself": no_regular_file(lambda path: path.symlink_to(path), "is missing", ".raw", ".mhd"),
    "mask is a fifo": no_regular_file(os.mkfifo, "not a regular file", MASK),
    "no mask": Bad(unpaired(".mha"), "no mask for this image", ".mha"),
    "no image": Bad(unpaired(MASK), "no image for this mask", MASK),
}
PIXELS = {
    "2-D": bad_image(lambda a: make_image(a)[:, :, 0], "is 2-D with 1 value per voxel, not 3-D with 1"),
    "4-D": bad_image(lambda a: sitk.JoinSeries([make_image(a)] * 2), SEVERAL),
    "nii 5-D": bad_image(lambda a: sitk.JoinSeries([sitk.JoinSeries([make_image(a)] * 2)] * 3), FIVE, ".nii"),
    "nrrd 4-D": bad_image(lambda a: sitk.JoinSeries([make_image(a)] * 2), SEVERAL, ".nrrd"),
    "vector": bad_image(lambda a: sitk.Compose(*[make_image(a)] * 3), "is 3-D with 3 values per voxel"),
    "nrrd vector": bad_image(
        lambda a: sitk.Compose(*[make_image(a)] * 3), "is 4-D with axes of the kinds vector domain", ".nrrd"
    ),
    "nii complex": bad_image(
        lambda a: sitk.RealAndImaginaryToComplex(*[make_image(a.astype(np.float32))] * 2),
        "is 3-D with 2 values per voxel",
        ".nii",
    ),
    "nan and inf": bad_image(spiked, "3 voxels are NaN and 2 infinite"),
    "constant": bad_image(lambda a: make_image(a * 0 + 7, (1, 1, 2)), "all voxels have the same value"),
}
MASKS = {
    "mask negative": bad_mask("not whole numbers from 0 to 255, such as -1", labelled(-1, np.int16)),
    "mask of fractions": bad_mask("1 voxels have labels that are not whole numbers", labelled(0.5)),
    "mask too large": bad_mask("such as 300", labelled(300, np.int16)),
    "mask nan": bad_mask("such as nan", labelled(np.nan)),
    "mask of another size": bad_mask("its size is 8 7 5, that of", np.zeros((5, 7, 8), np.uint8)),
    "mask of another spacing": bad_mask("its spacing is 1 1.002 2, that of", spacing=(1, 1.002, 2)),
    "mask of another origin": bad_mask("its origin is 0 0 0.002, that of", origin=(0, 0, 0.002)),
    "mask of another direction": bad_mask(
        "its direction is 1 0 0 0 -1 0 0 0 -1, that of", direction=(1, 0, 0, 0, -1, 0, 0, 0, -1)
    ),
    "mask in colours": bad_mask("is 3-D with 3 values per voxel", np.zeros((*SIZE[::-1], 3), np.uint8)),
}
DICOM = {
    "dicom two series": bad_series(two_series, "2 DICOM series"),
    "dicom slice missing": bad_series(
        lambda f, s: write_dicom(f, (0, 3, 9, 12), seed=s), "slices 2 and 3 of 4 are 6 mm apart, the others 3 mm"
    ),
    "dicom two orientations": bad_series(two_orientations, "its slices differ in orientation, for example"),
    "dicom twice in one place": bad_series(lambda f, s: write_dicom(f, (0, 3, 3, 6), seed=s), "have the same position"),
    "dicom sheared": bad_series(lambda f, s: write_dicom(f, (0, 3, 6), shift=0.2, seed=s), "as with a tilted gantry"),
    "dicom with a nifti": bad_series(with_extra_file("x.nii", b"x"), "DICOM slices and x.nii in one folder"),
    "dicom with a text": bad_series(with_extra_file("x.dcm", b"text"), "it is not a DICOM file", "/x.dcm"),
    "dicom with an empty file": bad_series(with_extra_file("x.dcm", b""), "an empty file", "/x.dcm"),
    "dicom with a fifo": bad_series(fifo_slice, "not a regular file", "/x.dcm"),
    "dicom slice cut": bad_series(
        cut_slice, "truncated or damaged: it can't be read as a DICOM slice", "/1.2.3.4-1.dcm"
    ),
}
BAD = {**STREAMS, **HEADERS, **FILES, **PIXELS, **MASKS, **DICOM}
