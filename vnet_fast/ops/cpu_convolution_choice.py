"""Which form of a 5x5x5 or 3x3x3 convolution runs in each pass on a CPU: the fastest by timing, or one by a rule.

The first time that a pass of a layer is met, its forms are timed once, each checked against oneDNN's result, and the
fastest is kept, in memory and on disk. A rule decides for layers that take milliseconds, and where results must be the
same bits every time.

The environment variable VNET_FAST_CPU_CONV is `auto`, `winograd` for the kernels wherever they can run, by the rule, or
`onednn` for oneDNN's convolutions everywhere.
"""

import functools
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vnet_fast.devices import is_out_of_memory
from vnet_fast.errors import InputError
from vnet_fast.kernels import cpu_convolution as kernels
from vnet_fast.kernels.cpu_library import digest
from vnet_fast.ops import cpu_library, device_store
from vnet_fast.ops.convolution_choice import Layer, Trial

VARIABLE = "VNET_FAST_CPU_CONV"
AUTO, WINOGRAD, ONEDNN = MODES = ("auto", "winograd", "onednn")
STORE = "cpu-convolutions"
# output slices of a tile by the name of a form; oneDNN has no tiles
FILTERED = {"winograd-1": 1, "winograd-2": 2, "winograd-4": 4}
FORMS = {ONEDNN: 0, **FILTERED}
# direct sums, of small volumes or of few channels, as of the image
DIRECT, SUMS = "direct", -1
SMALL_FORMS = {ONEDNN: 0, DIRECT: SUMS, **FILTERED}
FEW_FORMS = {ONEDNN: 0, DIRECT: SUMS}
# of a batch: from so many on, minimal filtering needs far fewer products
SMALL_VOXELS = 2048
# of each form; oneDNN runs once if that takes more than this times as long as the fastest
RUNS, HOPEFUL = 3, 1.5
# of the norm, between two orders of the same sums
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 2e-2}
# smaller layers take milliseconds, which other processes disturb more than the forms differ
TIMED_OPERATIONS = 1e9
# of a batch: from so many on, a form with more points, or any points, is worth the transform of the weight
FEW_VOXELS, MANY_VOXELS = 640, 1024
# of a volume: fewer, or fewer in two slices, fill no tile, so that a transformed weight that is kept does not pay
TINY, TINY_SLICES = 64, 256
# along each axis
SMALL_FILTER = 3
CPU = torch.device("cpu")
LOG = logging.getLogger("vnet_fast")
_has_said = False

# what was timed, by the number of threads; and what ran last
_chosen: dict[tuple[int, Layer], str] = {}
_met: dict[Layer, str] = {}


def mode() -> str:
    """The value of VNET_FAST_CPU_CONV.

    Raises:
        InputError: if it is none of MODES.
    """
    value = os.environ.get(VARIABLE, AUTO) or AUTO
    if value not in MODES:
        raise InputError(VARIABLE, f"must be {', '.join(MODES)}; got {value}", "Set it to one of them, or unset it")
    return value


def compute(layer: Layer, run: Callable[[int], Tensor]) -> Tensor:
    """Runs a pass in the form that is chosen for it.

    Args:
        layer: the pass; its `which` may be `prediction` too, a forward pass with a transformed weight that is kept.
        run: the pass by the output slices of a tile, 0 for oneDNN and SUMS for direct sums; it returns memory of its
            own.
    """
    name = _choose(layer, run)
    result = run(0) if name == ONEDNN else _run_if_memory(run, forms(layer)[name])
    if result is None:
        _say_that_memory_is_short()
        name, result = ONEDNN, run(0)
    _met[layer] = name
    return result


def _run_if_memory(run: Callable[[int], Tensor], form: int) -> Tensor | None:
    """A pass; None if memory does not suffice, of which it is free again then."""
    try:
        return run(form)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return None


def _say_that_memory_is_short() -> None:
    global _has_said
    if not _has_said:
        LOG.warning("memory does not suffice for the CPU's kernels, so oneDNN runs some convolutions, which is slower")
    _has_said = True


def forms(layer: Layer) -> dict[str, int]:
    """The forms that a pass may have, by name."""
    volumes, channels, *shape = layer.volume
    if channels < kernels.MULTIPLE:
        return FEW_FORMS
    return SMALL_FORMS if volumes * math.prod(shape) < SMALL_VOXELS or _is_tiny(shape) else FORMS


def _is_tiny(shape: Sequence[int]) -> bool:
    """Whether a volume, of any batch, fills no tile."""
    voxels = math.prod(shape)
    return voxels < TINY or (shape[0] <= 2 and voxels < TINY_SLICES)


def _choose(layer: Layer, run: Callable[[int], Tensor]) -> str:
    # what was timed may be another form in the next run
    if mode() == WINOGRAD or torch.are_deterministic_algorithms_enabled() or operations(layer) < TIMED_OPERATIONS:
        return ruled(layer)
    key = torch.get_num_threads(), layer
    name = _chosen.get(key) or _stored(layer)
    if name is None:
        trial = try_all(layer, run)
        if trial.fastest is None:
            return ONEDNN
        name = trial.fastest
        if trial.complete:
            device_store.save(_store(), CPU, {str(layer): name})
    _chosen[key] = name
    return name


def operations(layer: Layer) -> int:
    """Multiplications and additions of a pass as direct sums."""
    volumes, channels, *shape = layer.volume
    return 2 * volumes * math.prod(shape) * channels * layer.out_channels * math.prod(layer.kernel)


def _store() -> str:
    # what was timed of other sources does not count
    return f"{STORE}-{cpu_library.target()}-{torch.get_num_threads()}-{digest()[:8]}"


def _stored(layer: Layer) -> str | None:
    try:
        folder = device_store.FOLDER.expanduser()
    except RuntimeError:
        # there is no home folder
        return None
    name = _stored_names(_store(), folder).get(str(layer))
    return name if name in forms(layer) else None


@functools.lru_cache(maxsize=16)
def _stored_names(store: str, folder: Any) -> dict[str, Any]:
    """What other processes stored before this one asked first."""
    return device_store.load(store, CPU)


def try_all(layer: Layer, run: Callable[[int], Tensor]) -> Trial:
    """Compares the results of all forms, and times those that are right.

    Args:
        layer: the pass.
        run: the pass by the output slices of a tile, as for `compute`.
    """
    times: dict[str, float] = {}
    others = {name: form for name, form in forms(layer).items() if name != ONEDNN}
    began = time.perf_counter()
    expected = run(0)
    times[ONEDNN] = time.perf_counter() - began
    norm = torch.linalg.vector_norm(expected, dtype=torch.float32)
    if not norm.isfinite():
        return Trial(None, False)
    for name, form in others.items():
        # the first run of a form may transform a weight that is kept
        found = _run_if_memory(run, form)
        if found is None:
            times[name] = math.inf
            continue
        is_right = torch.linalg.vector_norm(found.sub_(expected), dtype=torch.float32) <= TOLERANCE[layer.dtype] * norm
        del found
        if is_right:
            times[name] = min(_seconds(run, form) for _ in range(RUNS))
    del expected
    if times[ONEDNN] <= HOPEFUL * min(times.values()):
        times[ONEDNN] = min(times[ONEDNN], *(_seconds(run, 0) for _ in range(RUNS)))
    return Trial(min(times, key=lambda name: times[name]), math.inf not in times.values())


def _seconds(run: Callable[[int], Tensor], form: int) -> float:
    """Seconds of a pass; infinity if memory does not suffice."""
    began = time.perf_counter()
    return math.inf if _run_if_memory(run, form) is None else time.perf_counter() - began


def ruled(layer: Layer) -> str:
    """The form of a pass by a rule, which was the fastest or nearly so.

    What the transform of a weight costs, a training step pays once for all voxels.
    """
    volumes, channels, *shape = layer.volume
    voxels = volumes * math.prod(shape)
    if channels >= kernels.MULTIPLE and layer.which == "prediction" and _is_tiny(shape):
        return DIRECT
    rule = _ruled_small_filter if layer.kernel[0] == SMALL_FILTER else _ruled_filter
    name = rule(layer.which, channels, voxels)
    return "winograd-1" if name in FILTERED and shape[0] <= 2 else name


def _ruled_filter(which: str, channels: int, voxels: int) -> str:
    """For 5x5x5, measured with AVX2 and with AVX-512."""
    if channels < kernels.MULTIPLE:
        return DIRECT
    if which != "prediction" and voxels < MANY_VOXELS:
        return "winograd-1" if voxels >= FEW_VOXELS else DIRECT
    return "winograd-4"


def _ruled_small_filter(which: str, channels: int, voxels: int) -> str:
    """For 3x3x3, measured with AVX2. A transformed weight has up to 14 times as many terms as the sum."""
    if channels < kernels.MULTIPLE:
        return DIRECT if channels <= 2 or which == "grad_weight" else ONEDNN
    if which == "prediction":
        return "winograd-1" if voxels < 1024 else "winograd-2" if voxels < 4096 else "winograd-4"
    if voxels < MANY_VOXELS:
        return DIRECT
    return "winograd-1" if voxels < 8192 else "winograd-4"


def kernels_run() -> bool:
    """Whether the kernels are there and may run.

    Raises:
        InputError: if VNET_FAST_CPU_CONV has another value than it may have.
    """
    return mode() != ONEDNN and cpu_library.library() is not None


def description(device: torch.device) -> str:
    """What runs the convolutions of a CPU, for the log; empty for another device.

    Raises:
        InputError: if VNET_FAST_CPU_CONV has another value than it may have.
    """
    if device.type != "cpu":
        return ""
    if not kernels_run():
        return ", convolutions by oneDNN"
    return f", convolutions by the kernels for {cpu_library.NAMES[cpu_library.target()]}"


def chosen() -> list[tuple[str, str]]:
    """The passes that ran in this process, each with its form, in the order in which they were met."""
    return [(str(layer), name) for layer, name in _met.items()]


def summary() -> str:
    """How many of the passes run in which form: `20 of 24 passes: 12 winograd-4, 8 winograd-2`."""
    names = [name for _, name in chosen()]
    counts = Counter(name for name in names if name != ONEDNN)
    parts = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    return f"{counts.total()} of {len(names)} passes" + (f": {parts}" if parts else "")
