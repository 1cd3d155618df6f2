"""PyTorch without arithmetic: every result has its shape, type and layout, and what its memory happens to hold.

With it a whole training step of full size runs in a fraction of a second, and touches almost none of its memory. The
project's own operators run as they are, and so launch their kernels, if a device is pretended (`device.py`).
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

# what fits into so few numbers is computed: scales, rates and counts, which the host may look at
SMALL = 4096
# these bring a number, or a shape that depends on one, to the host: on a GPU the host would wait
WAITS = {"_local_scalar_dense", "nonzero", "item", "unique", "masked_select", "is_nonzero", "equal"}


class ShapeOnly(TorchDispatchMode):
    """The mode.

    Attributes:
        waits: the operations that would have waited for a GPU.
    """

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = function._schema.name.partition("::")[2]
        if name in WAITS:
            self.waits.append(name)
        if not function._schema.returns:
            # an assertion, of numbers that are none
            return None
        if function.namespace == "vnet_fast" or _is_quick(function, args, kwargs):
            return function(*args, **kwargs)
        if any(argument.is_write for argument in _aliases(function._schema.arguments)):
            return _written(function, args, kwargs)
        if "device" in kwargs:
            kwargs = kwargs | {"device": None if kwargs["device"] is None else "meta"}
        shapes = function(*tree_map_only(torch.Tensor, _meta, args), **tree_map_only(torch.Tensor, _meta, kwargs))
        if _is_convolution(function):
            # as cuDNN's are, if an argument is
            shapes = tree_map_only(
                torch.Tensor, lambda t: t.to(memory_format=torch.channels_last_3d) if t.ndim == 5 else t, shapes
            )
        return tree_map_only(torch.Tensor, _memory, shapes)


def _is_convolution(function):
    return function._schema.name.startswith("aten::conv")


def _aliases(of_schema):
    return [value.alias_info for value in of_schema if value.alias_info is not None]


def _is_quick(function, args, kwargs):
    """Whether an operation makes a view or new memory only, or computes few numbers."""
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
    is_view = any(not alias.is_write for alias in _aliases(function._schema.returns))
    if is_view or "empty" in function._schema.name:
        return True
    # the CPU's convolutions of small volumes have other layouts than a GPU's
    return not _is_convolution(function) and all(tensor.numel() <= SMALL for tensor in tensors)


def _written(function, args, kwargs):
    """What an operation that writes in place returns."""
    given = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)} | kwargs
    names = {
        label: argument.name
        for argument in function._schema.arguments
        if argument.alias_info is not None
        for label in argument.alias_info.before_set
    }
    results = [given[names[next(iter(alias.before_set))]] for alias in _aliases(function._schema.returns)]
    return results[0] if len(results) == 1 else tuple(results) or None


def _meta(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _memory(tensor):
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
