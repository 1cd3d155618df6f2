"""The floor of a network: the least time of a training step on a machine, by any implementation.

The floor of a convolution's pass is the longer of two times: its arithmetic at the machine's ceiling, and its
compulsory bytes (input, output and weights, once each) at the rate of a transfer of that size. Products with the
zeros of the padding do not count, because an implementation may skip them. All elementwise work is taken as fused
into a convolution. The loss and the optimiser add the time of their bytes.
"""

import math
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PASSES = ("forward", "input gradient", "weight gradient")
# float32: gradient, momentum and weight read, momentum and weight written
OPTIMIZER_BYTES = 20


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network.

    Args:
        input, weight, output: shapes.
        stride, padding: along each axis.
        transposed: whether it is an up-convolution.
        needs_input_gradient: false for the network's first convolution.
    """

    input: tuple
    weight: tuple
    output: tuple
    stride: tuple
    padding: tuple
    transposed: bool
    needs_input_gradient: bool

    @property
    def passes(self):
        """The passes of a training step."""
        return [name for name in PASSES if self.needs_input_gradient or name != "input gradient"]

    @property
    def flops(self):
        """FLOPs of one pass, without the products with the padding's zeros. All passes have the same number."""
        # an up-convolution is the gradient of a convolution from its output to its input
        read, written = (self.output, self.input) if self.transposed else (self.input, self.output)
        products = map(count_products, read[2:], self.weight[2:], written[2:], self.stride, self.padding)
        return 2 * self.input[0] * math.prod(self.weight[:2]) * math.prod(products)

    def nbytes(self, dtype):
        """Bytes that one pass must move. All passes move the same number."""
        return sum(map(math.prod, (self.input, self.weight, self.output))) * dtype.itemsize

    def floor(self, dtype, ceilings):
        """Seconds of one pass."""
        nbytes = self.nbytes(dtype)
        return max(self.flops / ceilings.flops, nbytes / ceilings.bandwidth(nbytes))

    def __str__(self):
        kernel = "x".join(map(str, self.weight[2:])) + (" up" if self.transposed else "")
        if not self.transposed and max(self.stride) > 1:
            kernel += " down"
        size = "x".join(map(str, self.input[:1:-1]))
        return f"{self.input[1]}→{self.output[1]}, {kernel}, {size}"


def count_products(length, kernel, outputs, stride, padding):
    """The number of a convolution's products along one axis whose input lies within the volume."""
    return sum(
        0 <= output * stride - padding + offset < length for output in range(outputs) for offset in range(kernel)
    )


@dataclass(frozen=True)
class Floor:
    """Seconds of a training step and of its forward pass, and the FLOPs of the step."""

    step: float
    forward: float
    flops: int


class _Recorder(TorchDispatchMode):
    """Records every convolution that runs, whether a module or a function calls it."""

    def __init__(self):
        super().__init__()
        self.convolutions = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, _, transposed = args[:7]
            shapes = (tuple(tensor.shape) for tensor in (x, weight, result))
            layer = Convolution(*shapes, tuple(stride), tuple(padding), transposed, x.requires_grad)
            self.convolutions.append(layer)
        return result


def convolutions(model, shape):
    """Every convolution of a network, in the order of its forward pass.

    Args:
        model: on the meta device, where nothing is computed.
        shape: of its input.

    Returns:
        list of Convolution, and the shape of the logits.
    """
    with _Recorder() as recorder:
        logits = model(torch.empty(shape, device="meta"))
    return recorder.convolutions, tuple(logits.shape)


def floor_of(model, shape, dtype, ceilings):
    """The Floor of a network; see `convolutions`.

    Args:
        model, shape: see `convolutions`.
        dtype: of activations and of the weights that convolutions read.
        ceilings: the machine's `ceilings.Ceilings` in that dtype.
    """
    layers, logits = convolutions(model, shape)
    # the loss reads logits and labels of one byte, its backward pass reads them again and writes a gradient
    voxels = math.prod(logits) // logits[1]
    loss = 3 * math.prod(logits) * dtype.itemsize + 2 * voxels
    # in mixed precision the optimiser also writes the weights in half precision
    bytes_per_weight = OPTIMIZER_BYTES + (dtype.itemsize if dtype is not torch.float32 else 0)
    optimizer = bytes_per_weight * sum(weight.numel() for weight in model.parameters())
    others = sum(nbytes / ceilings.bandwidth(nbytes) for nbytes in (loss, optimizer))
    return Floor(
        step=sum(layer.floor(dtype, ceilings) * len(layer.passes) for layer in layers) + others,
        forward=sum(layer.floor(dtype, ceilings) for layer in layers),
        flops=sum(layer.flops * len(layer.passes) for layer in layers),
    )
