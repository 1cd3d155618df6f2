"""Predictions that are written as DICOM Segmentations, beside the series that they are of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast import __version__
from vnet_fast.errors import InputError
from vnet_fast.io import formats
from vnet_fast.io.dicom_elements import check_installed
from vnet_fast.io.dicom_seg_writing import Maker, read_slices, write_segments
from vnet_fast.io.dicom_seg_writing import Segment as DicomSegment
from vnet_fast.prediction.segmentation import Segmentation
from vnet_fast.regions import Region

MAKER = Maker("vnet_fast", __version__)


@dataclass(frozen=True)
class SeriesSegmentation(Segmentation):
    """A predicted DICOM series, whose masks are DICOM Segmentations.

    Args:
        slices: the headers of the series.
        segments: what the file says about each class or region.
    """

    slices: tuple[Any, ...] = ()
    segments: tuple[DicomSegment, ...] = ()

    def write_mask(self, path: Path, all_components: bool = False, labels: NDArray[np.uint8] | None = None) -> None:
        """Writes a binary segmentation with a segment for each class, or for each region, which may overlap."""
        labels = self.labels(all_components) if labels is None else labels
        if self.regions:
            # in the same voxels as in a mask of labels, whatever regions the network predicts there
            inside = [self.regions[number - 1].of(labels) for number in numbers_of(self.regions)]
            labels = np.stack(inside, axis=-1).astype(np.uint8)
        write_segments(labels, self.grid, path, self.slices, self.segments, MAKER)

    def write_probabilities(self, path: Path) -> None:
        """Writes a fractional segmentation NAME_probability beside the mask, with the same segments."""
        numbers = numbers_of(self.regions) or range(1, len(self.segments) + 1)
        probabilities = [self.probability(number) for number in numbers]
        beside = path.with_name(f"{formats.stem_of(path)}_probability{path.suffix}")
        write_segments(np.stack(probabilities, -1), self.grid, beside, self.slices, self.segments, MAKER)


def numbers_of(regions: Sequence[Region]) -> list[int]:
    """The numbers of regions, from 1 on, in the order of their segments.

    It is their own order, unless each has a single label and together they have 1, 2, …: then their segments have the
    numbers of these labels, as those of classes have.
    """
    numbers = range(1, len(regions) + 1)
    by_label = sorted(numbers, key=lambda number: regions[number - 1].labels)
    are_labels = [regions[number - 1].labels for number in by_label] == [(label,) for label in numbers]
    return by_label if are_labels else list(numbers)


def segment_titles(titles: Mapping[int, str], regions: Sequence[Region]) -> dict[int, str]:
    """What segments are called by their number.

    Args:
        titles: of the classes or regions by theirs.
        regions: of the network, if it has any.
    """
    return {place: titles[number] for place, number in enumerate(numbers_of(regions) or titles, start=1)}


def segment_series(
    files: Sequence[Path], segment_one: Callable[[Sequence[Path]], Segmentation], segments: tuple[DicomSegment, ...]
) -> SeriesSegmentation:
    """Segments a DICOM series.

    Args:
        files: a folder of slices for each channel; the segmentation refers to the first one.
        segment_one: segments a volume.
        segments: of the classes.

    Raises:
        InputError: before anything is predicted, if a slice lacks what a segmentation must refer to; or as
            `segment_one`.
    """
    slices = read_slices(files[0])
    return of_series(segment_one(files), slices, segments)


def of_series(result: Segmentation, slices: Sequence[Any], segments: tuple[DicomSegment, ...]) -> SeriesSegmentation:
    """A segmentation of a DICOM series, for its DICOM Segmentation.

    Args:
        result: of the series.
        slices: the headers of the series, from `read_slices`.
        segments: of the classes.
    """
    values = {field.name: getattr(result, field.name) for field in fields(Segmentation)}
    return SeriesSegmentation(**values, slices=tuple(slices), segments=segments)


def wants_dicom(output: str, dicom_seg: bool, segments: str | None) -> bool:
    """Whether masks are written as DICOM Segmentations, by the options of `predict`.

    Raises:
        InputError: if the options contradict each other, or a package is missing.
    """
    is_file = formats.is_dicom_output(output)
    if dicom_seg and formats.suffix_of(output) and not Path(output).is_dir():
        raise InputError("--dicom-seg", f"given with the output {output}", "Name a folder or a .dcm file")
    if segments is not None and not (dicom_seg or is_file):
        cause = "given without an output as DICOM Segmentations"
        raise InputError("--segments", cause, "Name a .dcm file as --output, or give --dicom-seg")
    if dicom_seg or is_file:
        check_installed("--dicom-seg" if dicom_seg else output, "pydicom", "highdicom")
    return dicom_seg or is_file
