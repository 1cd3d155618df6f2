import numpy as np
import torch

from vnet_fast import VNet
from vnet_fast.inference import predict_probabilities

SIZE = (16, 32, 32)


def test_probabilities():
    model = VNet(base_channels=2, num_classes=3)
    image = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    probabilities = predict_probabilities(model, image)
    assert probabilities.shape == (3, *SIZE)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    logits = model(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(probabilities, torch.softmax(logits[0], 0).detach().numpy(), rtol=1e-5, atol=1e-6)
