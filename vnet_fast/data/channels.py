"""The channels of a data set's volumes, and how the intensities of each are normalised.

The channels of MR are normalised volume by volume, because their units differ. Those of CT are all in Hounsfield units,
which tell tissues apart: they keep their values in the cache, and are normalised by those of the whole data set.

Source:
    CT as in nnU-Net (Isensee et al. 2021). Its channels are named `CT` in `dataset.json`; all others are normalised
    like MR.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vnet_fast.data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE, normalise
from vnet_fast.data.labels import DESCRIPTION, described_in, is_storable, not_described, read_description
from vnet_fast.data.preparation import IGNORED, PreparedCase
from vnet_fast.errors import InputError
from vnet_fast.io.header import MAX_CHANNELS
from vnet_fast.stored import shown

CT = "ct"
# of statistics that are computed again
ROUNDING = 1e-4
# of each case, of the voxels whose values the percentiles are of
MAX_SAMPLES = 10_000
# the keys of dataset.json that name channels: nnU-Net's second version; the Decathlon's, and nnU-Net's first version
KEYS = ("channel_names", "modality")
REMEDY = "Add what is missing, or take the case out"


@dataclass(frozen=True)
class Channel:
    """A channel of a data set's volumes.

    Args:
        name: such as `FLAIR`; empty if the data set does not say.
        scaling: None if each volume is normalised by itself; or of the whole data set the lowest and the highest value,
            to which values are clipped, and the mean and the standard deviation.
    """

    name: str = ""
    scaling: tuple[float, float, float, float] | None = None

    @property
    def is_ct(self) -> bool:
        """Whether its values are Hounsfield units."""
        return self.name.lower() == CT

    def scaled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values of the file normalised by those of the data set, float32; unchanged without a scaling."""
        if self.scaling is None:
            return values
        low, high, mean, deviation = self.scaling
        return ((np.clip(values, low, high) - mean) / deviation).astype(np.float32)

    def normalised(self, values: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float32]:
        """The intensities of a volume that is not trained on.

        Args:
            values: of any shape, NaN outside of the image.
            reference: the part of the image that percentiles, mean and variance are of, if they are its own.

        Raises:
            ValueError: if all voxels of the reference have the same value.
        """
        normalised = normalise(values, reference)
        if self.scaling is None:
            return normalised
        return self.scaled(np.where(np.isnan(values), np.nanmin(values), values))


def declared_channels(data: str | Path) -> tuple[Channel, ...]:
    """Reads the names of the channels in the `dataset.json` of the Decathlon or of nnU-Net.

    Args:
        data: folder of the data set.

    Returns:
        a Channel without scaling for each; none if there is no such file, or it does not say.

    Raises:
        InputError: if the file can't be read, or is not a valid description.
    """
    path = Path(data) / DESCRIPTION
    if not os.path.lexists(path):
        return ()
    description = read_description(path)
    key = next((key for key in KEYS if key in description), None)
    if key is None:
        return ()
    return tuple(Channel(name) for name in _names(path, key, description[key]))


def find_channels(data: str | Path, labels: str | Path | None) -> tuple[Channel, ...]:
    """The channels that a data set to train on declares, beside its volumes or its masks, as `declared_channels`."""
    return declared_channels(described_in(data, labels))


def _names(path: Path, key: str, named: Any) -> list[str]:
    if isinstance(named, str):
        named = [named]
    if isinstance(named, list):
        named = dict(zip(map(str, range(len(named))), named, strict=True))
    if not isinstance(named, dict) or not 0 < len(named) <= MAX_CHANNELS:
        if key == "modality":
            # what the Decathlon calls so is something else in other descriptions
            return []
        raise not_described(path, f"its {key} must be an object with a name for each channel")
    names = []
    for number in range(len(named)):
        name = named.get(str(number))
        if not isinstance(name, str) or not is_storable(name):
            cause = f"its {key} must name the channels 0 to {len(named) - 1}; {number} is {shown(name)}"
            raise not_described(path, cause)
        names.append(name)
    return names


def of_checkpoint(content: Mapping[str, Any]) -> tuple[Channel, ...]:
    """The channels of a checkpoint's network; those of older ones have neither name nor scaling.

    Args:
        content: what `vnet_fast.run.checkpoint.load` returned.
    """
    stored = content.get("channels")
    if stored is None:
        return (Channel(),) * content["architecture"]["in_channels"]
    return tuple(Channel(channel["name"], _numbers(channel["scaling"])) for channel in stored)


def _numbers(scaling: Sequence[float] | None) -> tuple[float, float, float, float] | None:
    if scaling is None:
        return None
    low, high, mean, deviation = map(float, scaling)
    return low, high, mean, deviation


def are_alike(first: Sequence[Channel], second: Sequence[Channel]) -> bool:
    """Whether channels have the same names and scalings, up to the rounding of another processor."""
    return len(first) == len(second) and all(
        ours.name == theirs.name
        and (ours.scaling is None) == (theirs.scaling is None)
        and np.allclose(ours.scaling or 0, theirs.scaling or 0, rtol=ROUNDING, atol=ROUNDING)
        for ours, theirs in zip(first, second, strict=True)
    )


def describe(channels: Sequence[Channel]) -> str:
    """The channels in a text: their number, and their names if they have any."""
    names = [channel.name for channel in channels if channel.name]
    count = "1 channel" if len(channels) == 1 else f"{len(channels)} channels"
    return f"{count} ({', '.join(names)})" if names else count


def check_order(data: str | Path, channels: Sequence[Channel]) -> None:
    """Raises an InputError if the data set of some volumes names other channels than a network's; of a single channel,
    which is called this or that, if one is CT and the other is not.

    Args:
        data: a volume, or a folder of volumes, of the data set or in it.
        channels: of the network.
    """
    folder = described_in(data)
    declared: tuple[Channel, ...] = ()
    if len(channels) > 1 or channels[0].name:
        declared = declared_channels(folder)
    ours, theirs = ([channel.name for channel in those] for those in (channels, declared))
    differ = [name.lower() for name in ours] != [name.lower() for name in theirs]
    if len(channels) == len(declared) == 1:
        differ = channels[0].is_ct != declared[0].is_ct
    if all(ours) and theirs and differ:
        cause = f"names the channels {', '.join(theirs)}, and the network was trained on {', '.join(ours)}"
        raise InputError(folder / DESCRIPTION, cause, "Put the channels in this order, or use another checkpoint")


def find_errors(
    prepared: Sequence[PreparedCase], images: Mapping[str, Path], channels: Sequence[Channel], data: str | Path
) -> list[InputError]:
    """An InputError for each case that has another number of channels than the data set.

    Args:
        prepared: the cases.
        images: the path of each case's volume, by name.
        channels: what the data set declares; if that is nothing, the number that most cases have is right.
        data: folder of the data set.
    """
    counts = [case.channels for case in prepared]
    expected = len(channels) or max(sorted(set(counts)), key=counts.count, default=1)
    said = f"{DESCRIPTION} of {data} names {expected}" if channels else f"other cases have {expected}"
    return [
        InputError(images[case.name], f"has {_number(case.channels)}, and {said}", REMEDY)
        for case in prepared
        if case.channels != expected
    ]


def _number(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def fitted(
    channels: Sequence[Channel], cases: Sequence[PreparedCase], data: str | Path, ignored: int | None = None
) -> tuple[Channel, ...]:
    """The channels with the scaling of those that are CT.

    Args:
        channels: without scaling.
        cases: of the data set, with the values of the files.
        data: folder of the data set, for messages.
        ignored: not None if voxels with the label IGNORED do not count.

    Raises:
        InputError: if the masks have no structures, or these have one value.
    """
    return tuple(
        replace(channel, scaling=_scaling(number, cases, data, ignored is not None)) if channel.is_ct else channel
        for number, channel in enumerate(channels)
    )


def _scaling(
    number: int, cases: Sequence[PreparedCase], data: str | Path, ignores: bool
) -> tuple[float, float, float, float]:
    """Percentiles, mean and standard deviation of a channel over the structures of all cases."""
    generator, samples = np.random.default_rng(0), []
    for case in cases:
        voxels = np.flatnonzero((case.mask > 0) & (case.mask != IGNORED) if ignores else case.mask)
        if len(voxels) > MAX_SAMPLES:
            voxels = generator.choice(voxels, MAX_SAMPLES, replace=False)
        ranks, table = case.of_channel(number)
        samples.append(table[ranks.reshape(-1)[voxels]].astype(np.float64))
    values = np.concatenate(samples)
    if not values.size:
        raise InputError(data, "its masks have no structure to scale CT by on the network's grid", "Check --volume")
    low, high = np.percentile(values, [LOW_PERCENTILE, HIGH_PERCENTILE])
    if low == high:
        cause = f"all structures have the intensity {low:g} in channel {number}, which is CT"
        raise InputError(data, cause, "Check the volumes, or name the channel otherwise in dataset.json")
    return float(low), float(high), float(values.mean()), float(values.std())


def scale_case(case: PreparedCase, channels: Sequence[Channel]) -> PreparedCase:
    """A case with all channels normalised."""
    if all(channel.scaling is None for channel in channels):
        return case
    tables = [channel.scaled(case.of_channel(number)[1]) for number, channel in enumerate(channels)]
    return replace(case, table=np.stack(tables) if case.channels > 1 else tables[0])
