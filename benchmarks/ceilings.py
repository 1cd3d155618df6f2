"""The ceilings of a machine: the arithmetic and the memory traffic that no program on it exceeds.

    python -m benchmarks.ceilings

prints them. The ceiling of the arithmetic is the fastest of several matrix products, a convolution without padding
and, on a CPU, loops of multiply-adds in registers (`multiply_add.c`). The ceiling of the traffic depends on the
number of bytes, because caches are faster than memory: it is the fastest of a copy, a fill and a sum.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.measure import CHOICE, DEVICE, ON_GPU, device_time
from benchmarks.provenance import without_folders
from vnet_fast.devices import cpu_has_convolutions

# sides of the matrices, and of the convolution's output: large enough to reach the machine's rate
MATRICES, VOLUME_SIDE = ((4096, 8192, 16384), 64) if ON_GPU else ((1024, 2048), 32)
CHANNELS, KERNEL = 64, 5
# bytes that are moved, from those that fit into a cache to those that do not
TRAFFIC = tuple(2**power for power in range(20, 33 if ON_GPU else 29, 2))
# many transfers, because they are short and other processes slow them most
PRODUCT_REPEATS, TRAFFIC_REPEATS = 10, 40
# bytes that are moved in one measurement at least, so that a call's own time does not count
LEAST_TRAFFIC = 2**26

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
COMPILE_LIMIT = 60
# a millisecond of a loop: one of many such times is free of interruptions by other processes
TURNS, LOOP_REPEATS = 2**18, 100
if CHOICE == "tiny" and not ON_GPU:
    # as the volumes of networks, which only show that all benchmarks run
    MATRICES, VOLUME_SIDE, TRAFFIC, LEAST_TRAFFIC = (128, 256), 4, (2**20, 2**22), 2**22
    PRODUCT_REPEATS, TRAFFIC_REPEATS, LOOP_REPEATS = 2, 2, 2
# floats that a loop keeps its sums in
VALUES = 384


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches in one precision.

    Args:
        arithmetic: dict from the name of a measurement to its FLOP/s.
        traffic: dict from the number of bytes that were moved to the rate in bytes/s.
        note: a sentence that says what could not be measured, or None.
    """

    arithmetic: dict
    traffic: dict
    note: str | None = None

    @property
    def fastest(self):
        """The name of the fastest arithmetic."""
        return max(self.arithmetic, key=self.arithmetic.get)

    @property
    def flops(self):
        """FLOP/s of the fastest arithmetic."""
        return self.arithmetic[self.fastest]

    def bandwidth(self, nbytes):
        """Bytes/s at which a number of bytes moves at most: the fastest rate of as many bytes or more."""
        size = max((size for size in self.traffic if size <= nbytes), default=min(self.traffic))
        return max(rate for moved, rate in self.traffic.items() if moved >= size)


# dict from dtype to Ceilings, of the precisions that a run needed
measured = {}


def ceilings_of(dtype):
    """The Ceilings of this machine, measured once a run."""
    if dtype not in measured:
        loops, note = ({}, None) if ON_GPU else loop_rates(dtype)
        measured[dtype] = Ceilings({**product_rates(dtype), **loops}, traffic_rates(), note)
    return measured[dtype]


def product_rates(dtype):
    """FLOP/s of PyTorch's and oneDNN's products: dict from name to rate."""
    products = [product for side in MATRICES for product in _matrix_products(dtype, side)] + [_convolution(dtype)]
    return {name: flops / shortest_seconds(run, PRODUCT_REPEATS) for name, flops, run in products}


def _matrix_products(dtype, side):
    """Products of two square matrices: list of (name, FLOPs, function)."""
    a, b = (torch.randn(side, side, device=DEVICE).to(dtype) for _ in range(2))
    products = {"torch.mm": lambda: torch.mm(a, b)}
    # torch.mm calls MKL, whose float32 product is slow on some processors; oneDNN lacks half precision on others
    if not ON_GPU and torch.backends.mkldnn.is_available() and cpu_has_convolutions(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(b, side)
        products["oneDNN's linear"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
        products["oneDNN's linear, packed"] = lambda: torch.ops.mkldnn._linear_pointwise(
            a, packed, None, "none", [], ""
        )
    return [(f"{name}, {side} x {side}", 2 * side**3, run) for name, run in products.items()]


def _convolution(dtype):
    """A convolution without padding: (name, FLOPs, function)."""
    shapes = (1, CHANNELS, *[VOLUME_SIDE + KERNEL - 1] * 3), (CHANNELS, CHANNELS, *[KERNEL] * 3)
    x, weight = (
        torch.randn(shape, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last_3d) for shape in shapes
    )
    flops = 2 * CHANNELS**2 * KERNEL**3 * VOLUME_SIDE**3
    return f"convolution, {CHANNELS} channels", flops, lambda: torch.conv3d(x, weight)


def loop_rates(dtype):
    """FLOP/s of the loops of multiply-adds, with all of PyTorch's threads.

    Args:
        dtype: that is computed in. Half precision may be computed in float32, so its loops are both.

    Returns:
        dict from name to rate, and a note where there is no loop.
    """
    library, note = compiled_loops()
    if library is None:
        return {}, note
    names = ["float32"] if dtype is torch.float32 else ["float32", str(dtype).removeprefix("torch.")]
    rates = {name: loop_rate(library, name) for name in names if name in ("float32", "bfloat16")}
    return {f"multiply-add loop, {name}": rate for name, rate in rates.items() if rate}, None


@functools.cache
def compiled_loops():
    """The library of `multiply_add.c`, and None; or None, and a note that says why there is none."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        return None, "No C compiler: the ceiling is that of products alone."
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "multiply_add.so"
        command = [compiler, *FLAGS, "-o", str(library), str(Path(__file__).with_name("multiply_add.c"))]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_LIMIT)
            return ctypes.CDLL(str(library)), None
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            reason = without_folders(output.strip().splitlines()[-1])
            return None, f"The C compiler failed ({reason}): the ceiling is that of products alone."


def loop_rate(library, name):
    """FLOP/s of a loop on all threads at once, the best of each thread; 0 if the processor has no instruction."""
    loop = library[f"multiply_add_{name}"]
    loop.restype, loop.argtypes = ctypes.c_double, (ctypes.c_int64, ctypes.c_void_p)
    threads = torch.get_num_threads()

    def best(_):
        values, rates = (ctypes.c_float * VALUES)(), []
        for _ in range(LOOP_REPEATS):
            began = time.perf_counter()
            operations = loop(TURNS, values)
            rates.append(operations / (time.perf_counter() - began))
        return max(rates)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(best, range(threads)))


@functools.cache
def traffic_rates():
    """Bytes/s of the fastest copy, fill or sum: dict from bytes to rate."""
    return {nbytes: max(_rates_of_moves(nbytes)) for nbytes in TRAFFIC}


def _rates_of_moves(nbytes):
    # ones, because untouched pages of zeros are all one page of memory, which a cache holds
    source, target = (torch.ones(nbytes // 8, device=DEVICE) for _ in range(2))
    whole = torch.ones(nbytes // 4, device=DEVICE)
    count = max(1, LEAST_TRAFFIC // nbytes)
    for move in (lambda: target.copy_(source), lambda: whole.fill_(1), whole.sum):
        yield count * nbytes / shortest_seconds(lambda move=move: [move() for _ in range(count)], TRAFFIC_REPEATS)


def shortest_seconds(run, repeats):
    """The shortest seconds of several runs after a first one, or on a GPU the median of its own time."""
    if ON_GPU:
        return device_time(lambda: run)
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def lines(dtype, ceilings):
    """Lines of text about the Ceilings of a precision, the fastest arithmetic first."""
    yield str(dtype).removeprefix("torch.")
    for name, rate in sorted(ceilings.arithmetic.items(), key=lambda item: -item[1]):
        yield f"  {rate / 1e9:8.1f} GFLOP/s  {name}"
    for nbytes, rate in ceilings.traffic.items():
        yield f"  {rate / 1e9:8.1f} GB/s     {nbytes / 2**20:.0f} MiB"
    if ceilings.note:
        yield f"  {ceilings.note}"


if __name__ == "__main__":
    for precision in (torch.float32, torch.bfloat16):
        print("\n".join(lines(precision, ceilings_of(precision))))
