"""Draws the pictures of an evaluation: Dice over the cases, and the best, median and worst case."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast import plotting
from vnet_fast.data import cases
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.comparison import COMPARED, Comparison
from vnet_fast.evaluation.evaluation import Evaluation, Pair, picture_names
from vnet_fast.evaluation.masks import label_array
from vnet_fast.evaluation.reliability import draw_calibration
from vnet_fast.evaluation.tables import number
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid
from vnet_fast.text_table import printable

DISTRIBUTION, CALIBRATION = "distribution.png", "calibration.png"
# bytes of the name of a set in the name of a file, which may have 255
LONGEST_PART = 100
# why a case is drawn
RANKS = ("worst", "median", "best")
IMAGES_HINT = "Name the folder of the volumes with --images"


def draw(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    pairs: Sequence[Sequence[Pair]],
    images: Mapping[str, Path],
    comparisons: Sequence[Comparison] = (),
    binary: bool = False,
) -> None:
    """Draws the pictures of `python -m vnet_fast.evaluate` into a folder, in place of those of an earlier evaluation.

    Args:
        folder: where the PNGs are written; it must exist.
        evaluations: one or several, of the same cases.
        pairs: for each evaluation a list of (name, prediction, reference).
        images: from the name of a case to its volume, as `find_case_images` returns it.
        comparisons: of the evaluations.
        binary: whether all labels above 0 count as one.

    Raises:
        InputErrors: for all cases that should be drawn and can't be; the others are.
    """
    folder = Path(folder)
    _remove_pictures(folder)
    draw_distribution(evaluations, folder / DISTRIBUTION)
    for comparison in comparisons:
        if comparison.metric == COMPARED[0] and comparison.differences:
            draw_difference(comparison, evaluations, folder / _file_name(comparison, evaluations))
    if any(evaluation.calibration for evaluation in evaluations):
        draw_calibration(evaluations, folder / CALIBRATION)
    _draw_cases(folder, evaluations, pairs, images, binary)


def _remove_pictures(folder: Path) -> None:
    """Removes the pictures of an earlier evaluation, which would seem to be of this one if it has no such picture."""
    names = [DISTRIBUTION, CALIBRATION, *(f"{rank}.png" for rank in RANKS)]
    for path in (*(folder / name for name in names), *folder.glob("difference-*-class-*.png")):
        path.unlink(missing_ok=True)


def _draw_cases(
    folder: Path,
    evaluations: Sequence[Evaluation],
    pairs: Sequence[Sequence[Pair]],
    images: Mapping[str, Path],
    binary: bool,
) -> None:
    """Draws the best, median and worst case; raises the InputErrors of those that can't be drawn."""
    predictions = [{name: prediction for name, prediction, _ in cases_of_set} for cases_of_set in pairs]
    references = {name: reference for name, _, reference in pairs[0]}
    errors = []
    for rank, name in choose_cases(evaluations[0]).items():
        masks = [by_name.get(name) for by_name in predictions]
        try:
            if name not in images:
                raise InputError(references[name], f"the case is to be drawn, but {name} has no volume", IMAGES_HINT)
            figure = read_case(evaluations, name, rank, images[name], references[name], masks, binary)
        except InputError as error:
            errors.append(error)
        else:
            figure.draw(folder / f"{rank}.png")
    if errors:
        raise InputErrors(errors)


def find_case_images(
    labels: str | Path, images: str | Path | None = None, names: Sequence[str] = ("",)
) -> dict[str, Path]:
    """Finds the volumes of the cases whose reference masks are in a folder.

    Args:
        labels: the folder of the reference masks, or the file of one of them.
        images: the folder of the volumes, or None if they are beside the masks in a layout that `train` reads; or the
            file of the volume of a single case.
        names: of the cases.

    Returns:
        dict from the case's name to the path of its volume.

    Raises:
        InputError: if there are no volumes, if none is of one of the cases, or if `images` is one file for several.
    """
    if images and not Path(images).is_dir():
        if len(names) > 1:
            raise InputError(images, f"one volume for {len(names)} cases", IMAGES_HINT)
        return {names[0]: Path(images)}
    found = _images_in(images) if images else _images_beside(Path(labels))
    if found.keys().isdisjoint(names):
        raise InputError(images or labels, f"no volume of any of the cases, such as {names[0]}", IMAGES_HINT)
    return found


def _images_in(folder: str | Path) -> dict[str, Path]:
    return {name: files[0] for name, files in cases.find_images(folder).items()}


def _images_beside(labels: Path) -> dict[str, Path]:
    """The volumes of a data set, by the folder of its masks or the file of one of them."""
    labels = labels if labels.is_dir() else labels.parent
    data = labels.parent if labels.name == "labelsTr" else labels
    try:
        return {case.name: case.image for case in cases.pair_cases(data)[0]}
    except (InputError, InputErrors):
        raise InputError(labels, "no volumes beside the reference masks", IMAGES_HINT) from None


def choose_cases(evaluation: Evaluation) -> dict[str, str]:
    """Chooses the cases to draw: from `worst`, `median` and `best` to a name, without repeating a case."""
    # a case without any structure has no Dice
    rated = [name for name in evaluation.cases if not math.isnan(evaluation.mean_dice(name))]
    ordered = sorted(rated, key=evaluation.mean_dice) or list(evaluation.cases)
    chosen = {"worst": ordered[0], "median": ordered[len(ordered) // 2], "best": ordered[-1]}
    if chosen["median"] in (chosen["worst"], chosen["best"]):
        del chosen["median"]
    if len(ordered) == 1:
        del chosen["best"]
    return chosen


def _measured(labels: NDArray[np.uint8], evaluation: Evaluation) -> NDArray[np.uint8]:
    """A mask's labels without those that were not measured."""
    return np.where(np.isin(labels, evaluation.mask_labels), labels, np.uint8(0))


def draw_distribution(evaluations: Sequence[Evaluation], path: Path, theme: plotting.Theme = plotting.LIGHT) -> None:
    """Draws the histogram of Dice over the cases, for all sets of predictions."""
    names = picture_names(evaluations)
    dice = {names[evaluation.name]: rated_dice(evaluation) for evaluation in evaluations}
    plotting.distribution(dice, path, theme)


def rated_dice(evaluation: Evaluation) -> list[float]:
    """The mean Dice of each case that has one."""
    dice = map(evaluation.mean_dice, evaluation.cases)
    return [value for value in dice if not math.isnan(value)]


def draw_difference(
    comparison: Comparison, evaluations: Sequence[Evaluation], path: Path, theme: plotting.Theme = plotting.LIGHT
) -> None:
    """Draws a bar for the difference of each case."""
    title = difference_title(comparison, picture_names(evaluations))
    plotting.differences(comparison.differences, title, path, theme)


def difference_title(comparison: Comparison, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """The title of a picture of differences of Dice; `names` are what it calls the sets, if not by their names."""
    first, second = (names.get(name, name) for name in (comparison.first, comparison.second))
    return f"Dice of {second} less that of {first}, {comparison.title}"


def _radiological(image: sitk.Image) -> sitk.Image:
    """The image with its axes in the order and direction in which pictures show them."""
    return sitk.DICOMOrient(image, "LPS")


def _file_name(comparison: Comparison, evaluations: Sequence[Evaluation]) -> str:
    """The file name of a picture of differences; the names of the sets may be paths, and as long as a file's may be."""
    parts = {}
    for number_of_set, (name, short) in enumerate(picture_names(evaluations).items(), start=1):
        part = printable(short).strip("/.").replace("/", "-")
        parts[name] = part if len(part.encode()) <= LONGEST_PART else f"set-{number_of_set}"
    first, second = parts[comparison.first], parts[comparison.second]
    return f"difference-{first}-{second}-class-{comparison.label}.png"


@dataclass(frozen=True)
class CaseFigure:
    """A case's volume and masks, read from their files, and the texts of its picture.

    Args:
        title: above the picture.
        image: (z, y, x) intensities, with the axes of `plotting.overlay`.
        reference: (z, y, x) labels.
        predictions: dict from the text beside a row of slices, which may be "", to (z, y, x) labels.
        grid: of the three, with its axes in the order and direction in which pictures show them.
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    predictions: dict[str, np.ndarray]
    grid: Grid

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the voxels, mm, x y z."""
        return self.grid.spacing

    def draw(self, path: Path, theme: plotting.Theme = plotting.LIGHT) -> None:
        """Draws the contours of the reference and the predictions on three slices."""
        plotting.overlay(self.image, self.reference, self.predictions, self.spacing, self.title, path, theme)


def read_case(
    evaluations: Sequence[Evaluation],
    name: str,
    rank: str,
    image_path: Path,
    reference_path: Path,
    prediction_paths: Sequence[Path | None],
    binary: bool = False,
) -> CaseFigure:
    """Reads the volume and masks of a case, so that it can be drawn in several themes.

    A label that the evaluations did not measure, such as an ignored one, is no structure: it is 0 in the masks.

    Args:
        evaluations: one or several.
        name: of the case.
        rank: why it is drawn, such as "worst"; "" if no picture of it is.
        image_path, reference_path: its files.
        prediction_paths: its predicted mask in each evaluation, or None.
        binary: whether all labels above 0 count as one.

    Raises:
        InputError: if a file can't be read, or a mask is not on the volume's grid.
    """
    # the first channel
    image = volumes.read_channels([image_path])[0]
    reference = _radiological(volumes.read_mask(reference_path, image, image_path))
    predictions, several, ignored = {}, len(evaluations) > 1, evaluations[0].ignored
    names = picture_names(evaluations)
    # where labels are merged, those of a prediction are the class itself
    not_predicted = None if binary else ignored
    for evaluation, path in zip(evaluations, prediction_paths, strict=True):
        if path is not None:
            row_title = f"{names[evaluation.name]}\nDice {number(evaluation.mean_dice(name), 3)}" if several else ""
            prediction = _radiological(volumes.read_mask(path, image, image_path))
            predictions[row_title] = _measured(label_array(prediction, binary, not_predicted), evaluation)
    dice = "" if several else f", Dice {number(evaluations[0].mean_dice(name), 3)}"
    image = _radiological(image)
    return CaseFigure(
        f"{name}: {rank} of {len(evaluations[0].cases)} cases{dice}",
        np.array(sitk.GetArrayViewFromImage(image)),
        _measured(label_array(reference, binary, ignored), evaluations[0]),
        predictions,
        Grid.of(image),
    )
