"""The ranges of the options that say the network's grid."""

from collections.abc import Sequence

from vnet_fast.errors import InputError
from vnet_fast.nn.topology import DOWN_FACTOR, are_halvings
from vnet_fast.run.fields import MAX_SPACING, MIN_SPACING


def check_grid_options(volume: Sequence[int | str], spacing: Sequence[float | str]) -> None:
    """Raises an InputError unless the options of a grid are three numbers each, and the spacing may be one."""
    for flag, values in (("--volume", volume), ("--spacing", spacing)):
        if len(values) != 3 or any(isinstance(value, str) for value in values):
            raise InputError(flag, f"must be three numbers; got {' '.join(map(str, values))}", "Give x, y and z")
    if not all(MIN_SPACING <= float(length) <= MAX_SPACING for length in spacing):
        cause = f"must be from {MIN_SPACING:g} to {MAX_SPACING:g} mm; got {' '.join(map(str, spacing))}"
        raise InputError("--spacing", cause, "Give it in mm")


def check_size(volume: Sequence[int], halvings: Sequence[int] | None, levels: int) -> None:
    """Raises an InputError unless a network halves each axis as often as it may, and a volume that often.

    Args:
        volume: voxels, x y z.
        halvings: along x y z; None: as often as there are steps.
        levels: resolutions of the network.
    """
    steps = levels - 1
    halvings = (steps,) * 3 if halvings is None else halvings
    if not are_halvings(halvings, levels):
        cause = f"must be from 0 to {steps}, the steps of {levels} levels, and {steps} along one axis"
        raise InputError("--halvings", f"{cause}; got {' '.join(map(str, halvings))}", "Leave it out for all steps")
    smallest = [DOWN_FACTOR**count for count in halvings]
    if any(length < least for length, least in zip(volume, smallest, strict=True)):
        needed = f"{smallest[0]} along each axis" if len(set(smallest)) == 1 else " x ".join(map(str, smallest))
        cause = f"must be at least {needed}; got {' '.join(map(str, volume))}"
        raise InputError("--volume", cause, "Enlarge it")
