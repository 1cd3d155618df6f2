"""Measures the calibration of predictions by the files of probabilities beside their masks."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.calibration import Calibration
from vnet_fast.evaluation.evaluation import Evaluation, Pair
from vnet_fast.evaluation.masks import label_array, label_arrays
from vnet_fast.io import volumes
from vnet_fast.io.probabilities import PREDICT_AGAIN, ROUNDING, find_probabilities, missing_file, read_probability
from vnet_fast.progress import track
from vnet_fast.regions import Region, possible_labels
from vnet_fast.text_table import printable

# around the box of the voxels that count, mm
MARGIN = 10.0
# the share of a mask's voxels whose probability may be too low for their label, as after a repair of the mask by hand
STRAYS = 0.01
# the probability above which a voxel is in a region
IS_INSIDE = 0.5
# probabilities may be so much lower by rounding
ROUNDED = 0.999
# of files that do not fit a mask
OF_LABELS = f"{PREDICT_AGAIN}, or, of a network with regions, name them with --regions"


def calibrate(
    evaluations: Sequence[Evaluation],
    pairs: Sequence[Sequence[Pair]],
    binary: bool = False,
    unions: Sequence[Region] = (),
    ignored: int | None = None,
) -> None:
    """Measures the calibration of sets of predictions, by the files of probabilities beside their masks.

    Args:
        evaluations: of the sets, whose `calibration` is filled.
        pairs: for each set a list of (name, prediction, reference).
        binary: whether all labels above 0 count as one, whose probability is the sum of theirs.
        unions, ignored: see `evaluation.compare`.

    Raises:
        InputErrors: for all cases without probabilities, or with fewer than others; else for all whose files can't be
            read or are not of the mask, of the first set that has any.
    """
    for evaluation, cases in zip(evaluations, pairs, strict=True):
        check_numbers(cases)
        errors = []
        for name, prediction, reference in track(cases, f"calibration of {printable(evaluation.name)}", "cases"):
            try:
                measured = calibrate_case(prediction, reference, evaluation.labels, binary, unions, ignored)
            except InputError as error:
                errors.append(error)
            else:
                evaluation.calibration[name] = measured
        if errors:
            raise InputErrors(errors)


def check_numbers(cases: Sequence[Pair]) -> None:
    """Raises InputErrors of the cases of a set that have no probabilities, or fewer than another one."""
    numbers: dict[Path, int] = {}
    errors = []
    for _, prediction, _ in cases:
        try:
            numbers[Path(prediction)] = len(find_probabilities(Path(prediction)))
        except InputError as error:
            errors.append(error)
    fullest = max(numbers, key=numbers.__getitem__, default=None)
    for mask, number in numbers.items():
        if fullest and number < numbers[fullest]:
            cause = f"missing, and {fullest.name} has {numbers[fullest]} probabilities beside it"
            remedy = "Predict all cases again with --probabilities, into a new folder"
            errors.append(InputError(missing_file(mask, numbers[fullest]), cause, remedy))
    if errors:
        raise InputErrors(errors)


def calibrate_case(
    prediction_path: Path,
    reference_path: Path,
    labels: Iterable[int],
    binary: bool = False,
    unions: Sequence[Region] = (),
    ignored: int | None = None,
) -> dict[int, Calibration]:
    """Measures one case.

    Args:
        prediction_path, reference_path: of masks on the same grid; the probabilities are beside the first.
        labels: to measure.
        binary, unions, ignored: see `calibrate`.

    Returns:
        dict from label to its Calibration, which has no voxels if neither mask has the label; without labels of which
        there is no probability.
    """
    mask, reference_mask = volumes.read_masks(prediction_path, reference_path)
    files = _files_of(Path(prediction_path), mask, unions)
    prediction, reference = label_arrays(mask, reference_mask, binary, ignored)
    # no voxel has label -1
    counted = label_array(reference_mask, binary=False) != (-1 if ignored is None else ignored)
    codes, total = np.zeros(prediction.shape, np.uint16), np.zeros(prediction.shape, np.float32)
    measured = {}
    for label in labels:
        chosen = files if binary else files[label - 1 : label]
        if not chosen:
            continue
        probability = _read_together(chosen, mask, Path(prediction_path))
        predicted, expected = (
            unions[label - 1].of(array) if unions else array == label for array in (prediction, reference)
        )
        if unions:
            codes |= (probability >= IS_INSIDE * ROUNDED).astype(np.uint16) << (label - 1)
        else:
            _check_origin(chosen[0], probability[predicted], 1 / (len(files) + 1))
            total += probability
        box = _box(predicted | expected, mask)
        measured[label] = Calibration.of(probability[box][counted[box]], expected[box][counted[box]])
    if unions and len(measured) == len(unions):
        _check_order(Path(prediction_path), prediction, codes, unions)
    _check_sum(total, len(files), Path(prediction_path), OF_LABELS)
    return measured


def _files_of(mask_path: Path, mask: sitk.Image, unions: Sequence[Region]) -> list[Path]:
    """The files of the probabilities beside a mask; an InputError if they can't be those of its classes or regions."""
    files = find_probabilities(mask_path)
    if unions and len(files) != len(unions):
        cause = f"has {len(files)} probabilities beside it, and there are {len(unions)} regions"
        raise InputError(mask_path, cause, "Name the regions of the network in their order")
    highest = int(label_array(mask, binary=False).max())
    if not unions and len(files) < highest:
        raise InputError(
            missing_file(mask_path, highest), f"missing, and {mask_path.name} has label {highest}", OF_LABELS
        )
    return files


def _read_together(paths: Sequence[Path], mask: sitk.Image, mask_path: Path) -> NDArray[np.float32]:
    """The probability of any of some classes."""
    probability = read_probability(paths[0], mask, mask_path)
    for path in paths[1:]:
        probability += read_probability(path, mask, mask_path)
    _check_sum(probability, len(paths), mask_path, "Leave --binary out")
    return probability.clip(0, 1)


def _check_sum(total: NDArray[np.float32], count: int, mask_path: Path, remedy: str) -> None:
    """Raises an InputError if a sum of so many probabilities is above 1."""
    if total.max() > 1 + count * ROUNDING:
        cause = "the probabilities beside it add up to more than 1, as those of regions that overlap"
        raise InputError(mask_path, cause, remedy)


def _check_origin(path: Path, inside: NDArray[np.floating], lowest: float) -> None:
    """Raises an InputError if the most probable class of many voxels is not the one that the mask has there."""
    if inside.size and np.mean(inside < lowest * ROUNDED) > STRAYS:
        raise InputError(path, "not of the mask beside it", OF_LABELS)


def _check_order(
    mask_path: Path, prediction: NDArray[np.uint8], codes: NDArray[np.uint16], unions: Sequence[Region]
) -> None:
    """Raises an InputError if the mask is in other regions than its probabilities say, given as sums of 2 ^ i."""
    inside = np.isin(prediction, [label for region in unions for label in region.labels])
    wrong = ~possible_labels(unions)[codes[inside], prediction[inside]]
    if wrong.size and wrong.mean() > STRAYS:
        cause = "the probabilities beside it are not of the regions that it is in"
        raise InputError(mask_path, cause, f"Name the regions in the network's order, or {PREDICT_AGAIN.lower()}")


def _box(structure: NDArray[np.bool_], image: sitk.Image) -> tuple[slice, ...]:
    """The voxels of a box around a structure with a margin; none without a structure."""
    box = []
    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
        occupied = np.flatnonzero(structure.any(others))
        margin = math.ceil(MARGIN / image.GetSpacing()[2 - axis])
        box.append(slice(max(0, occupied[0] - margin), occupied[-1] + 1 + margin) if occupied.size else slice(0))
    return tuple(box)
