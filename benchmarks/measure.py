"""Measures a function on the device that is there, and collects the rows of the table."""

import contextlib
import dataclasses
import os
import signal

import torch
import torch._functorch.config

# a compiled backward pass would give its buffers away, and could not be timed more than once
torch._functorch.config.donated_buffer = False

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
# volumes of the paper's size on a GPU; a sixteenth of them where a CPU must end in minutes
SIZE = (64, 128, 128) if ON_GPU else (16, 64, 64)
ROUNDS = 50 if ON_GPU else 5
WARM_UP = 5 if ON_GPU else 1
PASSES = ("forward", "backward", "both")
# what whole networks are measured on, (D, H, W): `full` is the paper's, `tiny` only shows that all works
VOLUMES = {"tiny": (16, 32, 32), "small": (32, 64, 64), "full": (64, 128, 128)}
CHOICE = os.environ.get("VNET_FAST_BENCHMARK_SIZE", "full" if ON_GPU else "small")
if CHOICE not in VOLUMES:
    raise ValueError(f"VNET_FAST_BENCHMARK_SIZE must be one of {', '.join(VOLUMES)}; got {CHOICE}")
VOLUME = VOLUMES[CHOICE]
NETWORK_ROUNDS = 20 if ON_GPU else 3


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: seconds, bytes of compulsory traffic, extra bytes at the peak."""

    group: str
    provider: str
    wall: float
    device: float | None
    traffic: int
    memory: int | None


ROWS = []


def passes_of(function, inputs, grad_output, which):
    """A function of no arguments that runs the forward pass, the backward pass, or both.

    Args:
        function: of the tensors `inputs`, those that are floating point requiring gradients.
        grad_output: the gradient that the backward pass starts from.
        which: one of PASSES.
    """
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if which == "forward":
        return lambda: function(*inputs)
    if which == "both":
        return lambda: torch.autograd.grad(function(*inputs), leaves, grad_output)
    output = function(*inputs)
    return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)


def measure(benchmark, group, provider, make, traffic):
    """Times what `make()` returns, in wall time of an eager call and in device time, and keeps a row.

    Args:
        benchmark: pytest-benchmark's fixture.
        group: what is measured; providers of one group stand side by side.
        provider: whose it is.
        make: returns a function of no arguments, ready to run.
        traffic: bytes that must be moved whoever does it.
    """
    benchmark.group = group
    run = make()
    seconds = time_of(benchmark, run, ROUNDS, WARM_UP).median
    device = device_time(make) if ON_GPU else None
    memory = peak_memory(run) if ON_GPU else None
    row = Row(group, provider, seconds, device, traffic, memory)
    ROWS.append(row)
    benchmark.extra_info.update(provider=provider, row=dataclasses.asdict(row))


def time_of(benchmark, run, rounds, warm_up=0):
    """Statistics of the wall seconds of `run()`, the device's work included."""

    def complete():
        run()
        synchronize()

    benchmark.pedantic(complete, rounds=rounds, warmup_rounds=warm_up)
    return benchmark.stats.stats


def synchronize():
    """Waits for the device."""
    if ON_GPU:
        torch.cuda.synchronize()


@contextlib.contextmanager
def time_limit(seconds):
    """Raises TimeoutError within the block when it takes longer."""

    def stop(number, frame):
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    # again every second: a compiler may swallow the first one
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def device_time(make):
    """Median seconds of a replay of the function's CUDA graph: the time without launches.

    The graph is made anew from `make`, on the stream that captures it, where the backward pass must
    have its forward pass.
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
    """Bytes that are allocated at the peak of a run beyond those before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def copy_of(traffic):
    """A copy from one tensor to another that moves as many bytes: the limit of the machine."""
    source = torch.zeros(max(1, traffic // 2), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def table(rows):
    """Lines of a Markdown table of rows, group by group."""
    lines = [
        "| what | provider | wall, µs | device, µs | GB/s | share of a copy | extra memory, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        seconds = row.device or row.wall
        copy = next((r.device or r.wall for r in rows if r.group == row.group and r.provider == "copy"), None)
        cells = [
            row.group,
            row.provider,
            f"{1e6 * row.wall:.0f}",
            "-" if row.device is None else f"{1e6 * row.device:.1f}",
            f"{row.traffic / seconds / 1e9:.0f}",
            "-" if copy is None else f"{100 * copy / seconds:.0f} %",
            "-" if row.memory is None else f"{row.memory / 1e6:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines
