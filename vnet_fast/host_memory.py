"""How the CPU's allocator treats memory that is freed."""

import ctypes

# glibc's mallopt: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
KEEP_FREED = {-4: 0, -1: -1, -2: 1 << 28}
GLIBC_DEFAULTS = {-4: 65536, -1: 128 << 10, -2: 128 << 10}
_is_kept = False


def keep_freed_memory(keep: bool = True) -> bool:
    """Lets the CPU's allocator keep freed memory, as a GPU's does.

    By default glibc returns large tensors to the system, which then clears every page of the next one: a sixth
    of a step's time on two cores. The process takes a tenth more memory.

    Args:
        keep: False restores glibc's defaults.

    Returns:
        whether it could be set; it can't without glibc.
    """
    global _is_kept
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    settings = KEEP_FREED if keep else GLIBC_DEFAULTS
    succeeded = [mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings.items()]
    _is_kept = keep
    return all(succeeded)


def return_freed_memory() -> bool:
    """Returns memory that was kept to the system, and keeps none any more; whether any was kept.

    What is kept lies in pieces, of which a large tensor may fit into none.
    """
    if not _is_kept:
        return False
    keep_freed_memory(False)
    ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(0))
    return True
