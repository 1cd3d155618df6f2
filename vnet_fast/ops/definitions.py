"""The operations in plain PyTorch: what the kernels are held against, and what runs without them.

Arguments and results are those of `vnet_fast.functional`.
"""

import torch
import torch.nn.functional as F


def add_prelu(x, slope, bias, residual):
    """PReLU of x + bias + residual."""
    return F.prelu(_add(x, bias, residual), slope.to(x.dtype))


def add_prelu_gradients(grad_y, x, slope, bias, residual):
    """Gradients of `add_prelu`.

    Returns:
        grad_x, which is the residual's too, in the type of `x`; grad_slope and grad_bias, (C,) in
        float32 (float64 for float64), the latter None without a bias.
    """
    z = _add(x, bias, residual)
    others = [axis for axis in range(z.ndim) if axis != 1]
    wide = torch.promote_types(z.dtype, torch.float32)
    slope = slope.to(z.dtype).reshape(-1, *[1] * (z.ndim - 2))
    grad_x, grad_slope = torch.ops.aten._prelu_kernel_backward(grad_y, z, slope)
    return grad_x, grad_slope.sum(others, dtype=wide), None if bias is None else grad_x.sum(others, dtype=wide)


def _add(x, bias, residual):
    if bias is not None:
        x = x + bias.to(x.dtype).reshape(-1, *[1] * (x.ndim - 2))
    return x if residual is None else x + residual.to(x.dtype)


def dice_sums(input, target, activation, labels, first_class, squared, soft, ignore_index):
    """The sums, (3, N, C - first_class)."""
    _, p, g, _ = _masked(input, target, activation, labels, first_class, ignore_index)
    voxels = tuple(range(2, input.ndim))
    if soft:
        prediction, ground = p.abs().sum(voxels), g.abs().sum(voxels)
        intersection = (prediction + ground - (p - g).abs().sum(voxels)) / 2
    else:
        intersection = (p * g).sum(voxels)
        if squared:
            p, g = p.square(), g.square()
        prediction, ground = p.sum(voxels), g.sum(voxels)
    return torch.stack([intersection, prediction, ground])


def dice_sums_gradient(grad_sums, input, target, activation, labels, first_class, squared, soft, ignore_index):
    """The gradient of `input`, in its type and layout."""
    probability, p, g, counted = _masked(input, target, activation, labels, first_class, ignore_index)
    a, b = grad_sums[:2].reshape(2, *grad_sums.shape[1:], *[1] * (input.ndim - 2))
    if squared:
        grad = a * g + 2 * b * p
    elif soft:
        grad = (b + a / 2) * p.sign() - a / 2 * (p - g).sign()
    else:
        grad = a * g + b
    if counted is not None:
        grad = grad * counted
    if first_class:
        grad = torch.cat([torch.zeros_like(probability[:, :first_class]), grad.expand_as(p)], 1)
    if activation == "softmax":
        grad = probability * (grad - (probability * grad).sum(1, keepdim=True))
    elif activation == "sigmoid":
        grad = probability * (1 - probability) * grad
    return torch.empty_like(input).copy_(grad)


def _masked(input, target, activation, labels, first_class, ignore_index):
    """p of every class; p and g of those that count, zero where ignored; ones where voxels count."""
    probability = input.to(torch.promote_types(input.dtype, torch.float32))
    if activation == "softmax":
        probability = torch.softmax(probability, 1)
    elif activation == "sigmoid":
        probability = torch.sigmoid(probability)
    counted = None if ignore_index is None else _counted(target, ignore_index, probability.dtype)
    if labels:
        target = _one_hot(target, input.shape[1], ignore_index, probability.dtype)
    p, g = probability[:, first_class:], target[:, first_class:].to(probability.dtype)
    if counted is not None:
        p, g = p * counted, g * counted
    return probability, p, g, counted


def _counted(target, ignore_index, dtype):
    """(N, 1, *spatial): 1 where a voxel counts, 0 where it is ignored."""
    num_channels = target.shape[1]
    if num_channels == 1:
        return (target != ignore_index).to(dtype)
    if 0 <= ignore_index < num_channels:
        return 1 - target[:, ignore_index : ignore_index + 1].to(dtype)
    return (target.sum(1, keepdim=True) > 0).to(dtype)


def _one_hot(labels, num_classes, ignore_index, dtype):
    index = labels.long()
    if ignore_index is not None and not 0 <= ignore_index < num_classes:
        index = index.masked_fill(labels == ignore_index, 0)
    shape = (labels.shape[0], num_classes, *labels.shape[2:])
    return torch.zeros(shape, dtype=dtype, device=labels.device).scatter_(1, index, 1)
