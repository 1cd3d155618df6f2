"""Memory that shows every access outside of a tensor, and kernels with a mask removed, which it must find.

In Triton's interpreter a kernel reads and writes the CPU's memory. Here each tensor lies between pages that can't be
accessed: flush with the page behind it, or with the page before it. What remains of its own pages holds a pattern. An
access outside of a tensor ends the process (SIGSEGV), or changes the pattern. Every case therefore runs in a process
of its own, forked from one that has loaded everything.
"""

import ast
import ctypes
import faulthandler
import importlib
import importlib.util
import math
import mmap
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
# before and behind the pages of a tensor; an access further off meets no memory, or another tensor's
GUARD = 1 << 22
PAGE = mmap.PAGESIZE
# NaN in every floating point type, 255, or -1
PATTERN = 0xFF
PLACEMENTS = ("end", "start")
# modules of kernels whose functions are compiled into those of another
PARTS_OF = {"dice_blocks": "dice"}


class GuardedMemory(TorchFunctionMode):
    """A context in which all new tensors are guarded.

    Args:
        placement: `end` puts tensors before a guard, `start` behind one.
    """

    def __init__(self, placement):
        super().__init__()
        self.placement = placement
        self._slack = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)}
        if isinstance(result, torch.Tensor) and _address(result) not in given:
            return self.placed(result)
        return result

    def placed(self, tensor):
        """A guarded copy of a tensor, with its strides."""
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        used = extent * tensor.element_size() if tensor.numel() else 0
        pages = max(1, math.ceil(used / PAGE)) * PAGE
        memory = mmap.mmap(-1, GUARD + pages + GUARD)
        memory[GUARD : GUARD + pages] = bytes([PATTERN]) * pages
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for start in (address, address + GUARD + pages):
            if ctypes.CDLL(None).mprotect(ctypes.c_void_p(start), ctypes.c_size_t(GUARD), 0):
                raise OSError("mprotect failed")
        slack = pages - used
        first = GUARD + (slack if self.placement == "end" else 0)
        self._slack.append((memory, GUARD if self.placement == "end" else GUARD + used, slack))
        if not tensor.numel():
            return tensor
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=extent, offset=first)
        return flat.as_strided(tensor.shape, tensor.stride()).copy_(tensor)

    def check(self):
        """Raises if anything beside the tensors was written."""
        for memory, first, length in self._slack:
            if memory[first : first + length].count(PATTERN) != length:
                raise AssertionError("a kernel wrote beside a tensor")


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


def prepare(modules):
    """Loads what all cases need, and has Triton's interpreter prepare its functions and those of modules of kernels."""
    from triton.runtime.interpreter import InterpretedFunction

    # the interpreter loads it at the first launch
    importlib.import_module("triton.experimental.gluon")
    language = ["triton.language.standard", "triton.language.random"]
    for name in [*language, *(f"vnet_fast.kernels.{module}" for module in modules)]:
        for function in list(vars(importlib.import_module(name)).values()):
            if isinstance(function, InterpretedFunction):
                function.rewrite()


def outcome(function):
    """What becomes of a function that is called in a process of its own: `passed`, or why not, with a traceback."""
    with tempfile.TemporaryFile("w+") as log:
        process = os.fork()
        if not process:
            code = 1
            try:
                # for a fault, the lines that led to it
                faulthandler.enable(log)
                function()
                code = 0
            except BaseException:
                traceback.print_exc(file=log)
                log.flush()
            finally:
                os._exit(code)
        status = os.waitpid(process, 0)[1]
        log.seek(0)
        text = log.read()
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        access = "wrote" if "create_masked_store" in text else "read" if "create_masked_load" in text else "accessed"
        return f"a kernel {access} memory outside of its tensors ({name})\n{text}"
    return text or "passed"


def run(case, placement):
    """Runs a case, a function that is given the guarded memory, and checks what surrounds its tensors."""
    with GuardedMemory(placement) as memory:
        case(memory)
    memory.check()


def outcomes(cases):
    """{(name, placement): outcome} of cases, {name: function}."""
    return {
        (name, placement): outcome(lambda case=case, placement=placement: run(case, placement))
        for name, case in cases.items()
        for placement in PLACEMENTS
    }


def outcome_without_mask(module, index, cases):
    """The outcome of cases where a module of kernels lacks a mask, see `load_without_mask`."""

    with tempfile.TemporaryDirectory() as folder:

        def run_all():
            load_without_mask(module, index, Path(folder))
            for case in cases.values():
                for placement in PLACEMENTS:
                    run(case, placement)

        return outcome(run_all)


def masked_accesses(module):
    """The calls of `tl.load` and `tl.store` with a mask in a module of kernels: [(line, source)], in order."""
    calls = _masked_calls(ast.parse(_source(module)))
    return [(call.lineno, ast.unparse(call)) for call in calls]


def load_without_mask(module, index, folder):
    """Replaces a module of kernels by one that lacks the mask of a load or store, for this process.

    Args:
        module: its name.
        index: of the access among those of `masked_accesses`.
        folder: where its source is kept, which Triton reads when a kernel is launched.
    """
    tree = ast.parse(_source(module))
    call = _masked_calls(tree)[index]
    call.keywords = [keyword for keyword in call.keywords if keyword.arg not in ("mask", "other")]
    path = folder / f"{module}.py"
    # as long as it was, so that the lines of a fault are those of the file
    path.write_text(ast.unparse(tree))
    name = f"vnet_fast.kernels.{module}"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    setattr(importlib.import_module("vnet_fast.kernels"), module, sys.modules[name])
    if module in PARTS_OF:
        importlib.reload(importlib.import_module(f"vnet_fast.kernels.{PARTS_OF[module]}"))


def _source(module):
    return (KERNELS / f"{module}.py").read_text(encoding="utf-8")


def _masked_calls(tree):
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("tl.load", "tl.store")
        and any(keyword.arg == "mask" for keyword in node.keywords)
    ]
    return sorted(calls, key=lambda call: (call.lineno, call.col_offset))
