"""Where a network runs, how precisely, and on how many threads."""

import contextlib
import ctypes
import gc
import os

import torch

from vnet_fast.errors import InputError

# of the CPU's allocator, and of CUDA's libraries, whose errors have no type of their own
OUT_OF_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
# glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
KEEP_FREED = {-4: 0, -1: -1, -2: 1 << 28}
GLIBC_DEFAULTS = {-4: 65536, -1: 128 << 10, -2: 128 << 10}
CGROUP_QUOTA = "/sys/fs/cgroup/cpu.max"


def choose_device(name):
    """The device of `auto`, `cpu` or `cuda`.

    Raises:
        RuntimeError: if there is no CUDA device where one is asked for.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("no CUDA device is available")
    return torch.device(name)


def device_name(device):
    """The name of the processor behind a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def available_cores():
    """How many cores this process may keep busy: those of its affinity, within a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(CGROUP_QUOTA) as file:
            quota, period = file.read().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        # no control group, or one without a quota
        return cores


def use_all_cores():
    """Lets PyTorch compute on every core that is available, unless OMP_NUM_THREADS says how many.

    Left to itself it takes the machine's cores, of which a container may have few: then threads wait
    for each other.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(available_cores())


def keep_freed_memory(keep=True):
    """Lets the CPU's allocator keep what is freed, as a GPU's does: glibc gives large tensors back to the
    system, which clears every page of the next one: on two cores a sixth of a step's time. The process
    takes a tenth more memory.

    Args:
        keep: False restores glibc's defaults.

    Returns:
        whether it could be set; not without glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = KEEP_FREED if keep else GLIBC_DEFAULTS
    done = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings.items()]
    return all(done)


def make_deterministic():
    """Lets PyTorch and its libraries take only algorithms that give the same bits every time.

    To be called before anything runs on a GPU.
    """
    # cuBLAS reads it when it is first used
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # memory that is written anyway need not be filled
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def is_out_of_memory(error):
    """Whether an exception says that memory is short, on a GPU or, where it is said, on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def mixed_precision(device, dtype):
    """The autocast context of a dtype, or one that does nothing for None."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def choose_precision(name, device):
    """The dtype of mixed precision.

    Args:
        name: `auto`, `bf16`, `fp16` or `off`.
        device: where the network runs.

    Returns:
        (dtype or None, words for the log).
    """
    if name == "off":
        return None, "float32"
    if name in ("bf16", "fp16"):
        return {"bf16": torch.bfloat16, "fp16": torch.float16}[name], f"mixed precision ({name})"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "mixed precision (bf16)"
        return torch.float16, "mixed precision (fp16: this GPU has no bfloat16 units)"
    if cpu_has_fast_bf16():
        return torch.bfloat16, "mixed precision (bf16)"
    return None, "float32: this CPU has no fast bfloat16, which --amp would use"


def cpu_has_fast_bf16():
    """Whether the CPU multiplies bfloat16 in hardware: AMX or AVX-512 BF16."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def free(device):
    """Gives back the memory that nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


HOST = torch.device("cpu")


def find_device(name):
    """The device of a `--device`; an `InputError` if it is not there."""
    try:
        return choose_device(name)
    except RuntimeError as error:
        raise InputError("--device", str(error), "Use --device cpu") from None
