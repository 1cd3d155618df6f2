"""Whether a size can fit in memory at all, told before anything is allocated.

A size that is refused can't fit: the estimates are lower bounds. One that is not refused may still be too large; then
the step itself says what fits, where the device reports it.
"""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.nn.topology import KERNEL_SIZE, LEVELS, SIZE_MULTIPLE, size_multiple

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Bytes of a training step, for each voxel and channel of the first stage, in float32; half of it in half precision.
# On a GPU, the inputs of the convolutions at full resolution, which the backward pass needs. On a CPU, 53 are measured
# with 32 channels, 82 with 16, and 112 with 8.
STEP_BYTES = {"cpu": 40, "cuda": 20}
# numbers of the network for each squared channel of the first stage, by its levels; with 5 levels either topology has
# 240,000 or more
WEIGHTS = {2: 1_000, 3: 7_000, 4: 45_000, 5: 200_000}
# each number with its gradient and its momentum
WEIGHT_BYTES = 12
# of a voxel while a case is prepared: the resampled value, the part in the image, and two copies that are normalised
PREPARING_BYTES = 16
# of a voxel of each phantom: rank and label, and those to train on again, where they are stacked
PHANTOM_BYTES, PHANTOMS = 4, 100
# a suggested size takes at most this share of the memory, because the estimates are low
SUGGESTED_SHARE = 1 / 3


class Load(NamedTuple):
    """What a run must hold in memory.

    Args:
        device: where the network trains.
        batch_size: volumes of a step.
        base_channels: channels of the first stage.
        half: whether the step is in half precision.
        phantoms: whether the run makes phantoms.
        levels, kernel_size: of the network.
    """

    device: torch.device
    batch_size: int
    base_channels: int
    half: bool
    phantoms: bool
    levels: int = LEVELS
    kernel_size: int = KERNEL_SIZE

    def of_step(self, size: Sequence[int]) -> float:
        """Bytes of a step on volumes of a size, on the device."""
        of_channel = STEP_BYTES.get(self.device.type, STEP_BYTES["cuda"]) * (0.5 if self.half else 1)
        return self.batch_size * math.prod(size) * of_channel * self.base_channels + self.of_weights()

    def of_weights(self) -> float:
        """Bytes of the weights, on the device."""
        taps = (self.kernel_size / KERNEL_SIZE) ** 3
        return float(WEIGHTS[self.levels] * taps * WEIGHT_BYTES * self.base_channels**2)

    def of_volumes(self, size: Sequence[int]) -> float:
        """Bytes of the prepared volumes of a size, on the host."""
        return float(math.prod(size) * (PHANTOM_BYTES * PHANTOMS if self.phantoms else PREPARING_BYTES))

    def needs(self, size: Sequence[int]) -> dict[torch.device, float]:
        """Bytes of everything, by where they must be; on a CPU, the step and the volumes share the memory."""
        needs = {self.device: self.of_step(size)}
        needs[HOST] = needs.get(HOST, 0.0) + self.of_volumes(size)
        return needs

    def fits(self, size: Sequence[int], share: float = 1.0) -> bool:
        """Whether everything may fit in a share of the memory."""
        return all(needed <= memory_of(device) * share for device, needed in self.needs(size).items())


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a GPU; or of this machine, of which a container may have a part, and an Apple GPU uses it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "xpu":
        return int(torch.xpu.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 62
    for path in CGROUP_LIMITS:
        try:
            memory = min(memory, int(Path(path).read_text()))
        except (OSError, ValueError):
            # there is no control group, or it has no limit
            continue
    return memory


def check_grid(size: Sequence[int], subject: object, remedy: str | None = None) -> None:
    """Raises an InputError if the host has no memory for one volume.

    Args:
        size: of the volume, voxels x y z.
        subject: of the message.
        remedy: what to do about it; None suggests a size that would fit.
    """
    needed, memory = math.prod(size) * PREPARING_BYTES, memory_of(HOST)
    if needed <= memory:
        return
    cause = f"a volume of {_as_text(size, ' x ')} takes at least {_gigabytes(needed)}, this machine has "
    smaller = size
    while math.prod(smaller) * PREPARING_BYTES > memory * SUGGESTED_SHARE and max(smaller) > SIZE_MULTIPLE:
        smaller = _halved(smaller, SIZE_MULTIPLE)
    suggestion = f"Give --volume {_as_text(smaller, ' ')}, which would fit"
    raise InputError(subject, cause + _gigabytes(memory), remedy or suggestion)


def check_load(load: Load, size: Sequence[int]) -> None:
    """Raises an InputError with a size that would fit, if a training run on volumes of a size can't.

    Args:
        load: what the run holds.
        size: of its volumes, voxels x y z.
    """
    for device, needed in load.needs(size).items():
        memory = memory_of(device)
        if needed > memory:
            cause = f"steps on {load.batch_size} of {_as_text(size, ' x ')} voxels, {load.base_channels} channels"
            cause += f", and {PHANTOMS} phantoms" if device == HOST and load.phantoms else ""
            cause += f" take at least {_gigabytes(needed)}, and the {device.type} has {_gigabytes(memory)}"
            raise InputError("--volume", cause, _suggestion(load, size))


def _suggestion(load: Load, size: Sequence[int]) -> str:
    """Options that would fit."""
    single = load._replace(batch_size=1)
    if single.fits(size, SUGGESTED_SHARE):
        of_volume = single.of_step(size) - load.of_weights()
        free = SUGGESTED_SHARE * memory_of(load.device) - single.needs(size)[load.device]
        batch_size = min(1 + int(free / of_volume), load.batch_size - 1)
        return f"Give --batch-size {batch_size} or less, which would fit"
    while not single.fits(size, SUGGESTED_SHARE):
        if max(size) <= size_multiple(load.levels):
            return "Give a smaller --base-channels"
        size = _halved(size, size_multiple(load.levels))
    batch = " --batch-size 1" if load.batch_size > 1 and not load.fits(size, SUGGESTED_SHARE) else ""
    return f"Give --volume {_as_text(size, ' ')}{batch}, which would fit"


def _halved(size: Sequence[int], multiple: int) -> list[int]:
    """A size with its longest axis halved, rounded up to a multiple that the network takes."""
    longest = max(size)
    half = max(multiple, math.ceil(longest / 2 / multiple) * multiple)
    axis = list(size).index(longest)
    return [half if index == axis else length for index, length in enumerate(size)]


def _as_text(size: Sequence[int], between: str) -> str:
    return between.join(map(str, size))


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count < 1e15 else "a million GB"
