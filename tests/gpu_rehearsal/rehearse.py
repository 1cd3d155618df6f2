"""Runs what is rehearsed on a pretended device, and prints as JSON what was compiled and launched.

Run by `Stub.run`, in a process that has the stub's library in its environment.
"""

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from triton.compiler import CompiledKernel

from tests.gpu_rehearsal import configurations, device
from tests.gpu_rehearsal.machine_code import accesses, resources
from tests.gpu_rehearsal.shape_only import ShapeOnly

# CUDA's limits of a launch
GRID_LIMITS = (2**31 - 1, 65535, 65535)
MAX_THREADS = 1024
MAX_REGISTERS_PER_THREAD = 255


class Kernels:
    """The kernels that Triton has loaded, by the handle of their function."""

    def __init__(self):
        self.loaded = {}
        load = CompiledKernel._init_handles

        def note(kernel):
            load(kernel)
            self.loaded[kernel.function] = kernel

        CompiledKernel._init_handles = note

    def launched(self, start):
        """How often each kernel was launched since a number of launches, by name."""
        return Counter(self.loaded[launch.function].name for launch in device.launches()[start:])

    def rows(self):
        """Name, hash and resources of every kernel."""
        return [
            {"name": kernel.name, "hash": kernel.hash, "threads": 32 * kernel.metadata.num_warps}
            | {"shared": kernel.metadata.shared, "architecture": kernel.metadata.target.arch}
            | resources(kernel.asm["cubin"])
            for kernel in self.loaded.values()
        ]

    def accesses(self):
        """How every kernel reads and writes memory, in the order of `rows`; this takes some time."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(lambda kernel: accesses(kernel.asm["cubin"]), self.loaded.values()))


def violations(rows, launches, properties):
    """What a device would refuse of kernels and their launches, or what makes them slow: sentences."""
    for row in rows:
        registers = row["registers"] * row["threads"]
        if row["registers"] > MAX_REGISTERS_PER_THREAD or registers > 65536 or row["threads"] > MAX_THREADS:
            yield f"{row['name']} has {row['threads']} threads of {row['registers']} registers"
        if row["shared"] > properties.shared_per_block:
            yield f"{row['name']} needs {row['shared']} bytes of shared memory"
        if row["stack"]:
            yield f"{row['name']} spills, or has a stack of {row['stack']} bytes"
    for launch in launches:
        if not all(0 < size <= limit for size, limit in zip(launch.grid, GRID_LIMITS, strict=True)):
            yield f"a grid of {tuple(launch.grid)}"
        if launch.stream != device.STREAM:
            yield f"a launch on stream {launch.stream} and not on PyTorch's current one"
        if launch.shared > properties.shared_per_block:
            yield f"a launch with {launch.shared} bytes of shared memory"


def rehearse(functions, capability, disassembled=False):
    """Calls functions and returns what became of them.

    Args:
        functions: {name: function}.
        capability: of the pretended device.
        disassembled: whether the rows say how kernels read and write memory.

    Returns:
        launches, {name: {kernel: number}}; errors and waits, {name: text}; kernels, a list of rows; violations.
    """
    kernels = Kernels()
    launches, errors, waits = {}, {}, {}
    for name, function in functions.items():
        start = len(device.launches())
        with ShapeOnly() as mode:
            try:
                function()
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {str(error)[:1000]}"
        launches[name] = kernels.launched(start)
        if mode.waits:
            waits[name] = ", ".join(sorted(set(mode.waits)))
    rows = kernels.rows()
    if disassembled:
        rows = [row | more for row, more in zip(rows, kernels.accesses(), strict=True)]
    found = sorted(set(violations(rows, device.launches(), device.DEVICES[capability])))
    return {"launches": launches, "errors": errors, "waits": waits, "kernels": rows, "violations": found}


def main(*arguments, **keywords):
    """Rehearses and prints."""
    configurations.as_on_a_gpu()
    print(json.dumps(rehearse(*arguments, **keywords)))
