"""The settings of augmentation: how often and how far training volumes are changed."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vnet_fast.command_line import natural_float, option
from vnet_fast.errors import InputError

# beyond these a volume is not recognised, or nothing of it is left
MAX_DEGREES, MAX_FACTOR, MAX_NOISE = 180, 10, 10
AXES = "xyz"
# the value of --flip that mirrors nothing
NO_FLIP = "none"


def probability(default: float, help: str) -> float:
    """An option of a probability alone."""
    chance: float = option(default, f"{help}, with probability P", type=natural_float, metavar="P")
    return chance


def chance_and_range(default: tuple[float, ...], help: str, *names: str) -> tuple[float, ...]:
    """An option of a probability and of what is drawn with it."""
    values: tuple[float, ...] = option(
        default, f"{help}, with probability P", type=natural_float, nargs=1 + len(names), metavar=("P", *names)
    )
    return values


@dataclass(frozen=True)
class Augmentation:
    """How training volumes are changed. The defaults are the paper's: deformation and matching alone.

    Each value is a probability, that of one volume in one iteration, and a range. Factors are drawn so that a factor
    and its inverse are as likely; everything else is drawn evenly.
    """

    deformation: float = probability(0.5, "deform by B-splines")
    matching: float = probability(1.0, "take another volume's histogram")
    # degrees, about z and about x and y
    rotation: tuple[float, ...] = chance_and_range(
        (0.0, 30.0, 30.0), "rotate by up to DEGREES in the slices, and tilt them by up to TILT", "DEGREES", "TILT"
    )
    scaling: tuple[float, ...] = chance_and_range((0.0, 0.7, 1.4), "scale by a factor", "LOW", "HIGH")
    flip: str = option(
        NO_FLIP, "axes to mirror half of the volumes along; --flip alone means x, left and right", nargs="?", const="x",
        choices=(NO_FLIP, "x", "y", "z", "xy", "xz", "yz", "xyz"),
    )  # fmt: skip
    # intensities have zero mean and unit variance over the foreground
    brightness: tuple[float, ...] = chance_and_range((0.0, 0.75, 1.25), "multiply intensities", "LOW", "HIGH")
    contrast: tuple[float, ...] = chance_and_range(
        (0.0, 0.75, 1.25), "multiply intensities within their range", "LOW", "HIGH"
    )
    gamma: tuple[float, ...] = chance_and_range((0.0, 0.7, 1.5), "raise intensities to a power", "LOW", "HIGH")
    # standard deviation, in standard deviations of the foreground
    noise: tuple[float, ...] = chance_and_range((0.0, 0.3), "add noise of a deviation up to SIGMA", "SIGMA")
    # of the distance between voxels
    low_resolution: tuple[float, ...] = chance_and_range((0.0, 2.0), "read a lattice coarser by up to FACTOR", "FACTOR")

    @property
    def transforms(self) -> bool:
        """Whether volumes change in more ways than the paper's."""
        ranges = (
            self.rotation, self.scaling, self.brightness, self.contrast, self.gamma, self.noise, self.low_resolution,
        )  # fmt: skip
        return self.flip != NO_FLIP or any(chance > 0 for chance, *_ in ranges)


def check_augmentation(augmentation: Augmentation) -> None:
    """Raises an InputError if a setting is out of its range."""
    for name in ("deformation", "matching"):
        _check_chance(name, getattr(augmentation, name))
    for name, largest in (("rotation", MAX_DEGREES), ("noise", MAX_NOISE), ("low_resolution", MAX_FACTOR)):
        chance, *values = getattr(augmentation, name)
        _check_chance(name, chance)
        _check(name, max(values) <= largest, f"must be at most {largest:g}", max(values))
    factor = augmentation.low_resolution[1]
    _check("low_resolution", factor >= 1, "must be at least 1", factor)
    for name in ("scaling", "brightness", "contrast", "gamma"):
        chance, low, high = getattr(augmentation, name)
        _check_chance(name, chance)
        cause = f"must be from {1 / MAX_FACTOR:g} to {MAX_FACTOR:g}, the lower one first"
        _check(name, 1 / MAX_FACTOR <= low <= high <= MAX_FACTOR, cause, f"{low:g} {high:g}")


def check_off(given: Mapping[str, Any]) -> None:
    """Raises an InputError if augmentation is given beside `no_augment`, which would turn it off silently.

    Args:
        given: dict from option to value, without those of a recipe.
    """
    for field in fields(Augmentation) if given.get("no_augment") else ():
        value = given.get(field.name, NO_FLIP)
        chance = value[0] if isinstance(value, tuple) else value
        if chance not in (0, NO_FLIP):
            flag = "--" + field.name.replace("_", "-")
            raise InputError(flag, "given with --no-augment", "Give one of them")


def changes_to_the_papers(settings: Mapping[str, Any]) -> str:
    """The settings that are not the paper's, as in `rotation 0.2 30 30, flip x`.

    Args:
        settings: dict from name to value, as from `asdict` of a Config.
    """
    changed = [field for field in fields(Augmentation) if settings[field.name] != field.default]
    return ", ".join(f"{field.name.replace('_', ' ')} {_shown(settings[field.name])}" for field in changed)


def _shown(value: object) -> str:
    return " ".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


def _check_chance(name: str, chance: float) -> None:
    _check(name, chance <= 1, "must have a probability from 0 to 1", chance)


def _check(name: str, is_allowed: bool, cause: str, value: float | str) -> None:
    if not is_allowed:
        shown = value if isinstance(value, str) else f"{value:g}"
        raise InputError("--" + name.replace("_", "-"), f"{cause}; got {shown}", "See --help for its form")
