"""One trial of every operation's kernels on each device, before they are trusted.

A GPU may lack what its kernels need: Triton compiles C at its first launch, which takes a C compiler and Python's
headers; a driver may be too old, and a compiler may be wrong. Each operation is therefore run once on small tensors
and compared with its definition. Kernels that do not compile, launch or agree are replaced by the definitions for
this process, with one line that says why. A trial that passed is remembered on disk.
"""

import hashlib
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from vnet_fast.devices import numbered
from vnet_fast.ops import device_store
from vnet_fast.ops.trial_cases import TRIALS

STORE = "kernels"
# where kernels are tried; on a CPU they run in Triton's interpreter, for tests
TRIED_ON = {"cuda"}
# relative to the largest value: a few roundings
TOLERANCE = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
LOG = logging.getLogger("vnet_fast")
_lock = threading.RLock()
# why an operation's kernels are not used on a device, or an empty text
_results: dict[tuple[str, torch.device], str] = {}
# the operations that are being tried, which call their kernels from other threads
_trying: set[str] = set()


def passed(name: str, kernels: ModuleType, device: torch.device) -> bool:
    """Whether an operation's kernels can be trusted on a device; tries them at the first call.

    Args:
        name: of the operation.
        kernels: the module of its kernels.
        device: where they would run.
    """
    result = _results.get((name, device))
    if result is not None:
        return not result
    # fake tensors have a device where there is none
    exists = device.type != "cuda" or torch.cuda.is_available()
    if device.type not in TRIED_ON or name not in TRIALS or not exists or name in _trying:
        return True
    device = numbered(device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # a capture can hold neither compilations nor comparisons; it comes after iterations that tried everything
        return not _results.get((name, device), "not tried")
    with _lock:
        if (name, device) not in _results:
            _try(name, kernels, device)
    return not _results[name, device]


def reason(name: str, device: torch.device) -> str | None:
    """Why an operation's kernels are not used on a device: empty if they are; None if they were not tried."""
    return _results.get((name, numbered(device)))


def forget() -> None:
    """Forgets the trials of this process, but not those on disk."""
    _results.clear()


def repeat(name: str, device: torch.device) -> str:
    """Tries an operation's kernels, whatever was found before; returns what is wrong, or an empty text."""
    device = numbered(device)
    with _lock:
        _results.pop((name, device), None)
        _trying.add(name)
        try:
            _results[name, device] = run(name, device)
        finally:
            _trying.discard(name)
    return _results[name, device]


def _try(name: str, kernels: ModuleType, device: torch.device) -> None:
    digest = _source_digest(kernels)
    if device_store.load(STORE, device).get(name) == digest:
        _results[name, device] = ""
        return
    why = repeat(name, device)
    if why:
        LOG.warning(
            "%s: the kernels of %s are not used (%s); plain PyTorch runs instead, which is slower. "
            "Run `python -m vnet_fast.doctor` to find out more",
            device,
            name,
            why,
        )
    else:
        device_store.save(STORE, device, {name: digest})


def run(name: str, device: torch.device) -> str:
    """Runs an operation's trial; returns what is wrong with its kernels, or an empty text.

    It runs in a thread of its own, because the caller may be within an operator, where nothing is differentiated, or
    within autocast, inference mode or a training pass. All of these belong to a thread.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(_run, name, device).result()


def _run(name: str, device: torch.device) -> str:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        # seeding seeds every GPU
        with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
            torch.manual_seed(0)
            for what, found, expected in TRIALS[name](device):
                problem = _compare(found, expected)
                if problem:
                    return f"{what} {problem}"
    except Exception as error:
        # whatever a compiler, linker or driver raises
        text = " ".join(str(error).split())
        return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
    finally:
        torch.set_default_dtype(default)
    return ""


def _compare(found: Tensor | None, expected: Tensor | None) -> str:
    if found is None or expected is None:
        return "" if found is expected else "is missing"
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"is {found.dtype} {tuple(found.shape)} instead of {expected.dtype} {tuple(expected.shape)}"
    found, wanted = found.detach().double(), expected.detach().double()
    error = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)).item()
    allowed = TOLERANCE.get(expected.dtype, 0.0)
    # NaN is not below any number
    return "" if error <= allowed else f"differs from its definition by {error:.2g} of the largest value"


def _source_digest(kernels: ModuleType) -> str:
    """Digest of all kernels' sources, which may use one another."""
    folder = Path(kernels.__file__ or "").parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
