"""Autograd's backward pass in Python, for tensors of a device that is not there.

PyTorch's engine asks the driver for the devices of a graph. This one runs the nodes in the engine's order, and treats
gradients between them as the engine does: it adds those of one tensor, and casts a gradient to its tensor's type.
"""

import contextlib
from collections import Counter, defaultdict

import torch

_backward = torch.Tensor.backward


def backward(root, gradient=None):
    """Sets or adds to `.grad` of the leaves of a scalar, as `root.backward()` does."""
    buffers = defaultdict(dict)
    with torch.no_grad():
        buffers[root.grad_fn][root.output_nr] = torch.ones_like(root) if gradient is None else gradient
        _run(root.grad_fn, buffers)


@contextlib.contextmanager
def in_python():
    """Within it `Tensor.backward` of a tensor on the device is the one of this module."""
    torch.Tensor.backward = lambda self, gradient=None, *arguments, **options: (
        backward(self, gradient) if self.is_cuda else _backward(self, gradient, *arguments, **options)
    )
    try:
        yield
    finally:
        torch.Tensor.backward = _backward


def _run(root, buffers):
    waiting, ready = _consumers(root), [root]
    while ready:
        # of the nodes that could run, the engine takes the one that was made last
        node = max(ready, key=_sequence)
        ready.remove(node)
        received = buffers.pop(node, {})
        if node.name().endswith("AccumulateGrad"):
            _accumulate(node.variable, received.get(0))
            continue
        for (following, index), gradient in zip(node.next_functions, _outputs(node, received), strict=False):
            if following is None:
                continue
            if gradient is not None:
                _add(buffers[following], index, _as_needed(gradient, following, index))
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)


def _consumers(root):
    """How many nodes each node waits for."""
    waiting, seen, found = Counter(), {root}, [root]
    while found:
        for following, _ in found.pop().next_functions:
            if following is not None:
                waiting[following] += 1
                if following not in seen:
                    seen.add(following)
                    found.append(following)
    return waiting


def _sequence(node):
    # leaves come first
    return float("inf") if node.name().endswith("AccumulateGrad") else node._sequence_nr()


def _outputs(node, received):
    """What a node makes of the gradients that it received, by their places."""
    if not any(gradient is not None for gradient in received.values()):
        return [None] * len(node.next_functions)
    gradients = [received.get(index) for index in range(max(len(node._input_metadata), *received, 1))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        outputs = node.apply(*gradients)
    else:
        outputs = node(*gradients)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _add(buffer, index, gradient):
    buffer[index] = buffer[index] + gradient if index in buffer else gradient


def _as_needed(gradient, node, index):
    """The gradient as the engine gives it to a node: in the type and shape of the tensor whose gradient it is."""
    if node.name().endswith("AccumulateGrad"):
        wanted = node.variable
    elif index < len(node._input_metadata):
        wanted = node._input_metadata[index]
    else:
        return gradient
    if gradient.shape != torch.Size(wanted.shape):
        # of a tensor that was repeated; anything else is an error
        gradient = gradient.sum_to_size(tuple(wanted.shape))
    if gradient.device != wanted.device:
        raise AssertionError(f"{node.name()} takes a gradient on {wanted.device}; got one on {gradient.device}")
    return gradient if gradient.dtype == wanted.dtype else gradient.to(wanted.dtype)


def _accumulate(leaf, gradient):
    if gradient is None:
        return
    if leaf.grad is not None:
        leaf.grad = leaf.grad + gradient
    elif _strides(gradient) == _strides(leaf):
        leaf.grad = gradient.detach()
    else:
        # the engine gives a leaf's gradient the leaf's strides
        leaf.grad = torch.empty_strided(leaf.shape, leaf.stride(), dtype=gradient.dtype, device=gradient.device)
        leaf.grad.copy_(gradient)


def _strides(tensor):
    return [stride for stride, length in zip(tensor.stride(), tensor.shape, strict=True) if length > 1]
