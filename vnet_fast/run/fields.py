"""The fields of stored files: which values each may have, and what is said of another one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vnet_fast.errors import InputError
from vnet_fast.nn.norm import KINDS
from vnet_fast.nn.topology import KERNEL_SIZE, KERNEL_SIZES, LEVELS, MIN_LEVELS, TOPOLOGIES
from vnet_fast.regions import MAX_LABEL
from vnet_fast.stored import shown

# what a mask of uint8 can tell apart
MAX_CLASSES = 256
# far beyond any network or run, and small enough to compute with
MAX_CHANNELS = 1 << 16
MAX_LENGTH = 1 << 20
MAX_COUNT = 1 << 50
MAX_SECONDS = 1e10
# mm
MIN_SPACING, MAX_SPACING = 1e-6, 1e6


class Field(NamedTuple):
    """A field.

    Args:
        description: of the values that it may have.
        allows: whether it may have a value.
    """

    description: str
    allows: Callable[[Any], bool]


def is_whole(value: object, low: int = 0, high: int = MAX_COUNT) -> bool:
    """Whether a value is a whole number in a range; True and False are not."""
    return type(value) is int and low <= value <= high


def is_number(value: object, low: float = 0.0, high: float = math.inf) -> bool:
    """Whether a value is a finite number in a range."""
    return type(value) in (int, float) and low <= value <= high and value not in (math.inf, -math.inf)  # type: ignore[operator]  # the type is checked


def is_text(value: object) -> bool:
    """Whether a value is a text that can be printed and be part of a path."""
    return type(value) is str and "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)


def is_dice(value: object) -> bool:
    """Whether a value is a Dice, which has no value where there is nothing to find."""
    return value is None or (type(value) is float and math.isnan(value)) or is_number(value, 0, 1)


def _is_plain(value: object) -> bool:
    """Whether a value is a setting of a run."""
    entries = value if isinstance(value, list | tuple) else [value]
    return len(entries) <= MAX_ENTRIES and all(
        entry is None or type(entry) in (bool, int, float, str) for entry in entries
    )


def _is_settings(value: object) -> bool:
    return isinstance(value, dict) and all(is_text(name) and _is_plain(entry) for name, entry in value.items())


def _are_names(value: object) -> bool:
    return isinstance(value, list | tuple) and all(map(is_text, value))


def _are_three(value: object, allows: Callable[[object], bool]) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(allows, value))


def _is_dice_per_case(value: object) -> bool:
    if not isinstance(value, dict) or not all(map(is_text, value)):
        return False
    # a file may name one list many times
    lists = {id(dice): dice for dice in value.values()}.values()
    return all(map(_is_list_of_dice, lists))


def _is_list_of_dice(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) < MAX_CLASSES and all(map(is_dice, value))


def _are_channels(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(channel, dict) and channel.keys() == {"name", "scaling"} and is_text(channel["name"])
        and (channel["scaling"] is None or _is_scaling(channel["scaling"]))
        for channel in value
    )  # fmt: skip


def _are_regions(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(region, dict) and region.keys() == {"name", "labels"} and is_text(region["name"])
        and isinstance(region["labels"], list) and all(is_whole(label, 1, MAX_LABEL) for label in region["labels"])
        and len(region["labels"]) > 0
        for region in value
    )  # fmt: skip


def _is_scaling(value: object) -> bool:
    """Whether a value is the lowest and the highest intensity, a mean and a standard deviation."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    in_range = all(is_number(number, -MAX_INTENSITY, MAX_INTENSITY) for number in value)
    return in_range and value[0] < value[1] and value[3] > 0


def _is_dice_of_each(value: object) -> bool:
    return isinstance(value, dict) and all(map(is_text, value)) and all(map(is_dice, value.values()))


def _dice_fields(name: str) -> dict[str, Field]:
    """The fields of a summary about one of its validations, which may be null."""
    return {
        name: Field("a Dice", is_dice),
        f"{name}_per_class": Field("a list of Dice", lambda v: v is None or _is_list_of_dice(v)),
        f"{name}_per_case": Field("a Dice for each case", lambda v: v is None or _is_dice_of_each(v)),
        f"{name}_per_case_and_class": Field(
            "a list of Dice for each case", lambda v: v is None or _is_dice_per_case(v)
        ),
    }


# of a setting: as many as there may be regions
MAX_ENTRIES = 255
# of float32
MAX_INTENSITY = 3e38
ARCHITECTURE = {
    "in_channels": Field(f"a whole number from 1 to {MAX_CHANNELS}", lambda v: is_whole(v, 1, MAX_CHANNELS)),
    "num_classes": Field(f"a whole number from 1 to {MAX_CLASSES}", lambda v: is_whole(v, 1, MAX_CLASSES)),
    "base_channels": Field(f"a whole number from 1 to {MAX_CHANNELS}", lambda v: is_whole(v, 1, MAX_CHANNELS)),
    "topology": Field(f"one of {', '.join(TOPOLOGIES)}", lambda v: type(v) is str and v in TOPOLOGIES),
    "norm": Field(f"None or one of {', '.join(KINDS)}", lambda v: v is None or (type(v) is str and v in KINDS)),
    "levels": Field(f"a whole number from {MIN_LEVELS} to {LEVELS}", lambda v: is_whole(v, MIN_LEVELS, LEVELS)),
    "kernel_size": Field(f"one of {', '.join(map(str, KERNEL_SIZES))}", lambda v: is_whole(v) and v in KERNEL_SIZES),
    "halvings": Field(
        f"None or three whole numbers from 0 to {LEVELS - 1}",
        lambda v: v is None or (type(v) is tuple and _are_three(v, lambda n: is_whole(n, 0, LEVELS - 1))),
    ),
}
# what older checkpoints do not say
OLDER_ARCHITECTURE: dict[str, Any] = {"norm": None, "levels": LEVELS, "kernel_size": KERNEL_SIZE, "halvings": None}
GRID = {
    "spacing": Field(
        f"three numbers from {MIN_SPACING:g} to {MAX_SPACING:g}",
        lambda v: _are_three(v, lambda length: is_number(length, MIN_SPACING, MAX_SPACING)),
    ),
    "volume": Field(
        f"three whole numbers from 1 to {MAX_LENGTH}", lambda v: _are_three(v, lambda n: is_whole(n, 1, MAX_LENGTH))
    ),
    "validation": Field("a list of names", _are_names),
}
RUN = {
    "training": Field("a list of names", _are_names),
    "iteration": Field("a whole number, 0 or more", is_whole),
    "seconds": Field("a number, 0 or more", lambda v: is_number(v, 0, MAX_SECONDS)),
    "batch": Field("a whole number above 0", lambda v: is_whole(v, 1)),
    "best": Field("the best validation", lambda v: isinstance(v, dict)),
    "config": Field("the settings of a run", _is_settings),
    "optimizer": Field("the state of an optimiser", lambda v: isinstance(v, dict)),
    "scaler": Field("the state of a scaler", lambda v: isinstance(v, dict)),
    "average": Field("the average of the weights", lambda v: isinstance(v, dict)),
    "patches": Field("True or False", lambda v: type(v) is bool),
    "classes": Field("a list of names", lambda v: isinstance(v, list) and all(map(is_text, v))),
    "ignored": Field("a label from 1 to 255, or None", lambda v: v is None or is_whole(v, 1, MAX_LABEL)),
    "regions": Field("a name and labels for each region", _are_regions),
    "channels": Field("a name and a scaling for each channel", _are_channels),
}
BEST = {
    "iteration": Field("a whole number, 0 or more", is_whole),
    # -1 before the first validation
    "dice": Field("a number from -1 to 1", lambda v: is_number(v, -1, 1) or is_dice(v)),
    "per_case": Field("a list of Dice for each case", lambda v: v is None or _is_dice_per_case(v)),
    "since": Field("a whole number, 0 or more", is_whole),
}
SUMMARY = {
    "iterations": Field("a whole number, 0 or more", is_whole),
    "best_iteration": Field("a whole number, 0 or more", is_whole),
    "validations_without_gain": Field("a whole number, 0 or more", is_whole),
    "seconds": Field("a number, 0 or more", lambda v: is_number(v, 0, MAX_SECONDS)),
    "device": Field("a text", is_text),
    "precision": Field("a text", is_text),
    "classes": Field("a list of names", _are_names),
    **_dice_fields("val_dice"),
    **_dice_fields("network_grid_dice"),
}


def wrong_field(values: Mapping[Any, Any], fields: Mapping[str, Field], of: str = "its") -> str | None:
    """What is wrong with the first field that has a value that it may not have; None if there is none.

    Args:
        values: by the names of the fields; fields may be missing.
        fields: by their names.
        of: whose fields they are.
    """
    for name, field in fields.items():
        if name in values and not field.allows(values[name]):
            return f"{of} {name} must be {field.description}; got {shown(values[name])}"
    return None


def check_fields(
    values: Mapping[Any, Any], fields: Mapping[str, Field], path: str | Path, remedy: str, of: str = "its"
) -> None:
    """Raises an InputError about a file if `wrong_field` finds one."""
    wrong = wrong_field(values, fields, of)
    if wrong:
        raise InputError(path, wrong, remedy)
