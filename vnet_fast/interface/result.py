"""What the segmentation of a volume returns."""

import contextlib
import functools
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.data.classes import title_of
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder
from vnet_fast.interface.picture import draw
from vnet_fast.io import writing
from vnet_fast.io.dicom_seg_writing import read_slices
from vnet_fast.io.formats import is_dicom_output
from vnet_fast.io.grid import Grid
from vnet_fast.prediction.dicom_output import of_series, segment_titles, wants_dicom
from vnet_fast.prediction.plan import check_not_among_slices, check_nothing_is_replaced, check_series
from vnet_fast.prediction.segmentation import Segmentation
from vnet_fast.prediction.segments import read_segments

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHERE = "Choose another path"


@contextlib.contextmanager
def _without_options() -> Iterator[None]:
    """Makes remedies of errors name what there is in Python, and no option of the command."""
    try:
        yield
    except InputError as error:
        remedy = error.remedy.replace(", or leave --dicom-seg out", "").replace("another --output", "another path")
        raise InputError(error.subject, error.cause, remedy) from None


class Result:
    """The segmentation of a volume, on the volume's own grid.

    Only the probabilities on the network's grid are kept. Everything else is computed when it is asked for. Labels,
    probabilities and entropy are kept then; `del result.probabilities` frees them, and `del result.entropy`.

    Args:
        segmentation: of the volume.
        image: the volume, or its first channel.
        files: of the volume, which are never replaced.
        all_components: whether the mask has all connected components, and not only the largest one of each class.
    """

    def __init__(
        self, segmentation: Segmentation, image: sitk.Image, files: Sequence[Path] = (), all_components: bool = False
    ) -> None:
        self.segmentation, self.image, self.files = segmentation, image, tuple(files)
        self.all_components = all_components

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The label of each voxel, (z, y, x) uint8; 0 is background. They can be corrected in place: mask, volumes,
        picture and saved file are made of them.
        """
        return self._labels

    @functools.cached_property
    def _labels(self) -> NDArray[np.uint8]:
        return self.segmentation.labels(self.all_components)

    @property
    def mask(self) -> sitk.Image:
        """The labels as a SimpleITK image, uint8, with size, spacing, origin and direction of the volume."""
        return self.segmentation.grid.image_from(self.labels)

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """The probabilities, (K, z, y, x) float32: of all labels from 0, the background, on; or of the regions."""
        segmentation = self.segmentation
        first = 1 if segmentation.regions else 0
        count = len(segmentation.network_probabilities)
        probabilities = np.empty((count, *segmentation.grid.shape), np.float32)
        for number in range(count):
            probabilities[number] = segmentation.probability(first + number)
        return probabilities

    @functools.cached_property
    def entropy(self) -> NDArray[np.float32]:
        """How uncertain the network is about each voxel, (z, y, x) float32: the entropy of its probabilities, in nats.

        It is 0 where one class is certain, and ln K where K classes are equally probable. Of regions it is the mean of
        their binary entropies, at most ln 2.
        """
        return self.segmentation.entropy()

    @property
    def volumes_ml(self) -> dict[str | int, float]:
        """The volume of each class in ml, by its name, or by its label if it has no name of its own."""
        voxel = math.prod(self.segmentation.grid.spacing) / 1000
        return {name: int(np.count_nonzero(voxels)) * voxel for name, voxels in self._structures()}

    def _structures(self) -> Iterator[tuple[str | int, NDArray[np.bool_]]]:
        """The voxels of each foreground class or region, with its name or its label."""
        regions = self.segmentation.regions
        for region in regions:
            yield region.name, region.of(self.labels)
        for label in range(1, 1 if regions else len(self.segmentation.network_probabilities)):
            yield self._name(label), self.labels == label

    def _name(self, label: int) -> str | int:
        names = self.segmentation.class_names
        name = names.get(label)
        return name if name and Counter(names.values())[name] == 1 else label

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the voxels, mm, x y z."""
        return self.segmentation.grid.spacing

    def save(self, path: "str | os.PathLike[str]", segments: "str | os.PathLike[str] | None" = None) -> None:
        """Writes the mask, as the command does: in the format of the path's suffix, with the names of the labels.

        Args:
            path: of the file; NAME.dcm is a DICOM Segmentation, if the volume is a DICOM series.
            segments: TOML file with codes, colours and more of the classes for a DICOM Segmentation.

        Raises:
            InputError: if it can't be written, would replace the volume, or lie among the slices of a series.
        """
        if segments is not None and not is_dicom_output(os.fspath(path)):
            raise InputError(path, "segments describe a DICOM Segmentation", "Name a .dcm file, or leave segments out")
        wants_segmentation = wants_dicom(os.fspath(path), False, None if segments is None else os.fspath(segments))
        target = self._writable(path)
        with _without_options():
            segmentation = self._of_series(target, segments) if wants_segmentation else self.segmentation
            segmentation.write_mask(target, labels=self.labels)

    def _of_series(self, target: Path, segments: "str | os.PathLike[str] | None") -> Segmentation:
        """The segmentation as one that writes DICOM."""
        if not self.files:
            raise InputError(target, "the volume was given without the files of its DICOM series", WHERE)
        check_series([(self.files, target)])
        given = None if segments is None else os.fspath(segments)
        titles = {number: self._title(name) for number, (name, _) in enumerate(self._structures(), start=1)}
        described = read_segments(given, segment_titles(titles, self.segmentation.regions))
        return of_series(self.segmentation, read_slices(self.files[0]), described)

    @staticmethod
    def _title(name: str | int) -> str:
        return name if isinstance(name, str) else title_of(name, {})

    def save_entropy(self, path: "str | os.PathLike[str]") -> None:
        """Writes the entropy as float32.

        Raises:
            InputError: if it can't be written, would replace the volume, or lie among the slices of a series.
        """
        writing.write(self.entropy, self.segmentation.grid, self._writable(path))

    def _writable(self, path: "str | os.PathLike[str]") -> Path:
        """A path that may be written; its folder is made."""
        target = Path(path)
        try:
            check_nothing_is_replaced(self.files, [target])
            check_not_among_slices([target])
        except InputError as error:
            raise InputError(error.subject, error.cause, WHERE) from None
        make_folder(target.parent, WHERE)
        return target

    def show(self, title: str = "") -> "Figure":
        """Draws the contours of the mask on three slices, from the patient's feet to the head.

        Args:
            title: above the picture; by default the name of the volume.

        Returns:
            a matplotlib Figure, which a notebook shows; `figure.savefig("picture.png")` writes it.

        Raises:
            InputError: if matplotlib is not installed.
        """
        structures = ((self._title(name), voxels) for name, voxels in self._structures())
        return draw(self.image, structures, title or (self.files[0].name if self.files else ""))

    def __repr__(self) -> str:
        grid: Grid = self.segmentation.grid
        size, spacing = (" x ".join(f"{value:g}" for value in values) for values in (grid.size, grid.spacing))
        return f"Result({self.files[0].name + ', ' if self.files else ''}{size} voxels of {spacing} mm)"
