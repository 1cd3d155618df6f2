"""What a function asks of a device that is not there (`fake_cuda.py`): every operator, every launch of a kernel, and
what would go wrong or cost time on a real one.
"""

import contextlib
import importlib
import math
import pkgutil
from collections import Counter
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.gpu_rehearsal.fake_cuda import is_pinned
from vnet_fast import kernels
from vnet_fast.ops.operator import OPERATORS

# their results, or the shapes of their results, are numbers that the host has to read
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount", "repeat_interleave"}
# copies of data; others only name the same memory, or make new memory
COPIES = {"_to_copy", "copy_", "clone"}
# views that have no alias in their schema
VIEWS = {"_unsafe_view", "_reshape_alias", "lift_fresh", "alias"}
# of PyTorch's kernels that take many tensors: numbers in a chunk, chunks and tensors in a launch, by tensors at a time
CHUNK, CHUNKS, TENSORS = 65536, 320, {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}


class OperatorLog(TorchDispatchMode):
    """Keeps what runs within it.

    Attributes:
        operators: how often each operator ran that launches something, cuDNN's convolutions included.
        kernels: how often each kernel of the package was launched.
        launches: of PyTorch's and the package's kernels; cuDNN's are not counted.
        findings: what a GPU would refuse, what the host would wait for, and what copies a volume into another layout.
    """

    def __init__(self):
        super().__init__()
        self.operators, self.kernels, self.launches, self.findings = Counter(), Counter(), 0, []

    @contextlib.contextmanager
    def recording(self):
        """The context in which everything is noted; the kernels of the package are replaced."""
        with contextlib.ExitStack() as stack:
            for module, name in _kernels():
                stack.enter_context(mock.patch.object(module, name, _Recorder(self, name)))
            yield stack.enter_context(self)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.namespace == "prim":
            # a question about a tensor
            return function(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd"):
            # made of others, which come here one by one; only in inference mode it has not been taken apart yet
            with self:
                return function.decompose(*args, **kwargs)
        name, given = function.overloadpacket.__name__, _tensors((args, kwargs))
        result = self._run(function, name, args, kwargs)
        tensors = [*given, *_tensors(result)]
        if any(tensor.is_cuda for tensor in tensors):
            self._check(name, args, given, result)
            self._count(function, name, given)
        return result

    def _run(self, function, name, args, kwargs):
        if name == "_local_scalar_dense":
            # what it would be, nobody knows
            return 0
        if name.startswith(("_fused_", "_amp_")):
            # they write in place, and have no rules for fake tensors
            self.findings += _refused(name, args)
            return None
        result = function(*args, **kwargs)
        if function.namespace == "vnet_fast":
            self._compare(function, args, kwargs, result)
        return result

    def _compare(self, function, args, kwargs, expected):
        """Runs what the operator runs on a GPU, and compares its results with those that fake tensors have."""
        found = OPERATORS[function._schema.name].function(*args, **kwargs)
        descriptions = [[describe(tensor) for tensor in _tensors(results)] for results in (expected, found)]
        if descriptions[0] != descriptions[1]:
            self.findings.append(
                f"{function._schema.name}: fake results {descriptions[0]}, real ones {descriptions[1]}"
            )

    def _check(self, name, args, given, result):
        places = {tensor.device.type for tensor in [*given, *_tensors(result)]}
        if name in WAITS:
            self.findings.append(f"{name}: the host waits for the device")
        indices = _tensors(args[1]) if name in ("index", "index_put", "index_put_", "_index_put_impl_") else []
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            self.findings.append(f"{name}: the host waits for the device to count a mask")
        if name in COPIES:
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            self.findings += _copy_findings(name, source, target)
        elif len(places) > 1:
            self.findings.append(f"{name}: tensors on {' and '.join(sorted(places))}")
        if name in ("convolution", "convolution_backward"):
            for tensor in [tensor for tensor in [*given, *_tensors(result)] if tensor.ndim == 5]:
                if not tensor.is_contiguous(memory_format=torch.channels_last_3d):
                    self.findings.append(f"{name}: {describe(tensor)} is not channels-last")

    def _count(self, function, name, given):
        if name.startswith(("_fused_", "_amp_foreach", "_foreach")):
            launches = _launches_of_many(given)
        elif function.namespace == "vnet_fast" or _is_free(function, name):
            return
        else:
            launches = 0 if name in ("convolution", "convolution_backward") else 1
        self.operators[name] += 1
        self.launches += launches

    def note_kernel(self, name, tensors):
        """Notes the launch of a kernel with its arguments that are tensors."""
        self.kernels[name.strip("_")] += 1
        self.launches += 1
        if any(not tensor.is_cuda for tensor in tensors):
            self.findings.append(f"{name}: takes tensors of the host")

    def summary(self):
        """What is kept in the repository, and compared."""
        return {
            "launches besides cuDNN's": self.launches,
            "operators": dict(sorted(self.operators.items())),
            "kernels": dict(sorted(self.kernels.items())),
            "findings": [f"{count} x {text}" if count > 1 else text for text, count in Counter(self.findings).items()],
        }


class _Recorder:
    """Stands for a kernel."""

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __getitem__(self, grid):
        return lambda *args, **kwargs: self.log.note_kernel(self.name, _tensors((args, kwargs)))


def describe(tensor):
    """As in `bfloat16 (2, 16, 64, 128, 128) channels-last`."""
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if tensor.is_contiguous():
        return f"{dtype} {shape}"
    last = tensor.ndim == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return f"{dtype} {shape} {'channels-last' if last else f'strides {tensor.stride()}'}"


def layout_of(tensor):
    """The order of the axes in memory, those of length 1 left out."""
    axes = [axis for axis in range(tensor.ndim) if tensor.shape[axis] > 1]
    return sorted(axes, key=lambda axis: (-tensor.stride(axis), axis))


def _kernels():
    """(module, name) of every kernel of the package, wherever a launcher finds it."""
    for found in pkgutil.iter_modules(kernels.__path__, "vnet_fast.kernels."):
        module = importlib.import_module(found.name)
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel") and hasattr(value, "__getitem__"):
                yield module, name


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _copy_findings(name, source, target):
    if not isinstance(source, torch.Tensor):
        return
    if source.device.type != target.device.type:
        how = "pinned" if target.is_cuda and is_pinned(source) else "pageable"
        way = f"from {how} memory to the device" if target.is_cuda else "to the host"
        yield f"{name}: {describe(source)} {way}"
    if source.ndim == 5 and source.shape == target.shape and layout_of(source) != layout_of(target):
        yield f"{name}: {describe(source)} into the layout of {describe(target)}"


def _is_free(function, name):
    """Whether an operator only makes a view or new memory."""
    returns = function._schema.returns
    is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
    return is_view or name in VIEWS or name.removeprefix("new_").startswith("empty")


def _refused(name, args):
    """What PyTorch's kernels for many tensors would refuse."""
    lists = [argument for argument in args if isinstance(argument, (list, tuple)) and argument]
    tensors = _tensors(lists)
    if any(not tensor.is_cuda for tensor in _tensors(args)):
        yield f"{name}: takes tensors of the host"
    if name.startswith("_fused_"):
        for group in zip(*lists[:3], strict=True):
            if len({(tensor.dtype, tuple(layout_of(tensor))) for tensor in group}) > 1:
                yield f"{name}: takes {' with '.join(map(describe, group))}"
    elif any(tensor.dtype != torch.float32 and not tensor.is_floating_point() for tensor in tensors):
        yield f"{name}: takes whole numbers"


def _launches_of_many(tensors):
    """How many launches PyTorch makes for lists of tensors, of which the largest are those of the weights."""
    sizes = Counter(tensor.numel() for tensor in tensors if tensor.ndim > 0 or tensor.numel() > 1)
    if not sizes:
        return 1
    # every list has a tensor for each weight
    depth = min(max(1, math.gcd(*sizes.values())), max(TENSORS))
    launches = chunks = held = 0
    for size in (size for size, count in sizes.items() for _ in range(count // depth)):
        held += 1
        for _ in range(math.ceil(size / CHUNK)):
            chunks += 1
            if chunks == CHUNKS:
                launches, chunks, held = launches + 1, 0, 1
        if held == TENSORS[depth]:
            launches, chunks, held = launches + 1, 0, 0
    return launches + (chunks > 0)
