"""Weights of convolutions in half precision, which an optimiser keeps beside their own."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from vnet_fast.nn.vnet import VNet


class HalfWeights:
    """The weights of a network's convolutions in half precision, for the forward passes of a training step.

    Autocast casts every weight in the forward pass and every gradient in the backward pass. These copies are leaves:
    they are read as they are, and have gradients of their own type; `.grad` of the weights stays None. The optimiser
    keeps them equal to the rounded weights. What is written to a weight through `.data`, which PyTorch does not count,
    they follow after the next update, or `Step.release`. The network has them only while `in_use`, so that nothing else
    comes to see them.

    Args:
        model: the network.
        dtype: of the copies.
    """

    def __init__(self, model: VNet, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.convolutions = with_copies(model)
        self.copies = {
            convolution.weight: convolution.weight.detach().to(dtype).requires_grad_()
            for convolution in self.convolutions
        }
        self._versions = self._current_versions()

    def refresh(self) -> None:
        """Copies the weights again if anything but the optimiser has set them, such as `load_state_dict`."""
        # PyTorch counts what it does to a tensor; kernels that it does not know are not counted
        if self._versions != self._current_versions():
            with torch.no_grad():
                for weight, copy in self.copies.items():
                    copy.copy_(weight)
            self._versions = self._current_versions()

    def _current_versions(self) -> list[int]:
        return [weight._version for weight in self.copies]

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """A context in which the convolutions use the copies instead of their weights."""
        for convolution in self.convolutions:
            convolution.compute_weight = self.copies[convolution.weight]
        try:
            yield
        finally:
            for convolution in self.convolutions:
                del convolution.compute_weight


def with_copies(model: VNet) -> list[nn.Conv3d | nn.ConvTranspose3d]:
    """The convolutions whose weights can have copies: those that are trained, as they are, and without hooks."""
    found = []
    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            # a parametrised weight is no parameter, and is computed anew at each access
            weight = module._parameters.get("weight")
            hooked = weight is not None and (weight._backward_hooks or weight._post_accumulate_grad_hooks)
            if weight is not None and weight.requires_grad and not hooked:
                found.append(module)
    return found
