"""The files of volumes that have one for each channel."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats

# nnU-Net's ending of the file of a channel
CHANNEL = re.compile(r"(?P<case>.+)_(?P<number>\d{4})")
FIRST_CHANNEL = "_0000"


def join_channels(
    volumes: Mapping[str, Path], belongs: Callable[[str, str], bool]
) -> tuple[dict[str, tuple[Path, ...]], list[InputError]]:
    """Joins the channels of volumes that have a file for each, such as `CASE_0000` and `CASE_0001`.

    Args:
        volumes: paths by name.
        belongs: of a case and of a name that ends like its channel, whether it is one.

    Returns:
        the files of each volume by its name, and an InputError for each volume that lacks a channel before its last
        one, or occurs twice.
    """
    joined: dict[str, dict[int, Path]] = {}
    errors = []
    for name, path in volumes.items():
        match = CHANNEL.fullmatch(name)
        is_channel = match is not None and belongs(match["case"], name)
        case, number = (match["case"], int(match["number"])) if match is not None and is_channel else (name, 0)
        if number in joined.setdefault(case, {}):
            errors.append(InputError(path, f"the same case as {joined[case][number].name}", "Keep one of the two"))
        joined[case].setdefault(number, path)
    for channels in joined.values():
        missing = sorted(set(range(max(channels))) - channels.keys())
        if missing:
            cause = f"its channel {missing[0]:04d} is missing"
            errors.append(InputError(channels[max(channels)], cause, "Add it, or take the case out"))
    return {case: tuple(channels[number] for number in sorted(channels)) for case, channels in joined.items()}, errors


def channels_of(path: Path) -> tuple[Path, ...]:
    """The files of a volume whose first channel is at a path; the path alone unless it ends so."""
    match = CHANNEL.fullmatch(formats.stem_of(path))
    if match is None or not formats.stem_of(path).endswith(FIRST_CHANNEL):
        return (path,)
    beside = {
        name: other for name, other in formats.volumes_in(path.parent).items()
        if name.startswith(match["case"] + "_") and CHANNEL.fullmatch(name)
    }  # fmt: skip
    joined, errors = join_channels(beside, lambda case, _: case == match["case"])
    if errors:
        raise InputErrors(errors)
    return joined[match["case"]]
