"""The definition of the sums with an entropy on a CPU, by pieces of the volumes that stay in the processor's cache.

A pass over a whole volume reads and writes main memory, and new memory for its result. On a piece of the volume, the
same passes take a third of the time. The sums of the pieces are added in their order.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vnet_fast.ops.dice_definition import DiceOptions, gradient_of, sums_of, targets_of

# logits of a piece for each thread, of which a few copies fit into a cache; PyTorch gives a thread 32768 or more
CHUNK = 3 * 2**15
# in which labels can be compared with numbers of classes
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def are_chunked(input: Tensor, options: DiceOptions) -> bool:
    """Whether the sums of these logits are computed by pieces."""
    if input.device.type != "cpu" or options.entropy == "none" or not input.numel():
        return False
    # a view with one spatial axis exists
    lengths, strides = input.shape[2:], input.stride()[2:]
    pairs = zip(strides[:-1], strides[1:], lengths[1:], strict=True)
    return all(outer == inner * length for outer, inner, length in pairs)


def sums_by_chunks(input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """As `dice_sums_definition`."""
    sums = [
        sums_of(input_part, *_targets(target_part, input_part, options), options)
        for input_part, target_part, _ in _chunks(input, target)
    ]
    return torch.stack(sums).sum(0)


def gradient_by_chunks(grad_sums: Tensor, input: Tensor, target: Tensor, options: DiceOptions) -> Tensor:
    """As `dice_sums_gradient_definition`."""
    grad = torch.empty_like(input)
    for input_part, target_part, place in _chunks(input, target, grad):
        place.copy_(gradient_of(grad_sums, input_part, *_targets(target_part, input_part, options), options))
    return grad


def _chunks(input: Tensor, target: Tensor, grad: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same voxels of all volumes, of input, target, and gradient (or input)."""
    count = max(1, CHUNK * torch.get_num_threads() // math.prod(input.shape[:2]))
    flat = [tensor.flatten(2).split(count, 2) for tensor in (input, target, input if grad is None else grad)]
    for input_part, target_part, place in zip(*flat, strict=True):
        yield input_part.contiguous(), target_part, place


def _targets(target: Tensor, input: Tensor, options: DiceOptions) -> tuple[Tensor, Tensor | None]:
    """`targets_of`, and for labels in less time: PyTorch scatters slowly on a CPU, and so it works with flags."""
    if not options.labels:
        return targets_of(target, input, options)
    labels = target if target.dtype in INTEGERS else target.long()
    classes = torch.arange(input.shape[1], dtype=labels.dtype)[:, None]
    dtype, ignored = torch.promote_types(input.dtype, torch.float32), options.ignore_index
    g = torch.eq(labels, classes, out=torch.empty(input.shape, dtype=dtype))
    counted, expected = None, target.numel()
    if ignored is not None:
        counted = torch.ne(target, ignored, out=torch.empty(target.shape, dtype=dtype))
        g, expected = g * counted, int(counted.sum())
    if int(g.sum()) != expected:
        raise RuntimeError(f"a label is out of bounds: it is none of the {input.shape[1]} classes, and not ignored")
    return g, counted
