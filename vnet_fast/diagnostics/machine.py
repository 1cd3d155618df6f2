"""The facts of a machine that a bug report needs."""

import os
import platform
import shutil
import sysconfig
from pathlib import Path

import torch

from vnet_fast.devices import available_cores, cpu_has_fast_bf16, processor
from vnet_fast.versions import versions

MEMORY_INFO = Path("/proc/meminfo")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
GIB = 1 << 30


def describe_packages() -> list[str]:
    """The versions of Python and the packages, a line for each."""
    found = versions()
    width = max(map(len, found))
    lines = [f"{name:{width}}  {version or 'not installed'}" for name, version in found.items()]
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    lines.append(f"{'build':{width}}  {build if torch.version.cuda or torch.version.hip else 'CPU'}")
    cudnn = torch.backends.cudnn.version()
    lines.append(f"{'cuDNN':{width}}  {'none' if cudnn is None else cudnn_version(cudnn)}")
    return [*lines, f"{'platform':{width}}  {platform.platform()}"]


def cudnn_version(number: int) -> str:
    """cuDNN's version as it is written, from its number: 91900 is 9.19.0."""
    # from version 9 on, major times 10000; before, times 1000
    major = number // 10000 if number >= 90000 else number // 1000
    rest = number - major * (10000 if number >= 90000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"


def describe_cpu() -> str:
    """The CPU with its cores, its memory, and whether it multiplies bfloat16 in hardware."""
    memory = _field(MEMORY_INFO, "MemTotal")
    amount = f", {int(memory.split()[0]) * 1024 / GIB:.1f} GiB of memory" if memory else ""
    bfloat16 = "with" if cpu_has_fast_bf16() else "without"
    cores = f"{available_cores()} of {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"CPU: {processor()}, {cores}{amount}, {bfloat16} bfloat16 in hardware"


def describe_gpu(device: torch.device) -> str:
    """A GPU with its architecture and memory."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB of memory free"
    architecture = getattr(properties, "gcnArchName", "") or f"sm_{properties.major}{properties.minor}"
    return f"{device}: {properties.name}, {architecture}, {properties.multi_processor_count} multiprocessors, {memory}"


def describe_tools() -> str:
    """What Triton needs to compile its launchers: a C compiler and Python's headers."""
    compiler = os.environ.get("CC") or next((name for name in ("gcc", "clang", "cc") if shutil.which(name)), None)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return f"C compiler: {compiler or 'none'}; Python.h: {'found' if header.exists() else f'missing ({header})'}"


def has_unused_gpu() -> bool:
    """Whether there is an NVIDIA driver, but PyTorch finds no device."""
    return NVIDIA_DRIVER.exists() and not torch.cuda.is_available()


def _field(path: Path, name: str) -> str | None:
    """The first value of a name in a file of `name : value` lines."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name) and ":" in line), None)
