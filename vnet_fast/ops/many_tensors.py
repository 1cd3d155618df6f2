"""Updates of many tensors: by kernels in few launches where these can run, and by a definition one by one elsewhere."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from vnet_fast.ops.dispatch import kernels_for

Entry = TypeVar("Entry", bound=tuple[Tensor | None, ...])
Settings = TypeVar("Settings", bound=tuple[Any, ...])


def update_all(
    name: str,
    entries: Iterable[Entry],
    settings: Settings,
    rate: float | Tensor,
    definition: Callable[[Entry, Settings], None],
) -> None:
    """Updates tensors in place, those of the same types together.

    Args:
        name: of the operation, of the module of its kernels, and of the function there.
        entries: what belongs to each tensor of weights, the weights first.
        settings: the kernels' arguments behind the lists of tensors.
        rate: the learning rate, which the kernels need on the device.
        definition: that updates what belongs to one tensor.
    """
    kernels_of: dict[torch.device, Any] = {}
    by_type: dict[tuple[torch.device, tuple[object, ...]], list[Entry]] = {}
    for entry in entries:
        weight = entry[0]
        assert weight is not None
        if weight.device not in kernels_of:
            kernels_of[weight.device] = _kernels(name, weight, rate)
        kernels = kernels_of[weight.device]
        if kernels is None or not kernels.supports(*entry):
            definition(entry, settings)
        else:
            types = tuple(None if tensor is None else tensor.dtype for tensor in entry)
            by_type.setdefault((weight.device, types), []).append(entry)
    for (device, _), group in by_type.items():
        lists = [None if column[0] is None else list(column) for column in zip(*group, strict=True)]
        getattr(kernels_of[device], name)(*lists, *settings)


def _kernels(name: str, weight: Tensor, rate: float | Tensor) -> Any:
    if not isinstance(rate, Tensor) or rate.dtype != torch.float32 or rate.device != weight.device:
        return None
    return kernels_for(name, weight)
