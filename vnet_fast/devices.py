"""Where a network runs, in which precision, on how many threads, and with how much memory."""

import contextlib
import gc
import os
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from vnet_fast.accelerators import (
    ACCELERATORS,
    MPS_OUT_OF_MEMORY,
    accelerator_is_available,
    accelerator_name,
    empty_cache,
)
from vnet_fast.errors import InputError

Function = TypeVar("Function", bound=Callable[..., Any])
HOST = torch.device("cpu")
# of the option --device
DEVICES = ("auto", "cpu", "cuda", *ACCELERATORS)
# messages of the CPU's allocator, of ITK and of CUDA's libraries, whose errors have no type of their own
OUT_OF_MEMORY = (
    "can't allocate memory", "std::bad_alloc", "Failed to allocate memory", "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED", MPS_OUT_OF_MEMORY,
)  # fmt: skip
# What PyTorch says if cuDNN has no engine for a convolution, and also if none of its engines finds the memory that it
# needs: of PyTorch's allocator, or below these free bytes of the GPU for its own tables and kernels.
NO_ENGINE = "unable to find an engine"
LITTLE_MEMORY = 512 << 20
CGROUP_QUOTA = "/sys/fs/cgroup/cpu.max"
CPU_INFO = Path("/proc/cpuinfo")
# the first GPUs with TF32, and the error of a convolution that tells it from float32
TF32_CAPABILITY = (8, 0)
TF32_ERROR = 2e-5
# the major number of its capability
HOPPER = 9
# the variable with which PyTorch asks cuDNN's heuristics of mode B
MODE_B = "TORCH_CUDNN_USE_HEURISTIC_MODE_B"


def find_device(name: str) -> torch.device:
    """The device of the option `--device`: one of DEVICES; PyTorch is prepared for a GPU.

    Raises:
        InputError: if there is no such device.
    """
    if name not in DEVICES:
        raise InputError("--device", f"is {name}, which is none of {', '.join(DEVICES)}", "Use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "no CUDA device is available", "Use --device cpu")
    if name in ACCELERATORS and not accelerator_is_available(name):
        cause = f"no {name.upper()} device, which is a GPU of {ACCELERATORS[name]}, is available"
        raise InputError("--device", cause, "Use --device cpu")
    if name == "cuda":
        prepare_gpu()
    return torch.device(name)


def numbered(device: torch.device) -> torch.device:
    """A device as its tensors name it: `cuda` is the current GPU, such as `cuda:0`."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def device_name(device: torch.device) -> str:
    """The name of a GPU, or the CPU's number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type in ACCELERATORS:
        return accelerator_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def available_cores() -> int:
    """How many cores this process may use, by its affinity and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(CGROUP_QUOTA) as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        # there is no control group, or it has no quota
        return cores


def processor() -> str:
    """The CPU's name with its family and model, because virtual machines cut the name to that of its maker."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    name, family, model = (
        re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE) for field in ("model name", "cpu family", "model")
    )
    if not name:
        return platform.machine()
    return f"{name[1]} (family {family[1]}, model {model[1]})" if family and model else name[1]


def use_all_cores() -> None:
    """Lets PyTorch compute on every available core, unless OMP_NUM_THREADS is set.

    By default PyTorch uses all cores of the machine. A container may have fewer, and then threads wait for each
    other.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def prepare_gpu() -> None:
    """Lets PyTorch find cuDNN's kernels on tensor cores.

    For some convolutions of this network cuDNN's heuristics of mode A, which PyTorch asks by default, know none on
    Hopper. Those of mode B do, and rank Hopper's own kernels first, but the search of `cudnn.benchmark` never asks
    them. On other GPUs mode A is right. Call it before the first convolution on a GPU.

    Source:
        benchmarks/results/cudnn, and PyTorch's Conv_v8.cpp.
    """
    if torch.version.cuda and torch.cuda.get_device_capability()[0] == HOPPER:
        os.environ.setdefault(MODE_B, "1")
    torch.backends.cudnn.benchmark = False


def make_deterministic() -> None:
    """Restricts PyTorch and its libraries to algorithms that give the same bits every time.

    Call it before anything runs on a GPU.
    """
    # cuBLAS reads it when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # every new tensor is written before it is read, so filling it would only cost time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that the memory of a GPU or of the CPU is exhausted.

    Ask while it is handled, because its traceback keeps the memory that was in use.
    """
    short = NO_ENGINE in str(error) and _gpu_memory_is_short()
    if torch.cuda.is_initialized():
        # an allocation that has failed explains this error, and not the next one
        torch.cuda.reset_accumulated_memory_stats()
    named = any(message in str(error) for message in OUT_OF_MEMORY)
    return short or named or isinstance(error, torch.OutOfMemoryError | MemoryError)


def _gpu_memory_is_short() -> bool:
    """Whether an allocation has failed on the current GPU, or little of its memory is free."""
    if not torch.cuda.is_initialized():
        return False
    # what PyTorch keeps for later is free
    free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return torch.cuda.memory_stats().get("num_ooms", 0) > 0 or free < LITTLE_MEMORY


def free_memory(device: torch.device) -> None:
    """Returns memory that nothing refers to any more to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    empty_cache(device)


def mixed_precision(device: torch.device, dtype: torch.dtype | None) -> "contextlib.AbstractContextManager[object]":
    """The autocast context of a dtype; for None one without autocast, whatever the caller's is."""
    if dtype is None and not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def choose_precision(name: str | None, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The dtype of mixed precision.

    Args:
        name: `auto`, `bf16`, `fp16`, `off`, or None for `auto` on a GPU and `off` on a CPU.
        device: where the network runs.

    Returns:
        (dtype or None, its description for the log).
    """
    name = name or default_precision(device)
    if name == "off":
        return None, describe_float32(device)
    if name == "fp16" and device == HOST and not cpu_has_fp16():
        return torch.float16, "mixed precision (fp16, which this CPU computes 15 times slower than float32, or more)"
    if name in ("bf16", "fp16"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[name], f"mixed precision ({name})"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "mixed precision (bf16)"
        return torch.float16, "mixed precision (fp16: this GPU has no bfloat16 units)"
    if device.type in ACCELERATORS:
        return None, "float32: mixed precision must be asked for by name on this device"
    if cpu_has_fast_bf16():
        return torch.bfloat16, "mixed precision (bf16)"
    return None, "float32: this CPU has no fast bfloat16, which --amp would use"


def default_precision(device: torch.device) -> str:
    """The precision unless the user chooses one: mixed on a GPU, whose tensor cores need it."""
    return "auto" if device.type == "cuda" else "off"


def describe_float32(device: torch.device) -> str:
    """Float32 on a device, and whether its convolutions run on a GPU's tensor cores."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < TF32_CAPABILITY:
        return "float32"
    if convolves_in_tf32(device):
        return "float32 on tensor cores (TF32)"
    reason = "PyTorch's setting is off" if not allows_tf32() else "PyTorch turns it off in 3-D"
    return f"float32 without tensor cores, because {reason}: mixed precision (--amp) is several times faster"


def allows_tf32() -> bool:
    """Whether PyTorch's settings allow TF32 in convolutions, which releases of cuDNN may still leave out."""
    # new in PyTorch 2.9, where a program that sets it makes reading the older one an error
    precision = getattr(getattr(torch.backends.cudnn, "conv", None), "fp32_precision", None)
    return torch.backends.cudnn.allow_tf32 if precision is None else bool(precision == "tf32")


def convolves_in_tf32(device: torch.device) -> bool:
    """Whether 3-D convolutions of float32 on a GPU round their inputs to TF32, which only tensor cores do.

    No version number tells: PyTorch turns TF32 off in 3-D convolutions for some releases of cuDNN. It is seen from the
    result of a small convolution. Rounding to 11 bits leaves an error of about 3e-4, float32 one of about 3e-7.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 32, 8, 8, 8), (32, 32, 3, 3, 3)
    x, weight = (torch.randn(shape, dtype=torch.float32, generator=generator) for shape in shapes)
    exact = torch.nn.functional.conv3d(x.double(), weight.double(), padding=1)
    x, weight = (tensor.to(device, memory_format=torch.channels_last_3d) for tensor in (x, weight))
    with torch.autocast(device.type, enabled=False), torch.no_grad():
        found = torch.nn.functional.conv3d(x, weight, padding=1).double().to(HOST)
    return bool((found - exact).norm() / exact.norm() > TF32_ERROR)


def cpu_has_fast_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware: AMX or AVX-512 BF16."""
    return bool(_cpu_capabilities() & {"amx_bf16", "avx512_bf16"})


def cpu_has_fp16() -> bool:
    """Whether the CPU multiplies float16 in hardware: AMX or AVX-512 FP16."""
    return bool(_cpu_capabilities() & {"amx_fp16", "avx512_fp16"})


def constant_when_compiled(function: Function) -> Function:
    """Marks a function whose result `torch.compile` takes as a constant.

    It is `torch.compiler.assume_constant_result` without its import of the compiler, which takes a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # an attribute of functions
    return function


@constant_when_compiled
def cpu_has_convolutions(dtype: torch.dtype) -> bool:
    """Whether oneDNN has convolutions of a type on this CPU. PyTorch's own take hundreds of times as long."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def _cpu_capabilities() -> set[str]:
    """The names of the CPU's instruction sets, as PyTorch knows them; none before PyTorch 2.9."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {name for name, has in capabilities.items() if has is True}
