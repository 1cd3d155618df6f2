"""Writes DICOM Segmentations with highdicom, which is imported when it is needed.

A segmentation belongs to the patient, the study and the frame of reference of the series that it was made of, and
its frames lie where the slices of this series do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.errors import InputError
from vnet_fast.io import dicom
from vnet_fast.io.dicom_elements import read_elements, reading, silently
from vnet_fast.io.grid import Grid
from vnet_fast.io.writing import write_file

# what a slice must say
NEEDED = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
)  # fmt: skip
# what it may leave empty, but every object has
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# of probabilities, which have 8 bits
LEVELS = 255
# the encoding of text that has all characters
UNICODE = "ISO_IR 192"
MAX_SERIES_NUMBER = 2**31 - 1
OTHER_OUTPUT = "Choose another --output, such as a .nii.gz file"


@dataclass(frozen=True)
class Code:
    """A coded concept.

    Args:
        value: of the code, such as `41216001`.
        scheme: the scheme that it belongs to, such as `SCT`.
        meaning: in words.
    """

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Segment:
    """What a segmentation says about one of its segments.

    Args:
        name: of the class.
        category: of the segmented property.
        kind: type of the segmented property.
        colour: red, green and blue, 0 to 255.
        tracking_id: by which the structure is known in the user's place; empty for none.
        tracking_uid: its identifier in the world; empty for a new one if there is a `tracking_id`.
        description: empty for none.
    """

    name: str
    category: Code
    kind: Code
    colour: tuple[int, int, int]
    tracking_id: str = ""
    tracking_uid: str = ""
    description: str = ""


@dataclass(frozen=True)
class Maker:
    """The program that makes a segmentation: its name and its version."""

    name: str
    version: str


def read_slices(folder: Path) -> list[Any]:
    """Reads the headers of a series that a segmentation refers to.

    Args:
        folder: of its slices.

    Returns:
        pydicom's Datasets without voxels, in the order in which `dicom.read_series` stacks the slices.

    Raises:
        InputError: if a slice can't be read, or lacks what a segmentation must refer to.
    """
    slices = []
    for path in dicom.sorted_files(folder):
        header = read_elements(path, stop_before_pixels=True)
        with reading(path):
            if int(header.get("NumberOfFrames") or 1) > 1:
                raise InputError(path, "has several frames, of which no DICOM Segmentation is written", OTHER_OUTPUT)
            missing = next((name for name in NEEDED if header.get(name) in (None, "")), None)
            for name in MAY_BE_EMPTY:
                if name not in header:
                    setattr(header, name, "")
        if missing is not None:
            cause = f"lacks {missing}, to which a DICOM Segmentation must refer"
            raise InputError(path, cause, OTHER_OUTPUT)
        slices.append(header)
    return slices


def write_segments(
    voxels: NDArray[Any], grid: Grid, path: Path, slices: Sequence[Any], segments: Sequence[Segment], maker: Maker
) -> None:
    """Writes a segmentation, whole or not at all.

    Args:
        voxels: (z, y, x) uint8 labels, 0 for background and 1, 2, … for the segments; or (z, y, x, S) uint8, 0 or 1 for
            each segment, which may overlap; or (z, y, x, S) float32, the probability of each.
        grid: of the voxels, which is that of the series.
        path: of the file; its folder must exist.
        slices: the result of `read_slices`.
        segments: S of them.
        maker: of the object.

    Raises:
        InputError: if it can't be made or written.
    """
    try:
        with silently():
            write_file(path, _make(voxels, grid, slices, segments, maker).save_as)
    # of values that the standard does not allow, which highdicom checks
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(path, f"no DICOM Segmentation can be made of its series ({error})", OTHER_OUTPUT) from None


def _make(voxels: NDArray[Any], grid: Grid, slices: Sequence[Any], segments: Sequence[Segment], maker: Maker) -> Any:
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription

    is_fractional, first = voxels.dtype == np.float32, slices[0]
    if is_fractional:
        # rounded as they are stored, so that frames without any are left out
        voxels = np.round(voxels * np.float32(LEVELS)) / np.float32(LEVELS)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=maker.name, version=maker.version, family=_concept(Code("123110", "DCM", "Artificial Intelligence"))
    )
    described = []
    for number, segment in enumerate(segments, start=1):
        tracking_uid = segment.tracking_uid or (highdicom.UID() if segment.tracking_id else None)
        item = SegmentDescription(
            number, segment.name, _concept(segment.category), _concept(segment.kind),
            SegmentAlgorithmTypeValues.AUTOMATIC, algorithm, tracking_uid, segment.tracking_id or None,
            display_color=highdicom.color.CIELabColor.from_rgb(*segment.colour),
        )  # fmt: skip
        if segment.description:
            item.SegmentDescription = segment.description
        described.append(item)
    x, y, gap = grid.spacing
    thickness = float(first.get("SliceThickness") or gap)
    for header in slices:
        # highdicom takes it from there, whatever measures it is given
        if not header.get("SliceThickness"):
            header.SliceThickness = f"{thickness:.10g}"
    return Segmentation(
        slices, voxels, "FRACTIONAL" if is_fractional else "BINARY", described,
        series_instance_uid=highdicom.UID(),
        # a number that a study's own series seldom have, and above 0
        series_number=min(max(0, int(first.get("SeriesNumber") or 0)) * 100 + 1 + is_fractional, MAX_SERIES_NUMBER),
        sop_instance_uid=highdicom.UID(), instance_number=1, max_fractional_value=LEVELS,
        manufacturer=maker.name, manufacturer_model_name=maker.name, software_versions=maker.version,
        # an empty segmentation needs a frame
        omit_empty_frames=bool(voxels.any()),
        # a program has none, and there must be one
        device_serial_number="none",
        content_label="PROBABILITY" if is_fractional else "SEGMENTATION",
        content_description=f"{'Probabilities' if is_fractional else 'Segmentation'} by {maker.name}",
        series_description=f"{maker.name} {'probabilities' if is_fractional else 'segmentation'}",
        pixel_measures=highdicom.PixelMeasuresSequence((y, x), thickness, gap),
        specific_character_set=UNICODE,
    )  # fmt: skip


def _concept(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)
