"""The pictures of an evaluation: Dice over the cases, and the best, median and worst case."""

from pathlib import Path

import numpy as np

from vnet_fast import plotting
from vnet_fast.data import cases
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.comparison import COMPARED
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid


def draw(config, evaluations, pairs, comparisons=()):
    """Writes the pictures of `python -m vnet_fast.evaluate`.

    Args:
        config: the `evaluate.Config`, with `figures`, a folder that is there.
        evaluations: list of `evaluation.Evaluation`.
        pairs: for each of them a list of (name, prediction, reference).
        comparisons: list of `comparison.Comparison`.

    Raises:
        InputError: if the volumes are not found, or the folder can't be written.
    """
    folder, images = Path(config.figures), images_of(config.labels, config.images)
    predictions = [{name: prediction for name, prediction, _ in each} for each in pairs]
    references = {name: reference for name, _, reference in pairs[0]}
    draw_distribution(evaluations, folder / "distribution.png")
    for comparison in comparisons:
        if comparison.metric == COMPARED[0] and comparison.differences:
            plotting.differences(
                comparison.differences, difference_title(comparison), folder / difference_name(comparison)
            )
    for words, name in chosen(evaluations[0]).items():
        if name not in images:
            cause = f"no volume of {name}, which is to be drawn"
            raise InputError(config.images or config.labels, cause, "Name the folder of the volumes with --images")
        draw_case(
            evaluations, name, words, images[name], references[name], [each.get(name) for each in predictions],
            folder / f"{words}.png", config.binary,
        )  # fmt: skip


def images_of(labels, images=None):
    """The volumes of the cases whose reference masks are in a folder.

    Args:
        labels: the folder of the reference masks.
        images: None, if they are beside the masks in a layout that `train` reads; or their folder.

    Returns:
        dict from the case's name to the path.

    Raises:
        InputError: if there are none.
    """
    if images:
        return cases.find_images(images)
    labels = Path(labels)
    data = labels.parent if labels.name == "labelsTr" else labels
    try:
        return {case.name: case.image for case in cases.pair_cases(data)[0]}
    except (InputError, InputErrors):
        raise InputError(labels, "no volumes beside the reference masks", "Name their folder with --images") from None


def chosen(evaluation):
    """The cases to look at: dict from `worst`, `median`, `best` to a name, no case twice."""
    ordered = sorted(evaluation.cases, key=evaluation.mean_dice)
    named = {"worst": ordered[0], "median": ordered[len(ordered) // 2], "best": ordered[-1]}
    if named["median"] in (named["worst"], named["best"]):
        del named["median"]
    if len(ordered) == 1:
        del named["best"]
    return named


def draw_distribution(evaluations, path, theme=plotting.LIGHT):
    """The histogram of Dice, of all sets of predictions."""
    dice = {each.name: [each.mean_dice(name) for name in each.cases] for each in evaluations}
    plotting.distribution(dice, path, theme)


def difference_title(comparison):
    """The words at a picture of differences of Dice."""
    return f"Dice of {comparison.second} less that of {comparison.first}"


def difference_name(comparison):
    """The file name of a picture of differences of Dice, of names that may be paths."""
    first, second = (
        Path(name).as_posix().strip("/.").replace("/", "-") for name in (comparison.first, comparison.second)
    )
    return f"difference-{first}-{second}-class-{comparison.label}.png"


def draw_case(evaluations, name, words, image, reference, predictions, path, binary=False, theme=plotting.LIGHT):
    """Contours of one case's reference and predictions on the same slices.

    Args:
        evaluations: list of Evaluation.
        name: of the case.
        words: why it is shown, such as "worst".
        image, reference: paths.
        predictions: for each evaluation the path of its prediction, or None.
        path: of the PNG.
        binary: whether all labels above 0 are one.
        theme: `figures.LIGHT` or `figures.DARK`.
    """
    read = volumes.read_image(image)
    mask = volumes.read_mask(reference, read, image)
    rows, several = {}, len(evaluations) > 1
    for evaluation, prediction in zip(evaluations, predictions, strict=True):
        if prediction is not None:
            shown = f"{evaluation.name}\nDice {evaluation.mean_dice(name):.3f}" if several else ""
            rows[shown] = _array(volumes.read_mask(prediction, read, image), binary)
    dice = "" if several else f", Dice {evaluations[0].mean_dice(name):.3f}"
    plotting.overlay(
        np.array(volumes.sitk.GetArrayViewFromImage(read)),
        _array(mask, binary),
        rows,
        Grid.of(read).spacing,
        f"{name}: {words} of {len(evaluations[0].cases)} cases{dice}",
        path,
        theme,
    )


def _array(mask, binary):
    labels = np.array(volumes.sitk.GetArrayViewFromImage(mask))
    return np.minimum(labels, 1) if binary else labels
