"""Measures functions on the GPU if there is one, or else on the CPU, and collects the rows of the table."""

import contextlib
import dataclasses
import os
import signal

import torch
import torch._functorch.config

# a compiled backward pass would otherwise free its buffers, and could not be timed more than once
torch._functorch.config.donated_buffer = False

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# the volumes of kernels, (D, H, W): the paper's on a GPU, and a sixteenth of them on a CPU to end in minutes
KERNEL_SHAPE = (64, 128, 128) if ON_GPU else (16, 64, 64)
ROUNDS = 50 if ON_GPU else 5
WARM_UP = 5 if ON_GPU else 1
PASSES = ("forward", "backward", "both")
# the volumes of whole networks, (D, H, W): `full` is the paper's, `tiny` only shows that all benchmarks run
SHAPES = {"tiny": (16, 32, 32), "small": (32, 64, 64), "full": (64, 128, 128)}
CHOICE = os.environ.get("VNET_FAST_BENCHMARK_SIZE", "full" if ON_GPU else "small")
if CHOICE not in SHAPES:
    raise ValueError(f"VNET_FAST_BENCHMARK_SIZE must be one of {', '.join(SHAPES)}; got {CHOICE}")
SHAPE = SHAPES[CHOICE]
# the same, x y z
SIZE = SHAPE[::-1]
NETWORK_ROUNDS = 20 if ON_GPU else 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        group, provider: what is measured, and by whom it is made.
        wall: seconds of an eager call.
        device: seconds of the device alone, or None on a CPU.
        traffic: bytes that must be moved.
        memory: bytes that are allocated at the peak beyond those before, or None on a CPU.
    """

    group: str
    provider: str
    wall: float
    device: float | None
    traffic: int
    memory: int | None


ROWS = []


def passes_of(function, inputs, grad_output, pass_name):
    """A function of no arguments that runs the forward pass, the backward pass, or both.

    The backward pass is that of new leaves with the memory of `inputs`. A leaf keeps the stream on which it was first
    used, and the backward pass waits for it: a CUDA graph can't be captured of leaves that another stream has used.

    Args:
        function: of the tensors `inputs`, those that are floating point requiring gradients.
        grad_output: the gradient that the backward pass starts from.
        pass_name: one of PASSES.
    """
    inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if pass_name == "forward":
        return lambda: function(*inputs)
    if pass_name == "both":
        return lambda: torch.autograd.grad(function(*inputs), leaves, grad_output)
    output = function(*inputs)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def measure(benchmark, group, provider, make, traffic):
    """Times a function in wall time of an eager call and in device time, and keeps a row.

    Args:
        benchmark: pytest-benchmark's fixture.
        group: what is measured; the providers of one group are compared.
        provider: the name of the implementation.
        make: returns the function, which takes no arguments.
        traffic: bytes that every implementation must move.
    """
    benchmark.group = group
    run = make()
    seconds = time_of(benchmark, run, ROUNDS, WARM_UP).median
    device = device_time(make) if ON_GPU else None
    memory = peak_memory(run) if ON_GPU else None
    row = Row(group, provider, seconds, device, traffic, memory)
    ROWS.append(row)
    benchmark.extra_info.update(provider=provider, row=dataclasses.asdict(row))


def time_of(benchmark, run, rounds, warm_up=0, before=None):
    """Statistics of the wall seconds of `run()`, including the device's work.

    Args:
        benchmark: pytest-benchmark's fixture.
        run: a function of no arguments.
        rounds, warm_up: how often it runs, and how often before that without being timed.
        before: None, or a function that is called before each round, not timed.
    """

    def run_and_wait():
        run()
        synchronize()

    benchmark.pedantic(run_and_wait, setup=before, rounds=rounds, warmup_rounds=warm_up)
    return benchmark.stats.stats


def synchronize():
    """Waits until the device has finished its work."""
    if ON_GPU:
        torch.cuda.synchronize()


@contextlib.contextmanager
def time_limit(seconds):
    """Raises TimeoutError within the block after this many seconds."""

    def stop(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    # repeated every second, because a compiler may swallow the first error
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def device_time(make):
    """Median seconds of a replay of the function's CUDA graph, which is its time without launches.

    `make` is called on the stream that captures the graph, because the forward pass must run on the same stream as
    the backward pass.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        run = make()
        for _ in range(WARM_UP):
            run()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            run()
        times = []
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def peak_memory(run):
    """Bytes that are allocated at the peak of a run beyond those before it, on a GPU."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_of(traffic):
    """A function that copies one tensor to another and moves this many bytes."""
    # ones, because untouched pages of zeros are all one page of memory, which a cache holds
    source = torch.ones(max(1, traffic // 2), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def table(rows):
    """Lines of a Markdown table of rows, group by group."""
    lines = [
        "| what | provider | wall, µs | device, µs | GB/s | share of a copy | extra memory, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    copies = {row.group: row.device or row.wall for row in rows if row.provider == "copy"}
    for row in rows:
        seconds = row.device or row.wall
        cells = [
            row.group,
            row.provider,
            f"{1e6 * row.wall:.0f}",
            "-" if row.device is None else f"{1e6 * row.device:.1f}",
            f"{row.traffic / seconds / 1e9:.0f}",
            f"{100 * copies[row.group] / seconds:.0f} %" if row.group in copies else "-",
            "-" if row.memory is None else f"{row.memory / 1e6:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
