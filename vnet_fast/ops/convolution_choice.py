"""Which rewrite of a convolution runs in each pass on a GPU: the fastest by timing, or one by a table.

The first time that a training step, or a prediction, meets a convolution, its candidates are timed once, each checked
against cuDNN's own result, and the fastest is kept, in memory and on disk. While a CUDA graph is captured, and where
results must be the same bits every time, nothing is timed; then the table decides, which follows cuDNN's heuristics.

The environment variable VNET_FAST_CONV is `auto`, or `cudnn` for cuDNN's own convolution everywhere.
"""

import functools
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vnet_fast.devices import HOPPER, MODE_B, allows_tf32, numbered
from vnet_fast.errors import InputError
from vnet_fast.ops import device_store
from vnet_fast.ops.convolution import REWRITES, Rewrite
from vnet_fast.ops.eager import is_eager

VARIABLE, AUTO, CUDNN = "VNET_FAST_CONV", "auto", "cudnn"
STORE = "convolutions"
HALF = (torch.float16, torch.bfloat16)
# of the narrower side of a packed convolution; more only adds arithmetic
MAX_PACKED_CHANNELS = 128
# tensor cores read channels by eights
FULL_CHANNELS = 8
# for which cuDNN ranks Hopper's own kernels first
MIN_STACKED_CHANNELS = 32
RUNS = 5
# of the device before a run, about a millisecond
SLEEP_CYCLES = 2_000_000
# of the norm, between two orders of the same sums: a few roundings of the type, and of TF32 for float32
TOLERANCE = {torch.float32: 5e-3, torch.float16: 5e-3, torch.bfloat16: 2e-2}


class Layer(NamedTuple):
    """A pass of a convolution that keeps the shape, with all that its speed depends on on one device.

    Args:
        which: `forward`, `grad_input` or `grad_weight`.
        dtype: of volume and weight.
        volume: (N, C, D, H, W).
        out_channels: K.
        kernel: (d, h, w) taps.
    """

    which: str
    dtype: torch.dtype
    volume: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]

    @classmethod
    def of(cls, which: str, x: Tensor, weight: Tensor) -> "Layer":
        """The pass of a convolution of `x` (N, C, D, H, W) with `weight` (K, C, d, h, w)."""
        return cls(which, x.dtype, tuple(x.shape), weight.shape[0], tuple(weight.shape[2:]))

    def __str__(self) -> str:
        """As it is stored and shown."""
        volume, kernel = ("x".join(map(str, lengths)) for lengths in (self.volume, self.kernel))
        return f"{self.which} {str(self.dtype).removeprefix('torch.')} {volume} to {self.out_channels} by {kernel}"


_chosen: dict[tuple[torch.device, Layer], str] = {}


def mode() -> str:
    """The value of VNET_FAST_CONV.

    Raises:
        InputError: if it is neither `auto` nor `cudnn`.
    """
    value = os.environ.get(VARIABLE, AUTO) or AUTO
    if value not in (AUTO, CUDNN):
        raise InputError(VARIABLE, f"must be {AUTO} or {CUDNN}; got {value}", "Set it to one of them, or unset it")
    return value


@functools.lru_cache(maxsize=4096)
def candidates(layer: Layer) -> tuple[str, ...]:
    """The names of the rewrites that are worth a trial, `cudnn` first."""
    _, channels, *_, width = layer.volume
    narrowest, taps = min(channels, layer.out_channels), layer.kernel[0]
    names = [CUDNN]
    # the channels that a pass reads; with few of them, stacking copies much for little
    if taps > 1 and (channels if layer.which != "grad_input" else layer.out_channels) >= FULL_CHANNELS:
        names.append("zstack")
    for voxels in (2, 4, 8):
        fits = width % voxels == 0 and voxels * narrowest <= MAX_PACKED_CHANNELS
        if fits and (taps > 1 or narrowest < FULL_CHANNELS):
            names.append(f"pack{voxels}")
    return tuple(names)


def can_rewrite(x: Tensor) -> bool:
    """Whether convolutions of a tensor may be rewritten: on a GPU, unless something traces or transforms them."""
    return x.is_cuda and is_eager(x)


def has_choice(x: Tensor, weight: Tensor) -> bool:
    """Whether there is a rewrite that is worth a trial in some pass."""
    return x.dtype in TOLERANCE and mode() == AUTO and len(candidates(Layer.of("forward", x, weight))) > 1


def compute(which: str, x: Tensor, weight: Tensor, run: Callable[[Rewrite], Tensor]) -> Tensor:
    """Runs a pass by the rewrite that is chosen for it.

    Args:
        which: `forward`, `grad_input` or `grad_weight`.
        x: (N, C, D, H, W), the convolution's input.
        weight: (K, C, d, h, w).
        run: the pass by a given rewrite.
    """
    layer = Layer.of(which, x, weight)
    # what was timed before may be another in the next run
    fixed = torch.are_deterministic_algorithms_enabled()
    name = None if fixed else _chosen.get((x.device, layer))
    if name is None:
        name = None if fixed else _stored(x.device, layer)
        if name is None:
            if fixed or not _may_time(x):
                return run(REWRITES[tabulated(layer, torch.cuda.get_device_capability(x.device))])
            # events are of the current device
            with torch.cuda.device_of(x):
                trial = try_all(layer, candidates(layer), run)
            if trial.fastest is None:
                return run(REWRITES[CUDNN])
            name = trial.fastest
            if trial.complete:
                device_store.save(_store(), x.device, {str(layer): name})
        _chosen[x.device, layer] = name
    return run(REWRITES[name])


def _stored(device: torch.device, layer: Layer) -> str | None:
    if not torch.cuda.is_available():
        return None
    name = device_store.load(_store(), device).get(str(layer))
    return name if name in candidates(layer) else None


def _store() -> str:
    """The name of the stored choices, which depend on how PyTorch asks cuDNN."""
    settings = os.environ.get(MODE_B, "0"), allows_tf32(), torch.backends.cudnn.benchmark
    return "-".join([STORE, *(str(int(setting in (True, "1"))) for setting in settings)])


def _may_time(x: Tensor) -> bool:
    """Whether candidates can be timed now: on real tensors, outside of a capture."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and torch.cuda.is_available()
        and not torch.cuda.is_current_stream_capturing()
    )


class Trial(NamedTuple):
    """What was found out about the candidates of a pass.

    Args:
        fastest: a name; `cudnn` if every rewrite fails or differs from its result; None if nothing can be told from
            these tensors.
        complete: whether no candidate lacked memory, so that another process would find the same.
    """

    fastest: str | None
    complete: bool


def try_all(layer: Layer, names: Sequence[str], run: Callable[[Rewrite], Tensor]) -> Trial:
    """Compares the results of candidates with cuDNN's, and times those that are right, interleaved.

    Args:
        layer: the pass.
        names: `cudnn` first.
        run: the pass by a given rewrite, which takes as long on every call.
    """
    times: dict[str, list[float]] = {CUDNN: []}
    complete = True
    try:
        expected = run(REWRITES[CUDNN]).float()
        norm = torch.linalg.vector_norm(expected)
        if not norm.isfinite():
            # such as gradients of float16 that overflow until its scaler has found a scale
            return Trial(None, False)
        for name in names[1:]:
            try:
                found = run(REWRITES[name]).float()
                if torch.linalg.vector_norm(found - expected) <= TOLERANCE[layer.dtype] * norm:
                    times[name] = []
            except torch.OutOfMemoryError:
                complete = False
            except RuntimeError:
                # no kernel for the shape
                continue
        del expected
    except torch.OutOfMemoryError:
        # with too little memory for two results, there is none for a rewrite
        return Trial(CUDNN, False)
    for _ in range(RUNS if len(times) > 1 else 0):
        for name, measured in times.items():
            measured.append(_milliseconds(lambda rewrite=REWRITES[name]: run(rewrite)))  # type: ignore[misc]
    return Trial(min(times, key=lambda name: statistics.median(times[name] or [0.0])), complete)


def _milliseconds(function: Callable[[], Tensor]) -> float:
    """The time of the device, without that of the host, which a CUDA graph does without."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # meanwhile the host launches everything
    torch.cuda._sleep(SLEEP_CYCLES)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def tabulated(layer: Layer, capability: tuple[int, int]) -> str:
    """The rewrite of a pass for which cuDNN's heuristics rank a kernel on tensor cores first.

    Args:
        layer: the pass.
        capability: of the GPU.

    Source:
        benchmarks/results/cudnn: cuDNN's answers for all layers, passes and generations of GPUs.
    """
    channels, taps, name = layer.volume[1], layer.kernel[0], CUDNN
    # AMD counts otherwise
    hopper, forward = capability[0] == HOPPER and torch.version.hip is None, layer.which == "forward"
    if layer.dtype in HALF and taps > 1:
        if channels < FULL_CHANNELS and forward:
            name = "pack8"
        elif hopper and min(channels, layer.out_channels) >= MIN_STACKED_CHANNELS:
            # Hopper's own kernels take up to 27 taps
            name = "zstack"
    elif layer.dtype in HALF and hopper and forward and layer.out_channels < FULL_CHANNELS <= channels:
        name = "pack4"
    return name if name in candidates(layer) else CUDNN


def chosen(device: torch.device) -> list[tuple[str, str]]:
    """The passes that ran on a device, each with its rewrite, in the order in which they were met."""
    device = numbered(device)
    return [(str(layer), name) for (where, layer), name in _chosen.items() if where == device]


def summary(device: torch.device) -> str:
    """How many of the passes that ran on a device are rewritten, and how: `12 of 87 passes: 8 zstack, 4 pack2`."""
    names = [name for _, name in chosen(device)]
    counts = Counter(name for name in names if name != CUDNN)
    parts = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{counts.total()} of {len(names)} passes" + (f": {parts}" if parts else "")
