"""A network whose batch norms are folded into its convolutions, for prediction and export."""

import torch

from vnet_fast.nn.vnet import Activated, VNet


@torch.no_grad()
def folded(model: VNet) -> VNet:
    """The network without norm that has the logits of one with batch norm in evaluation mode, but for rounding.

    Other networks are returned as they are: what instance and group norm do depends on the input.

    Args:
        model: a network. It is not changed.

    Returns:
        a new network on the same device, in evaluation mode, with weights of its own that need no gradient; or `model`.
    """
    if model.norm != "batch":
        return model
    with torch.random.fork_rng([]):
        channels = model.in_channels, model.num_classes, model.base_channels
        plain = VNet(*channels, model.topology, None, model.levels, model.kernel_size, model.halvings)
    state = {name: value for name, value in model.state_dict().items() if ".norm." not in name}
    for name, module in model.named_modules():
        if isinstance(module, Activated) and module.norm is not None:
            weight, bias = module.norm.folded(module.convolution, module.convolution.weight)
            state |= {f"{name}.convolution.weight": weight, f"{name}.convolution.bias": bias}
    # of the same device and type, whatever PyTorch's default is
    plain.to(model.head.weight).load_state_dict(state)
    return plain.eval().requires_grad_(False)
