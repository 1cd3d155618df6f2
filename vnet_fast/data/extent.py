"""Whether volumes exceed the network's grid, so that patches of whole volumes are trained on."""

from collections.abc import Sequence

from vnet_fast.data.cases import Case
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.errors import InputError
from vnet_fast.progress import track

# by which a volume may be larger than the network's grid before patches are trained on
MARGIN = 1 / 8


def exceed(prepared: Sequence[PreparedCase], size: Sequence[int]) -> bool:
    """Whether volumes are larger than the network's grid of a size by more than MARGIN along an axis."""
    return any(_exceeds(case.covering_size, size) for case in prepared)


def headers_exceed(cases: Sequence[Case], spacing: Sequence[float], size: Sequence[int]) -> bool:
    """Whether volumes exceed the network's grid by the headers of their files, without their voxels.

    Args:
        cases: Cases. One whose header can't be read does not count here, and is reported when it is prepared.
        spacing: of the network's grid, mm, x y z.
        size: of the network's grid, voxels, x y z.

    Returns:
        what `exceed` says of the prepared cases; False if there is no image library.
    """
    try:
        from vnet_fast.io.grid import covering_size_of
        from vnet_fast.io.volumes import read_grid
    except ModuleNotFoundError:
        return False
    for case in track(cases, "reading headers", "cases"):
        try:
            covering = covering_size_of(read_grid(case.image), spacing, size)
        except InputError:
            continue
        if _exceeds(covering, size):
            return True
    return False


def _exceeds(covering: Sequence[int], size: Sequence[int]) -> bool:
    return any(whole > length * (1 + MARGIN) for whole, length in zip(covering, size, strict=True))
