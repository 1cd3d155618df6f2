"""What the labels of masks stand for in a run: classes, regions, or voxels that do not count."""

from collections.abc import Sequence

from vnet_fast.errors import InputError
from vnet_fast.regions import IGNORE_LABEL, REGIONS, check_ignored, parse_regions

# the losses that know regions and voxels that do not count
DICE, DICE_CE = "dice", "dice-ce"


def check_labels(regions: Sequence[str] | None, ignored: int | None, binary: bool, loss: str) -> None:
    """Raises an InputError if settings of a run contradict each other.

    Args:
        regions: texts of regions, or None.
        ignored: the label whose voxels do not count, or None.
        binary: whether all labels above 0 are one class.
        loss: the name of the loss.
    """
    parsed = parse_regions(regions or ())
    for flag, given in ((REGIONS, bool(regions)), (IGNORE_LABEL, ignored is not None)):
        if given and loss not in (DICE, DICE_CE):
            raise InputError(flag, f"given with --loss {loss}", f"Give --loss {DICE} or {DICE_CE}")
    if regions and binary:
        raise InputError(REGIONS, "given with --binary", "Leave one of them out")
    check_ignored(ignored, parsed)
