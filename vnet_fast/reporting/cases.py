"""Shows the held-out cases: the pictures of the best, median and worst one, and all of them slice by slice."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.figures import choose_cases, read_case
from vnet_fast.evaluation.tables import number
from vnet_fast.progress import track
from vnet_fast.regions import Region
from vnet_fast.reporting.html import Picture
from vnet_fast.reporting.pictures import draw_picture
from vnet_fast.reporting.subjects import Subject
from vnet_fast.reporting.viewer import MAX_CASES, CaseInView, Viewer, make_viewer, pack

RANKS = {
    "worst": "the lowest Dice",
    "median": "the median Dice",
    "best": "the highest Dice",
}


def show_cases(
    subjects: Sequence[Subject], evaluations: Sequence[Evaluation], unions: Sequence[Region], folder: Path
) -> tuple[list[Picture], Viewer]:
    """Draws the best, median and worst case, and packs all for the viewer; each is read once.

    Args:
        subjects: the runs.
        evaluations: of the runs, in the same order.
        unions: of labels, which are the classes if there are any.
        folder: where the pictures are written.

    Returns:
        the pictures, the worst case first, and the viewer.

    Raises:
        InputError: if a volume or mask can't be read.
    """
    files = {case.name: case for case in subjects[0].cases}
    predictions = [{case.name: case.prediction for case in subject.cases} for subject in subjects]
    binary = subjects[0].settings["binary"]
    ranks = {name: rank for rank, name in choose_cases(evaluations[0]).items()}
    shown = [name for name in worst_first(evaluations) if name in files]
    pictures, packed, number_shown = {}, [], min(len(shown), MAX_CASES)
    labels = evaluations[0].mask_labels
    for index, name in enumerate(track(shown, "drawing", "cases")):
        if index >= number_shown and name not in ranks:
            continue
        masks = [
            by_name.get(name) if name in evaluation.cases else None
            for by_name, evaluation in zip(predictions, evaluations, strict=True)
        ]
        figure = read_case(
            evaluations, name, ranks.get(name, ""), files[name].image, files[name].reference, masks, binary
        )
        dice = _dice(evaluations, name)
        if name in ranks:
            rank = ranks[name]
            alt = f"Three slices of {name} with contours of reference and prediction."
            pictures[rank] = draw_picture(folder, rank, figure.draw, alt, f"{name}, {RANKS[rank]}: Dice {dice}.")
        if index < number_shown:
            drawn = iter(figure.predictions.values())
            predicted = [next(drawn) if mask else None for mask in masks]
            title = f"{name}, Dice {dice if len(evaluations) > 1 else number(evaluations[0].mean_dice(name), 3)}"
            packed.append(CaseInView(name, title, pack(figure, predicted, number_shown, labels)))
    return [pictures[rank] for rank in RANKS if rank in pictures], make_viewer(evaluations, unions, packed)


def _dice(evaluations: Sequence[Evaluation], name: str) -> str:
    """The mean Dice of a case in each run that has it."""
    return ", ".join(
        f"{evaluation.name} {number(evaluation.mean_dice(name), 3)}"
        for evaluation in evaluations
        if name in evaluation.cases
    )


def worst_first(evaluations: Sequence[Evaluation]) -> list[str]:
    """The names of the cases by the Dice of the first run; then those that only other runs have."""
    first = evaluations[0]
    others = [name for evaluation in evaluations[1:] for name in evaluation.cases if name not in first.cases]
    # cases without any structure, which have no Dice, come last
    ordered = sorted(first.cases, key=lambda name: np.nan_to_num(first.mean_dice(name), nan=2.0))
    return ordered + list(dict.fromkeys(others))


def explain_overlays(evaluations: Sequence[Evaluation]) -> str:
    """What the pictures of the best, median and worst case show."""
    text = (
        "Contours of the reference (solid) and of the prediction (dashed) on three axial slices in radiological "
        "orientation: the patient's right (R) is on the left"
    )
    if len(evaluations) > 1:
        text += f". The cases are chosen by the Dice of {evaluations[0].name}; all runs show the same slices"
    return text + "."


def explain_viewer(viewer: Viewer, evaluation: Evaluation) -> str:
    """How the viewer is used, and which cases it lacks."""
    text = (
        "Scroll through a picture with the mouse wheel, with the arrow keys, Page Up, Page Down, Home and End, or with "
        "a horizontal swipe. Click or tap on a place to see it in the other planes."
    )
    if len(viewer.cases) < len(evaluation.cases):
        text += f" Of {len(evaluation.cases)} cases, these are the {len(viewer.cases)} with the lowest Dice."
    return text
