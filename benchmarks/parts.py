"""A step by parts: its time in convolutions, activations, loss, optimiser and copies, by a profiler."""

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

# Everything below an operation or within a range of one of these names.
SCOPES = {
    LOSS: r"[dD]ice|softmax",
    OPTIMISER: r"^Optimizer\.|fused_sgd|FusedSgd|multi_tensor_apply|GradScaler|_amp_",
}
# By the kernel's or the operation's own name, whatever it is part of: a layout change within a convolution.
OWN = {
    ELEMENTWISE: r"^triton_(poi|red|per)_",
    COPIES: r"copy_kernel|copy_$|_to_copy$|Memcpy|Memset|CatArray|FillFunctor|(nchw|nhwc|ncdhw|ndhwc)To"
    r"|^aten::(cat|fill_|zero_|clone|contiguous|to)$",
}
# By the names of the operations, from within, and at last by the kernel's own.
OPERATIONS = (
    (BACKWARD, r"[cC]onvolution\w*[bB]ackward|dgrad|wgrad|bgrad"),
    (ELEMENTWISE, r"[pP]relu|[eE]lu|[bB]atch_?[nN]orm|bn_[fb]w|[dD]ropout|sum_partials"),
    (FORWARD, r"[cC]onvolution|conv3d|conv_transpose3d|convolve|fprop|xmma|cutlass|gemm|cudnn"),
    (ELEMENTWISE, r"aten::(add|mul|sub|div|sum|mean|repeat)_?$|Add|Mul|elementwise|reduce_kernel|Compiled"),
)


def part_of(name, operations=()):
    """The part of a step that an operation or a kernel belongs to.

    Args:
        name: its own.
        operations: names of the operation that it is or is launched by, and of those around, from within.
    """
    for part, pattern in SCOPES.items():
        if any(re.search(pattern, each) for each in (name, *operations)):
            return part
    for part, pattern in OWN.items():
        if re.search(pattern, name):
            return part
    # an operation says more than its kernel: cuDNN computes gradients by forward kernels too
    for each in (*operations, name):
        for part, pattern in OPERATIONS:
            if re.search(pattern, each):
                return part
    return OTHER


def profiled(run):
    """The events of `run()`."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if ON_GPU:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize()
    return profiler.events()


def step_by_parts(run, wall):
    """Seconds of each part of a step: of the device's kernels on a GPU, of operations on a CPU.

    Args:
        run: makes one step.
        wall: seconds of a step without the profiler. What no part takes is idle; parts of a step that the
            profiler slowed are scaled to it.

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
    seconds = Counter()
    of_loss = _nodes_of_loss(events)
    for event in events:
        part = LOSS if _within(event, of_loss) else part_of(event.name, _operations(event))
        seconds[part] += event.self_cpu_time_total / 1e6
    return seconds


def _by_kernels(events):
    """Kernels by what launched them; those of a graph's replay, which nothing launched, by their names."""
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
    """Seconds of each kernel's name on the GPU."""
    seconds = Counter()
    for event in events:
        # ranges that the program names stand among the GPU's events too
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[event.name] += event.time_range.elapsed_us() / 1e6
    return seconds


def _operations(event):
    """The name of an operation and of those that it runs in."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def _nodes_of_loss(events):
    """Autograd's numbers of the operations that run in the range `loss`: their backward nodes have them too."""
    return {event.sequence_nr for event in events if event.sequence_nr >= 0 and "loss" in _operations(event)}


def _within(event, numbers):
    """Whether an event is in the range `loss`, or in one of the backward nodes of these numbers."""
    while event is not None:
        if event.name == "loss" or (event.name.startswith("autograd::engine") and event.sequence_nr in numbers):
            return True
        event = event.cpu_parent
    return False
