"""The floor of a network: the least time of a step on a machine, whoever writes it.

Of each convolution and pass, the longer of its arithmetic at the machine's matrix-product rate and its
compulsory bytes (input, output and weights once each) at its copy bandwidth. All elementwise work is
taken as fused into a convolution. On top, the loss and the optimiser by their bytes.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import DEVICE, ON_GPU, synchronize

PASSES = ("forward", "input gradient", "weight gradient")
# float32: gradient, momentum and weight read, momentum and weight written
OPTIMIZER_BYTES = 20
# side of the matrices and bytes of the copy: long enough for the rate to be the machine's
MATRIX, COPIED = (8192, 2**32) if ON_GPU else (2048, 2**28)
REPEATS = 20 if ON_GPU else 4


@dataclass(frozen=True)
class Ceilings:
    """What a machine reaches: FLOP/s of a large matrix product, bytes/s of a large copy."""

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network.

    Args:
        input, weight, output: shapes.
        stride, padding: along each axis.
        transposed: whether it is an up-convolution.
        needs_input_gradient: false of the first one.
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
        """Of a training step."""
        return [name for name in PASSES if self.needs_input_gradient or name != "input gradient"]

    @property
    def flops(self):
        """Of one pass; all have the same."""
        places = self.input if self.transposed else self.output
        return 2 * places[0] * math.prod(places[2:]) * math.prod(self.weight)

    def nbytes(self, dtype):
        """That one pass must move; all must move the same."""
        return sum(map(math.prod, (self.input, self.weight, self.output))) * dtype.itemsize

    def floor(self, dtype, ceilings):
        """Seconds of one pass."""
        return max(self.flops / ceilings.flops, self.nbytes(dtype) / ceilings.bandwidth)

    def __str__(self):
        kernel = "x".join(map(str, self.weight[2:])) + (" up" if self.transposed else "")
        if not self.transposed and max(self.stride) > 1:
            kernel += " down"
        size = "x".join(map(str, self.input[:1:-1]))
        return f"{self.input[1]}→{self.output[1]}, {kernel}, {size}"


@dataclass(frozen=True)
class Floor:
    """Seconds of a training step and of its forward pass, and the step's FLOPs."""

    step: float
    forward: float
    flops: int


class _Recorder(TorchDispatchMode):
    """Notes every convolution that runs, by module or by function."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            x, weight, _, stride, padding, _, transposed = args[:7]
            shapes = (tuple(tensor.shape) for tensor in (x, weight, result))
            self.found.append(Convolution(*shapes, tuple(stride), tuple(padding), transposed, x.requires_grad))
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
    return recorder.found, tuple(logits.shape)


def floor_of(model, shape, dtype, ceilings):
    """The Floor of a network; see `convolutions`.

    Args:
        dtype: of activations and of the weights that convolutions read.
        ceilings: of the machine, in that dtype.
    """
    layers, logits = convolutions(model, shape)
    # the loss reads logits and labels of one byte, its backward pass reads them again and writes a gradient
    voxels = math.prod(logits) // logits[1]
    loss = 3 * math.prod(logits) * dtype.itemsize + 2 * voxels
    # in mixed precision the optimiser writes the weights in half precision too
    parameter = OPTIMIZER_BYTES + (dtype.itemsize if dtype is not torch.float32 else 0)
    others = loss + parameter * sum(weight.numel() for weight in model.parameters())
    return Floor(
        step=sum(layer.floor(dtype, ceilings) * len(layer.passes) for layer in layers) + others / ceilings.bandwidth,
        forward=sum(layer.floor(dtype, ceilings) for layer in layers),
        flops=sum(layer.flops * len(layer.passes) for layer in layers),
    )


# dict from dtype to Ceilings, of those that a run needed
measured = {}


def ceilings_of(dtype):
    """The Ceilings of this machine, measured once a run."""
    if dtype not in measured:
        a, b = (torch.randn(MATRIX, MATRIX, device=DEVICE).to(dtype) for _ in range(2))
        source = torch.zeros(COPIED, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        measured[dtype] = Ceilings(
            flops=2 * MATRIX**3 / min(map(_best, _products(a, b))),
            bandwidth=2 * COPIED / _best(lambda: target.copy_(source)),
        )
    return measured[dtype]


def _products(a, b):
    """Functions that multiply two matrices."""
    products = [lambda: torch.mm(a, b)]
    if not ON_GPU and torch.backends.mkldnn.is_available():
        # on a CPU of AMD's, MKL, which torch.mm calls, has half of oneDNN's rate in float32
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
    return products


def _best(run):
    """The shortest seconds of several runs after a first: a ceiling is what the machine can do."""
    seconds = []
    for _ in range(1 + REPEATS):
        synchronize()
        began = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
