"""What a device's memory holds, found by trying."""

import math

import torch

from vnet_fast.devices import free, is_out_of_memory, mixed_precision
from vnet_fast.nn.vnet import SIZE_MULTIPLE


def what_fits(model, loss, autocast, batch_size, size):
    """A smaller batch that the memory holds; of one volume that is still too large, a smaller volume.

    Args:
        model: the network, its gradients of no more use.
        loss: called with (logits, target).
        autocast: the dtype of mixed precision, or None.
        batch_size: what did not fit.
        size: voxels, (z, y, x).

    Returns:
        (batch size, size), or None if not even the smallest fits.
    """
    for fewer in range(batch_size - 1, 0, -1):
        if _fits(model, loss, autocast, fewer, size):
            return fewer, size
    while max(size) > SIZE_MULTIPLE:
        longest = size.index(max(size))
        half = math.ceil(size[longest] / 2 / SIZE_MULTIPLE) * SIZE_MULTIPLE
        size = tuple(half if axis == longest else length for axis, length in enumerate(size))
        if _fits(model, loss, autocast, 1, size):
            return 1, size
    return None


def _fits(model, loss, autocast, batch_size, size):
    device = next(model.parameters()).device
    try:
        image = torch.zeros(batch_size, 1, *size, device=device, dtype=autocast or torch.float32)
        with mixed_precision(device, autocast):
            logits = model(image)
        loss(logits, torch.zeros(batch_size, 1, *size, device=device, dtype=torch.uint8)).backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        free(device)
    return True
