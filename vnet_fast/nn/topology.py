"""The forms of V-Net: how many convolutions each stage has, how many resolutions there are, and along which axes
each step to the next one halves the resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vnet_fast.nn.norm import KINDS

# of the paper's convolutions
KERNEL_SIZE = 5
KERNEL_SIZES = (3, KERNEL_SIZE)
DOWN_FACTOR = 2
# of the paper's network; fewer leave out the coarsest
LEVELS = 5
MIN_LEVELS = 2
# of the shapes that a network of any number of levels takes
SIZE_MULTIPLE = DOWN_FACTOR ** (LEVELS - 1)


@dataclass(frozen=True)
class Topology:
    """A variant of the network.

    Args:
        left, right: how many convolutions each stage has, from the input to the output.
        wide_head: whether another such convolution, to the classes, precedes the 1x1x1 convolution.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    wide_head: bool


TOPOLOGIES = {
    # figure 2 of the paper
    "paper": Topology(left=(1, 2, 3, 3, 3), right=(3, 3, 2, 1), wide_head=False),
    # the network that the authors released
    "caffe": Topology(left=(1, 1, 2, 3, 3), right=(3, 2, 1, 1), wide_head=True),
}


def size_multiple(levels: int) -> int:
    """What each length of a shape must be a multiple of, so that nothing is padded, if every step halves every axis."""
    return int(DOWN_FACTOR ** (levels - 1))


def strides(levels: int, halvings: Sequence[int] | None = None) -> list[tuple[int, int, int]]:
    """The stride of each step to the next resolution, from the finest on, along the axes of a shape.

    Args:
        levels: resolutions.
        halvings: how many of the steps halve the resolution along each axis; None: all of them. The first steps leave
            it as it is along the axes that have fewer.
    """
    d, h, w = halvings or (levels - 1,) * 3
    steps = []
    for step in range(levels - 1):
        left = levels - 1 - step
        steps.append(tuple(DOWN_FACTOR if left <= count else 1 for count in (d, h, w)))
    return steps  # type: ignore[return-value]  # three axes


def fewer_halvings(halvings: Sequence[int] | None, levels: int) -> tuple[int, ...] | None:
    """The halvings along each axis; None if every step halves every axis, so that the same networks say the same."""
    return None if halvings is None or set(halvings) == {levels - 1} else tuple(halvings)


def check_channels(**numbers: int) -> None:
    """Raises a ValueError unless numbers of channels are positive integers."""
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer; got {value!r}")


def check_form(
    topology: str, norm: str | None, levels: int, kernel_size: int, halvings: Sequence[int] | None = None
) -> None:
    """Raises a ValueError if there is no such network; see `VNet` for the arguments."""
    if topology not in TOPOLOGIES:
        raise ValueError(f"topology must be one of {', '.join(TOPOLOGIES)}; got {topology!r}")
    if norm is not None and norm not in KINDS:
        raise ValueError(f"norm must be None or one of {', '.join(KINDS)}; got {norm!r}")
    if not isinstance(levels, int) or not MIN_LEVELS <= levels <= LEVELS:
        raise ValueError(f"levels must be a whole number from {MIN_LEVELS} to {LEVELS}; got {levels!r}")
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(f"kernel_size must be one of {', '.join(map(str, KERNEL_SIZES))}; got {kernel_size!r}")
    if halvings is not None and not are_halvings(halvings, levels):
        raise ValueError(
            f"halvings must be None or three whole numbers from 0 to {levels - 1}, one of them {levels - 1}; "
            f"got {halvings!r}"
        )


def are_halvings(halvings: Sequence[int], levels: int) -> bool:
    """Whether a network of so many resolutions can halve that often along the three axes: every step halves one."""
    whole = len(halvings) == 3 and all(type(count) is int and 0 <= count < levels for count in halvings)
    return whole and max(halvings) == levels - 1
