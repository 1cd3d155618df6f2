"""Divides the time of a step by parts (convolutions, activations, loss, optimiser, copies), from a profiler."""

import re
from collections import Counter

import torch
from torch.autograd import DeviceType

from benchmarks.measure import ON_GPU, synchronize

PARTS = (
    "convolutions, forward",
    "convolutions, backward",
    "activations and elementwise",
    "loss",
    "optimiser",
    "copies and layout",
    "other",
    "idle",
)
FORWARD, BACKWARD, ELEMENTWISE, LOSS, OPTIMISER, COPIES, OTHER, IDLE = PARTS

# These names count for everything that runs within an operation or a range of that name.
SCOPES = {
    LOSS: r"[dD]ice|softmax",
    OPTIMISER: r"^Optimizer\.|fused_sgd|sgd_kernel|adamw_kernel|FusedSgd|multi_tensor_apply|GradScaler|_amp_",
}
# These names count for the kernel or operation itself, for example a layout change within a convolution.
OWN = {
    ELEMENTWISE: r"^triton_(poi|red|per)_",
    COPIES: r"copy_kernel|copy_$|_to_copy$|Memcpy|Memset|CatArray|FillFunctor|(nchw|nhwc|ncdhw|ndhwc)To"
    r"|^aten::(cat|fill_|zero_|clone|contiguous|to)$",
}
# These names are tried on the innermost operation first, then on the ones around it, and last on the kernel.
OPERATIONS = (
    (BACKWARD, r"[cC]onvolution\w*[bB]ackward|dgrad|wgrad|bgrad"),
    (ELEMENTWISE, r"[pP]relu|[eE]lu|[bB]atch_?[nN]orm|bn_[fb]w|[dD]ropout|sum_partials"),
    (FORWARD, r"[cC]onvolution|conv3d|conv_transpose3d|convolve|fprop|xmma|cutlass|gemm|cudnn"),
    (ELEMENTWISE, r"aten::(add|mul|sub|div|sum|mean|repeat)_?$|Add|Mul|elementwise|reduce_kernel|Compiled"),
)


def part_of(name, operations=()):
    """The part of a step that an operation or a kernel belongs to.

    Args:
        name: of the operation or kernel.
        operations: names of the operation that it is or that launched it, and of those around it, innermost first.
    """
    for part, pattern in SCOPES.items():
        if any(re.search(pattern, candidate) for candidate in (name, *operations)):
            return part
    for part, pattern in OWN.items():
        if re.search(pattern, name):
            return part
    # operations before the kernel, because cuDNN also computes gradients by forward kernels
    for candidate in (*operations, name):
        for part, pattern in OPERATIONS:
            if re.search(pattern, candidate):
                return part
    return OTHER


def profiled(run):
    """The profiler's events of `run()`."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if ON_GPU:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize()
    return profiler.events()


def step_by_parts(run, wall):
    """Seconds of each part of a step, of kernels on a GPU and of operations on a CPU.

    Args:
        run: makes one step.
        wall: seconds of a step without the profiler. If the parts sum to less, the rest is idle; if they sum to
            more, because the profiler slows the step, they are scaled down to it.

    Returns:
        dict from part to seconds, in the order of PARTS.
    """
    events = profiled(run)
    seconds = (_by_kernels if ON_GPU else _by_operations)(events)
    total = sum(seconds.values())
    scale = min(1.0, wall / total) if total else 1.0
    seconds[IDLE] = max(0.0, wall - total) / scale
    return {part: scale * seconds[part] for part in PARTS}


def _by_operations(events):
    """Seconds of operations on a CPU, without those of the operations within them."""
    seconds = Counter()
    of_loss = _nodes_of_loss(events)
    for event in events:
        part = LOSS if _within(event, of_loss) else part_of(event.name, _operations(event))
        seconds[part] += event.self_cpu_time_total / 1e6
    return seconds


def _by_kernels(events):
    """Seconds of kernels by the operations that launched them, or in a graph's replay by their own names."""
    seconds, linked = Counter(), Counter()
    of_loss = _nodes_of_loss(events)
    for event in events:
        for kernel in event.kernels:
            part = LOSS if _within(event, of_loss) else part_of(kernel.name, _operations(event))
            seconds[part] += kernel.duration / 1e6
            linked[kernel.name] += kernel.duration / 1e6
    for name, total in device_seconds(events).items():
        seconds[part_of(name)] += max(0.0, total - linked[name])
    return seconds


def device_seconds(events):
    """Seconds on the GPU by the name of the kernel."""
    seconds = Counter()
    for event in events:
        # the GPU's events include ranges that the program has named
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[event.name] += event.time_range.elapsed_us() / 1e6
    return seconds


def _operations(event):
    """The names of an operation and of those that it runs in."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def _nodes_of_loss(events):
    """Autograd's numbers of the operations in the range `loss`, which their backward nodes have too."""
    return {event.sequence_nr for event in events if event.sequence_nr >= 0 and "loss" in _operations(event)}


def _within(event, numbers):
    """Whether an event is in the range `loss`, or in a backward node with one of these numbers."""
    while event is not None:
        if event.name == "loss" or (event.name.startswith("autograd::engine") and event.sequence_nr in numbers):
            return True
        event = event.cpu_parent
    return False
