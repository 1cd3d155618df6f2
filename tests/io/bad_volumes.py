"""Cases that must be refused: for each, how it is made and what is to be said about which file."""

import gzip
import os

import numpy as np
import SimpleITK as sitk

from tests.io.bad_makers import (
    MASK,
    SIZE,
    Bad,
    bind_socket,
    bytes_of,
    cut_slice,
    fifo_slice,
    flip,
    image_of,
    labelled,
    make_bomb,
    mask_of,
    no_file,
    number_of,
    only,
    slices,
    spiked,
    text_of,
    two_orientations,
    two_series,
    with_a,
)
from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image

SINGULAR, SHEARED, LONG = "1 0 0 1 0 0 0 0 1", "1 0 0 0.2 1 0 0 0 1", "2 0 0 0 2 0 0 0 2"
DIRECTION = "TransformMatrix = 1 0 0 0 1 0 0 0 1"
SPACING, SIZES = "ElementSpacing = 1 1 2", "DimSize = 8 7 6"


def _nrrd(old, new, words, suffix=".nrrd"):
    return text_of(old, new, words, suffix)


OUTSIDE, SHORT = "its data file lies outside its folder", "truncated"
NOT_PERPENDICULAR = "whose axes are not perpendicular and of length 1"
NOISE = np.random.default_rng(7).bytes(3000)
DIRECTIONS = "space directions: (1,0,0) (0,1,0) (0,0,2)"

STREAMS = {
    "gzip cut in half": bytes_of(lambda c: c[: len(c) // 2], ".nii.gz", "truncated: the compressed data ends early"),
    "gzip without its end": bytes_of(lambda c: c[:-4], ".nii.gz", "truncated: the compressed data ends early"),
    "gzip with a wrong checksum": bytes_of(lambda c: c[:-8] + b"abcd" + c[-4:], ".nii.gz", "CRC check failed"),
    "gzip damaged": bytes_of(flip, ".nii.gz", "damaged gzip data"),
    "gzip that is none": bytes_of(gzip.decompress, ".nii.gz", "damaged gzip data (Not a gzipped file"),
    "gzip with more behind": bytes_of(lambda c: c + b"more", ".nii.gz", "damaged gzip data"),
    "gzip bomb": bytes_of(make_bomb, ".nii.gz", "longer than the 672 bytes"),
    "gzip bomb by its header": number_of("<3h", 42, (1000, 1000, 1000), "compressed bytes can't be the 2000000352"),
    "zlib cut": bytes_of(lambda c: c[:-9], ".mhd", SHORT, True, ".zraw"),
    "zlib damaged": bytes_of(flip, ".mhd", "damaged compressed data", True, ".zraw"),
    "zlib with more behind": bytes_of(lambda c: c + b"more", ".mhd", "longer than its compressed data", True, ".zraw"),
    "nrrd gzip cut": bytes_of(lambda c: c[:-9], ".nrrd", SHORT, True),
    "nrrd gzip with a wrong checksum": bytes_of(lambda c: c[:-8] + b"abcd" + c[-4:], ".nrrd", "damaged compre", True),
    "nhdr gzip damaged": bytes_of(flip, ".nhdr", "damaged compressed data", True, ".raw.gz"),
    "raw shorter": bytes_of(lambda c: c[:-1], ".mhd", "truncated: 671 bytes where its header says 672", file=".raw"),
    "raw longer": bytes_of(lambda c: c + b"x", ".mhd", "longer than the 672 bytes", file=".raw"),
    "mha shorter": bytes_of(lambda c: c[:-2], ".mha", SHORT),
    "mha longer": bytes_of(lambda c: c + b"xx", ".mha", "longer than the 672 bytes"),
    "nrrd shorter": bytes_of(lambda c: c[:-2], ".nrrd", SHORT),
    "nii shorter": bytes_of(lambda c: c[:-2], ".nii", SHORT),
    "nii longer": bytes_of(lambda c: c + b"xx", ".nii", "longer than the 672 bytes"),
    "empty nii": bytes_of(lambda c: b"", ".nii", "an empty file"),
    "empty nii gz": bytes_of(lambda c: b"", ".nii.gz", "an empty file"),
    "empty mha": bytes_of(lambda c: b"", ".mha", "an empty file"),
    "empty nrrd": bytes_of(lambda c: b"", ".nrrd", "an empty file"),
    "random nii": bytes_of(lambda c: NOISE, ".nii", "not a NIfTI file"),
    "random nii gz": bytes_of(lambda c: NOISE, ".nii.gz", "damaged gzip data"),
    "random mha": bytes_of(lambda c: NOISE, ".mha", "not a MetaImage header"),
    "random nrrd": bytes_of(lambda c: NOISE, ".nrrd", "not an NRRD file"),
}

HEADERS = {
    "size zero": text_of(SIZES, "DimSize = 8 0 6", "its header says a size of 8 0 6"),
    "size negative": text_of(SIZES, "DimSize = 8 -7 6", "its header says a size of 8 -7 6"),
    "size absurd": text_of(SIZES, "DimSize = 100000 100000 100000", "says 1,000,000,000,000,000 voxels, more than"),
    "nii size zero": number_of("<h", 44, 0, "its header says a size of 8 0 6"),
    "nii size absurd": number_of("<3h", 42, (32767, 32767, 32767), "says 35,181,150,961,663 voxels, more than"),
    "nrrd size absurd": _nrrd("sizes: 8 7 6", "sizes: 100000 100000 100000", "says 1,000,000,000,000,000 voxels"),
    **{
        f"spacing {word}": text_of(SPACING, f"ElementSpacing = 1 {word} 2", f"its spacing is 1 {says} 2 mm, not from")
        for word, says in {"0": "0", "-1": "-1", "nan": "nan", "1e-9": "1e-09", "1e6": "1000000"}.items()
    },
    **{
        f"nii spacing {value}": number_of("<f", 84, value, "2 mm, not from 0.001 to 1000")
        for value in (0.0, -1.0, float("nan"), 1e-9, 1e6)
    },
    "nii two spacings": number_of("<f", 84, 1.5, "its spacing is 1 1.5 2 mm by its pixdim and 1 1 2 mm by its sform"),
    "nrrd spacing zero": _nrrd(DIRECTIONS, DIRECTIONS.replace("0,1,0", "0,0,0"), "its spacing is 1 0 2 mm, not from"),
    "nrrd spacing nan": _nrrd(DIRECTIONS, DIRECTIONS.replace("0,1,0", "0,nan,0"), "damaged header"),
    "spacing missing": text_of(SPACING, "Comment = no", "it gives no ElementSpacing"),
    "origin far away": text_of("Offset = 0 0 0", "Offset = 0 1e9 0", "its origin is 0 1e+09 0 mm, not within"),
    "direction singular": text_of(DIRECTION, f"TransformMatrix = {SINGULAR}", NOT_PERPENDICULAR),
    "direction sheared": text_of(DIRECTION, f"TransformMatrix = {SHEARED}", NOT_PERPENDICULAR),
    "direction too long": text_of(DIRECTION, f"TransformMatrix = {LONG}", NOT_PERPENDICULAR),
    "direction zero": text_of(DIRECTION, "TransformMatrix = 0 0 0 0 0 0 0 0 0", NOT_PERPENDICULAR),
    "nii direction sheared": number_of("<f", 284, 0.3, NOT_PERPENDICULAR),
    "nii direction skewed": number_of("<f12xf", 284, (0.6, -0.8), NOT_PERPENDICULAR),
    "nrrd direction sheared": _nrrd(DIRECTIONS, DIRECTIONS.replace("(0,1", "(0.3,1"), NOT_PERPENDICULAR),
    "element type unknown": text_of("MET_SHORT", "MET_STRANGE", "its ElementType MET_STRANGE is not read"),
    "nii type unknown": number_of("<h", 70, 77, "damaged header: 3 axes of type 77"),
    "nii type of another length": number_of("<h", 70, 16, "damaged header: 3 axes of type 16 with 16 bits"),
    "nii voxels within the header": number_of("<f", 108, 0, "its voxels begin at byte 0"),
    "nrrd type unknown": _nrrd("type: short", "type: strange", "its type strange is not read"),
    "nrrd encoding unknown": _nrrd("encoding: raw", "encoding: zip", "its encoding zip is not read"),
    "field misspelt": text_of("ElementSpacing", "ElementSpaceing", "'ElementSpaceing' is no field, ElementSpac"),
    "field twice": text_of(SIZES, f"{SIZES}\n{SIZES}", "DimSize after DimSize"),
    "voxels as text": text_of("BinaryData = True", "BinaryData = False", "its voxels are written as text"),
}
FILES = {
    "data file missing": text_of("NAME.raw", "nothing.raw", "its data file nothing.raw is missing"),
    "data file absolute": text_of("NAME.raw", "/etc/hostname", f"{OUTSIDE} (/etc/hostname)"),
    "data file in a parent folder": text_of("NAME.raw", "../x.raw", f"{OUTSIDE} (../x.raw)"),
    "data file is the header": text_of("NAME.raw", "NAME.mhd", "names itself as its data file"),
    "data file is the header, by a detour": text_of("NAME.raw", "./NAME.mhd", "names itself as its data file"),
    "data in a list of files": text_of("NAME.raw", "LIST", "its data is spread over several files"),
    "data file is a folder": text_of("NAME.raw", ".", "its data file . is not a regular file"),
    "nhdr absolute": text_of("NAME.raw.gz", "/etc/hostname", f"{OUTSIDE} (/etc/hostname)", ".nhdr"),
    "nhdr parent": text_of("NAME.raw.gz", "../x.raw.gz", f"{OUTSIDE} (../x.raw.gz)", ".nhdr"),
    "nhdr itself": text_of("NAME.raw.gz", "NAME.nhdr", "names itself as its data file", ".nhdr"),
    "nhdr missing": text_of("NAME.raw.gz", "nothing.gz", "its data file nothing.gz is missing", ".nhdr"),
    "folder": no_file(os.mkdir, "not a regular file"),
    "fifo": no_file(os.mkfifo, "not a regular file"),
    "socket": no_file(bind_socket, "not a regular file"),
    "symlink loop": no_file(lambda place: place.symlink_to(place), "can't be read (Too many levels of symbolic"),
    "symlink to nothing": no_file(lambda place: place.symlink_to("nowhere"), "a link to a file that is not there"),
    "data file is a fifo": no_file(os.mkfifo, "is not a regular file", ".raw", ".mhd"),
    "data file is a socket": no_file(bind_socket, "is not a regular file", ".raw", ".mhd"),
    "data file is a link to itself": no_file(lambda place: place.symlink_to(place), "is missing", ".raw", ".mhd"),
    "mask is a fifo": no_file(os.mkfifo, "not a regular file", MASK),
    "no mask": Bad(only(".mha"), "no mask for this image", ".mha"),
    "no image": Bad(only(MASK), "no image for this mask", MASK),
}
PIXELS = {
    "2-D": image_of(lambda a: make_image(a)[:, :, 0], "not a volume of scalars but 2-D"),
    "4-D": image_of(lambda a: sitk.JoinSeries([make_image(a)] * 2), "not a volume of scalars but 4-D"),
    "nii 4-D": image_of(lambda a: sitk.JoinSeries([make_image(a)] * 2), "scalars but 4-D", ".nii"),
    "vector": image_of(lambda a: sitk.Compose(*[make_image(a)] * 3), "scalars but 3-D with 3 numbers a voxel"),
    "nrrd vector": image_of(lambda a: sitk.Compose(*[make_image(a)] * 3), "not a volume of scalars", ".nrrd"),
    "nii complex": image_of(
        lambda a: sitk.RealAndImaginaryToComplex(*[make_image(a.astype(np.float32))] * 2), "with 2 numbers", ".nii"
    ),
    "nan and inf": image_of(spiked, "3 voxels are NaN and 2 infinite"),
    "constant": image_of(lambda a: make_image(a * 0 + 7, (1, 1, 2)), "all voxels have the same value"),
}
MASKS = {
    "mask negative": mask_of("no whole number from 0 to 255, such as -1", labelled(-1, np.int16)),
    "mask of fractions": mask_of("1 voxels have labels that are no whole number", labelled(0.5)),
    "mask too large": mask_of("such as 300", labelled(300, np.int16)),
    "mask nan": mask_of("such as nan", labelled(np.nan)),
    "mask of another size": mask_of("its size is 8 7 5, that of", np.zeros((5, 7, 8), np.uint8)),
    "mask of another spacing": mask_of("its spacing is 1 1.002 2, that of", spacing=(1, 1.002, 2)),
    "mask of another origin": mask_of("its origin is 0 0 0.002, that of", origin=(0, 0, 0.002)),
    "mask of another direction": mask_of(
        "its direction is 1 0 0 0 -1 0 0 0 -1, that of", direction=(1, 0, 0, 0, -1, 0, 0, 0, -1)
    ),
    "mask in colours": mask_of("scalars but 3-D with 3 numbers", np.zeros((*SIZE[::-1], 3), np.uint8)),
}
DICOM = {
    "dicom two series": slices(two_series, "2 DICOM series"),
    "dicom slice missing": slices(
        lambda f, s: write_dicom(f, (0, 3, 9, 12), seed=s), "slices 2 and 3 of 4 are 6 mm apart, the others 3 mm"
    ),
    "dicom two orientations": slices(two_orientations, "slices of several orientations, as"),
    "dicom twice in one place": slices(lambda f, s: write_dicom(f, (0, 3, 3, 6), seed=s), "are in the same place"),
    "dicom sheared": slices(lambda f, s: write_dicom(f, (0, 3, 6), shift=0.2, seed=s), "as by a tilted gantry"),
    "dicom with a nifti": slices(with_a("x.nii", b"x"), "DICOM slices and x.nii in one folder"),
    "dicom with a text": slices(with_a("x.dcm", b"text"), "it is not a DICOM file", "/x.dcm"),
    "dicom with an empty file": slices(with_a("x.dcm", b""), "an empty file", "/x.dcm"),
    "dicom with a fifo": slices(fifo_slice, "not a regular file", "/x.dcm"),
    "dicom slice cut": slices(cut_slice, "", "/1.2.3.4-1.dcm"),
}
BAD = {**STREAMS, **HEADERS, **FILES, **PIXELS, **MASKS, **DICOM}
