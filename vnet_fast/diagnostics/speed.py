"""How fast a device copies and multiplies."""

import statistics
import time
from collections.abc import Callable

import torch

from vnet_fast.devices import HOST

RUNS = 5
# bytes of a copy, beyond every cache; sides of the products, a second of a slow core
COPIED = {"cpu": 1 << 27, "cuda": 1 << 30}
SIDE = {"cpu": 1024, "cuda": 8192}


def copy_rate(device: torch.device) -> float:
    """Bytes read and written in a second by a copy on a device."""
    count = COPIED[device.type]
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / _seconds(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations in a second of a product of square matrices on a device."""
    side = SIDE[device.type]
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: a @ b, device)


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    """The median time of a call, after one that is not counted."""
    times = []
    for _ in range(1 + RUNS):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _wait(device: torch.device) -> None:
    if device != HOST:
        torch.cuda.synchronize(device)
