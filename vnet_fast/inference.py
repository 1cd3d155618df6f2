"""The forward pass of prediction."""

import torch

from vnet_fast.devices import mixed_precision


@torch.inference_mode()
def predict_probabilities(model, image, autocast=None):
    """Softmax probabilities of one volume.

    Args:
        model: the network.
        image: (D, H, W) float32 array, normalised.
        autocast: the dtype of mixed precision, or None.

    Returns:
        (K, D, H, W) float32 array.
    """
    device = next(model.parameters()).device
    volume = torch.from_numpy(image)[None, None].to(device)
    model.eval()
    with mixed_precision(device, autocast):
        logits = model(volume)
    return torch.softmax(logits[0].float(), 0).cpu().numpy()
