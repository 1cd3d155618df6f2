"""Checks that the segments of DICOM Segmentations are the labels that their names say.

Masks are compared by labels, which are the numbers of segments. Another program may number the same structures in
another way, and a segmentation of regions numbers them in their order, while regions are measured by labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.evaluation import Pair
from vnet_fast.io.dicom_meta import is_segmentation
from vnet_fast.io.dicom_seg import read_names
from vnet_fast.regions import Region

REMEDY = "Name a mask of labels, such as a .nii.gz file, or number its segments by the labels"
# what a segment has room for
MAX_NAME = 64
# from a name to (numbers that a segment of this name may have, the labels in words)
Meanings = dict[str, list[tuple[set[int], str]]]


def check_names(pairs: Iterable[Pair], names: Mapping[int, str], regions: Sequence[Region] = ()) -> None:
    """Checks the segments of masks that have the name of a class or region, or of a segment of their reference.

    Args:
        pairs: (name of the case, prediction, reference).
        names: dict from label to name of the classes that have one.
        regions: that are measured instead of labels.

    Raises:
        InputErrors: for all masks with a segment whose number is not the label of its name.
    """
    known = _meanings(names.items())
    for region in regions:
        # a label of other regions too would make the segment part of them
        own = {n for n in region.labels if not any(n in other.labels for other in regions if other is not region)}
        numbers = own if len(region.labels) > 1 else set(region.labels)
        known.setdefault(_key(region.name), []).append((numbers, _in_words(region.labels)))
    errors: dict[Path, InputError] = {}
    for _, prediction, reference in pairs:
        theirs = _names_in(reference)
        found = {reference: _error(reference, theirs, known)}
        meanings = {key: [*known.get(key, ()), *own] for key, own in _meanings(theirs.items()).items()}
        found[prediction] = _error(prediction, _names_in(prediction), known | meanings)
        errors |= {path: error for path, error in found.items() if error}
    if errors:
        raise InputErrors(list(errors.values()))


def _meanings(names: Iterable[tuple[int, str]]) -> Meanings:
    meanings: Meanings = {}
    for label, name in names:
        meanings.setdefault(_key(name), []).append(({label}, _in_words([label])))
    return meanings


def _key(name: str) -> str:
    """A name as segments have it: on one line, cut, without backslashes; capital letters do not matter."""
    return " ".join(name.replace("\\", "/").split())[:MAX_NAME].casefold()


def _in_words(labels: Sequence[int]) -> str:
    return f"{'label' if len(labels) == 1 else 'the labels'} {' '.join(map(str, labels))}"


def _names_in(path: Path) -> dict[int, str]:
    """The names of a segmentation's segments; none of another mask, or of one that can't be read."""
    try:
        return read_names(path) if is_segmentation(path) else {}
    except InputError:
        # it is reported when it is compared
        return {}


def _error(path: Path, names: Mapping[int, str], known: Meanings) -> InputError | None:
    for number, name in names.items():
        meanings = known.get(_key(name), [])
        if meanings and not any(number in numbers for numbers, _ in meanings):
            return InputError(path, f"its segment {number} is {name}, and {name} is {meanings[0][1]}", REMEDY)
    return None
