"""The operations that are worth a kernel, each defined in plain PyTorch."""

import torch
import torch.nn.functional as F

ACTIVATIONS = ("none", "sigmoid", "softmax")


def add_prelu(x, slope, residual=None):
    """PReLU of `x`, or of `x + residual`.

    Args:
        x: (N, C, D, H, W), floating point.
        slope: (C,), the factor for negative values of each channel.
        residual: None, or a tensor that broadcasts to `x`: (N, C, D, H, W) or (N, 1, D, H, W).

    Returns:
        (N, C, D, H, W) in the layout of `x`.

    Source:
        He et al. 2015 (PReLU); the residual of a V-Net stage is added before the activation.
    """
    if residual is not None:
        x = x + residual
    return F.prelu(x, slope.to(x.dtype))


def dice_sums(
    input, target, *, activation="none", labels=False, first_class=0, squared=False, soft=False, ignore_index=None
):
    """The sums over the voxels of each (volume, class) that every form of the Dice loss is made of.

    With p the activated input and g the target, both set to zero where the target is ignored.

    Args:
        input: (N, C, *spatial), floating point.
        target: (N, 1, *spatial) class indices of any integer, bool or whole-valued float type if
            `labels`; else (N, C, *spatial), numbers of any type.
        activation: `none`, `sigmoid`, or `softmax` over the classes.
        labels: whether `target` holds class indices.
        first_class: the first class that is counted; 1 leaves the background out.
        squared: sums p² and g² rather than p and g.
        soft: takes the intersection as (Σ|p| + Σ|g| - Σ|p - g|) / 2, which is right for targets
            between 0 and 1; no different from Σpg if `squared`.
        ignore_index: None, or the label whose voxels do not count. For a target with a channel for
            each class, a number that is no class ignores the voxels where no channel is set.

    Returns:
        (3, N, C - first_class): intersection, prediction, ground truth; float64 if the input is,
        else float32, whatever the input's precision.

    Raises:
        ValueError: if `activation` is none of the three.
        RuntimeError: if a label lies outside 0 … C - 1 and is not ignored (on the CPU).
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    num_classes = input.shape[1]
    probability = input.to(torch.promote_types(input.dtype, torch.float32))
    if activation == "softmax":
        probability = torch.softmax(probability, 1)
    elif activation == "sigmoid":
        probability = torch.sigmoid(probability)
    counted = None if ignore_index is None else _counted(target, ignore_index, probability.dtype)
    if labels:
        target = _one_hot(target, num_classes, ignore_index, probability.dtype)
    target = target.to(probability.dtype)
    probability, target = probability[:, first_class:], target[:, first_class:]
    if counted is not None:
        probability, target = probability * counted, target * counted

    voxels = tuple(range(2, input.ndim))
    if soft and not squared:
        prediction, ground = probability.abs().sum(voxels), target.abs().sum(voxels)
        intersection = (prediction + ground - (probability - target).abs().sum(voxels)) / 2
    else:
        intersection = (probability * target).sum(voxels)
        if squared:
            probability, target = probability.square(), target.square()
        prediction, ground = probability.sum(voxels), target.sum(voxels)
    return torch.stack([intersection, prediction, ground])


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
