"""What is rehearsed: training steps of whole networks, and the operators with all their options."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from vnet_fast.compat.nnunet import SoftDiceLoss
from vnet_fast.nn import vnet
from vnet_fast.nn.dice_ce import DiceCELoss
from vnet_fast.nn.dice_focal import DiceFocalLoss
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.topology import TOPOLOGIES
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops import eager
from vnet_fast.ops.augment import augment
from vnet_fast.ops.convolution import REWRITES
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform
from vnet_fast.ops.transform_rows import FIELDS
from vnet_fast.run.configuration import LOSSES
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# of a target
TYPES = (torch.uint8, torch.int64, torch.bool, torch.int8, torch.int16, torch.int32, *FLOATS)
LAYOUTS = (torch.channels_last_3d, torch.contiguous_format)
SOFTMAX = {"to_onehot_y": True, "softmax": True}
# without a class of their own: as small as can be, ragged, and several blocks
SHAPES = ((1, 1, 1), (7, 11, 13), (16, 32, 48))
# volumes that the augmentation chooses from
STORED = 4


@dataclasses.dataclass(frozen=True)
class Network:
    """A training step: augmentation, network, loss, backward pass and update."""

    topology: str
    precision: str
    base_channels: int = 16
    classes: int = 2
    batch: int = 2
    shape: tuple[int, int, int] = (64, 128, 128)
    in_channels: int = 1
    loss: str = "dice"
    optimizer: str = "sgd"
    norm: str | None = None
    # the decay of an average of the weights
    ema: float | None = None

    @property
    def name(self):
        """As in `paper bf16 base 16, 2 classes, 2 x 64x128x128, dice, sgd`."""
        shape = "x".join(map(str, self.shape))
        channels = "" if self.in_channels == 1 else f", {self.in_channels} channels"
        norm = "" if self.norm is None else f", {self.norm} norm"
        average = "" if self.ema is None else ", average"
        return (
            f"{self.topology} {self.precision} base {self.base_channels}, {self.classes} classes, "
            f"{self.batch} x {shape}{channels}, {self.loss}, {self.optimizer}{norm}{average}"
        )


# of a network, with every number at several values
NUMBERS = (
    {},
    {"batch": 1, "shape": (16, 16, 16), "optimizer": "adamw"},
    {"base_channels": 8, "classes": 3, "batch": 3, "shape": (35, 50, 33)},
    {"base_channels": 1, "classes": 5, "shape": (32, 16, 48), "loss": "weighted-ce"},
    {"base_channels": 2, "classes": 4, "batch": 1, "shape": (17, 33, 20), "in_channels": 3},
    {"base_channels": 48, "shape": (16, 32, 32)},
)


def networks():
    """Both topologies in three precisions, with all NUMBERS."""
    return [
        dataclasses.replace(Network(topology, precision), **numbers)
        for numbers in NUMBERS
        for topology in TOPOLOGIES
        for precision in PRECISIONS
    ]


def some_networks(share):
    """Of `networks`, one with each of NUMBERS, so that each topology meets each precision.

    Args:
        share: 0 or 1, two choices without a common network.
    """
    kinds = list(itertools.product(TOPOLOGIES, PRECISIONS))
    order = [
        len(PRECISIONS) * (place % len(TOPOLOGIES)) + place % len(PRECISIONS)
        for place in range(share, share + len(NUMBERS))
    ]
    chosen = [(*kinds[kind], numbers) for kind, numbers in zip(order, NUMBERS, strict=True)]
    return [dataclasses.replace(Network(topology, precision), **numbers) for topology, precision, numbers in chosen]


def normalised_networks():
    """Norms over a batch, with both optimisers, and over a sample.

    Those over groups are compiled by `tests/ops/compile_kernels.py`.
    """
    return [
        Network("paper", "bf16", norm="batch"),
        Network("paper", "bf16", norm="batch", optimizer="adamw", ema=0.99),
        Network("caffe", "fp16", 8, classes=3, batch=3, shape=(35, 50, 33), norm="instance", optimizer="adamw"),
    ]


def zeros(shape, dtype):
    """A tensor of zeros, also where no arithmetic is done."""
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)


def as_on_a_gpu():
    """Lets CPU tensors take the same way as a GPU's through the network and its operators, for this process."""
    vnet.convolve = convolve
    # as in a real step, where PyTorch is in no mode
    eager.is_in_torch_dispatch_mode = lambda: False


def convolve(convolution, x, norm=None):
    """`nn.convolution.convolve`, with the bias left to the activation."""
    if isinstance(convolution, nn.ConvTranspose3d):
        return F.conv_transpose3d(x, weight_of(convolution), None, convolution.stride), convolution.bias
    return F.conv3d(x, weight_of(convolution), None, convolution.stride, convolution.padding), convolution.bias


def weight_of(convolution):
    """The weight, or its copy in half precision that a step keeps."""
    copy = getattr(convolution, "compute_weight", None)
    return convolution.weight if copy is None else copy


def fused_optimizer(model, name):
    """The optimiser as on a GPU: one kernel, and rates that are tensors."""
    optimizer = make_optimizer(model, name, 0.1, 0.9, 1e-4)
    for group in optimizer.param_groups:
        group |= {"fused": True, "foreach": False, "lr": torch.tensor(group["lr"])}
    optimizer._step_supports_amp_scaling = True
    return optimizer


def augmented(batch, shape, classes, dtype, transforms=False):
    """A batch of `ops.augment`, or of `ops.transform`: image and mask."""
    ranks, masks = (torch.empty(STORED, *shape, dtype=kind) for kind in (torch.int16, torch.uint8))
    numbers = torch.zeros(batch, dtype=torch.int64)
    control_points = torch.empty(batch, 2, 5, 5, 5)
    tables = torch.empty(STORED, 1 << 16)
    deformed = torch.zeros(batch, dtype=torch.bool)
    parameters = numbers, numbers, deformed, control_points
    if transforms:
        return transform(ranks, tables, masks, *parameters, torch.zeros(batch, FIELDS), classes, dtype)
    return augment(ranks, tables, masks, *parameters, classes, dtype)


def patched(batch, shape, dtype, channels):
    """A batch of `ops.patches`: image and mask."""
    stored = [2 * length for length in shape]
    ranks = torch.empty(channels * math.prod(stored), dtype=torch.int16)
    masks = torch.empty(math.prod(stored), dtype=torch.uint8)
    places, numbers = torch.tensor([[0, *stored]]), torch.zeros(batch, dtype=torch.int64)
    tables, control_points = torch.empty(channels, 1 << 16), torch.empty(batch, 2, 5, 5, 5)
    flags, rows = torch.zeros(batch, dtype=torch.bool), torch.zeros(batch * channels, FIELDS)
    choices = numbers, numbers, flags, control_points, rows
    return patches(ranks, tables, masks, places, *choices, shape, 3, dtype)


def train(network):
    """One training step. An input of several channels can't be augmented."""
    model = VNet(network.in_channels, network.classes, network.base_channels, network.topology, network.norm)
    precision = PRECISIONS[network.precision]
    step = Step(model, LOSSES[network.loss](), fused_optimizer(model, network.optimizer), precision, ema=network.ema)
    if step.average:
        # as on a GPU
        step.average._on_device = torch.zeros(())
    image, mask = augmented(network.batch, network.shape, network.classes, precision or torch.float32)
    if network.in_channels > 1:
        image = image.expand(-1, network.in_channels, -1, -1, -1)
    # the kernel did not write the mask, and definitions read it
    step(image, zeros(mask.shape, mask.dtype))


def differentiate_network(network):
    """Forward and backward pass outside of a step, as in other programs."""
    model = VNet(network.in_channels, network.classes, network.base_channels, network.topology, network.norm)
    loss, precision = LOSSES[network.loss](), PRECISIONS[network.precision]
    image = torch.empty(network.batch, network.in_channels, *network.shape)
    mask = zeros((network.batch, 1, *network.shape), torch.uint8)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        logits = model(image)
    loss(logits, mask).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def predict(network):
    """A forward pass without gradients, as predictions are made."""
    model = VNet(network.in_channels, network.classes, network.base_channels, network.topology, network.norm).eval()
    precision = PRECISIONS[network.precision]
    with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision is not None):
        model(torch.empty(network.batch, network.in_channels, *network.shape))


def predictions():
    """{name: network} of which a prediction is rehearsed."""
    networks = [Network(topology, "bf16", batch=batch) for topology in TOPOLOGIES for batch in (1, 2, 3)]
    return {f"prediction, {network.name}": network for network in networks}


def passes():
    """{name: network} of which a forward and a backward pass are rehearsed."""
    networks = [Network(topology, precision, shape=(32, 64, 64)) for topology in TOPOLOGIES for precision in PRECISIONS]
    return {f"no step, {network.name}": network for network in networks}


def steps():
    """All that is rehearsed of networks: {name: function}."""
    return (
        {network.name: functools.partial(train, network) for network in networks()}
        | {name: functools.partial(differentiate_network, network) for name, network in passes().items()}
        | {name: functools.partial(predict, network) for name, network in predictions().items()}
        | {network.name: functools.partial(train, network) for network in normalised_networks()}
    )


def augmentations(transforms=False):
    """{name: function} of batches."""
    operation = "transform" if transforms else "augment"
    return {
        f"{operation} to {str(dtype).removeprefix('torch.')}, {batch} x {'x'.join(map(str, shape))}": functools.partial(
            augmented, batch, shape, 3, dtype, transforms
        )
        for dtype in FLOATS
        for batch, shape in ((1, (1, 1, 1)), (3, (7, 11, 13)), (2, (64, 128, 128)), (1, (64, 129, 127)))
    }


def batches_of_patches():
    """{name: function} of batches."""
    return {
        f"patches to {str(dtype).removeprefix('torch.')}, {batch} x {'x'.join(map(str, shape))}": functools.partial(
            patched, batch, shape, dtype, channels
        )
        for dtype in FLOATS
        for batch, shape, channels in ((3, (7, 11, 13), 2), (2, (64, 128, 128), 1))
    }


def stacks():
    """{name: function} of volumes whose shifts are stacked for a rewritten convolution."""
    return {
        f"stack {str(dtype).removeprefix('torch.')} {'x'.join(map(str, shape))}": functools.partial(
            stacked, shape, dtype
        )
        for dtype in FLOATS
        for shape in ((2, 32, 64, 128, 128), (2, 256, 4, 8, 8), (1, 48, 7, 11, 13), (3, 16, 1, 1, 3))
    }


def called(part, share):
    """What is rehearsed on a device: {name: function}.

    Args:
        part: `steps` or `operators`.
        share: None for all, or 0 or 1 for less, which still has every kernel, topology, precision and number.
    """
    functions = {"steps": steps, "operators": operators}[part]()
    if share is None:
        return functions
    of_networks = {network.name for network in networks()}
    chosen = [network.name for network in some_networks(share)] if part == "steps" else []
    others = [name for name in functions if name not in of_networks]
    return {name: functions[name] for name in chosen + others[share::4]}


def operators():
    """The losses with all their options, the augmentation, and stacked volumes: {name: function}."""
    losses = {name: functools.partial(differentiate, *case) for name, case in loss_cases()}
    return losses | augmentations() | augmentations(transforms=True) | batches_of_patches() | stacks()


def stacked(shape, dtype):
    """The input of a rewritten convolution."""
    x = torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    REWRITES["zstack"].input(x, (5, 5, 5))


def loss_cases():
    """(name, (loss, logits' shape, type and layout, target's channels and type)) of every form of the sums.

    What does not depend on each other varies together.
    """
    activations = {"none": {}, "sigmoid": {"sigmoid": True}, "softmax": {"softmax": True}}
    terms = {"plain": {}, "squared": {"squared_pred": True}, "soft": {"soft_label": True}}
    others = itertools.cycle(
        [{}, {"jaccard": True}, {"batch": True}, {"weight": 0.5}, {"reduction": "sum"}, {"reduction": "none"}]
    )
    classes, dtypes, shapes, types = (
        itertools.cycle(values) for values in ((2, 3, 4, 7, 8, 32, 33), FLOATS, SHAPES, TYPES)
    )
    layouts = itertools.cycle((*LAYOUTS, *reversed(LAYOUTS)))
    for (activation, first), (term, second), background, labels in itertools.product(
        activations.items(), terms.items(), (True, False), (True, False)
    ):
        for ignored in (None, 0, 255) if labels else (None,):
            options = first | second | next(others)
            options |= {"include_background": background, "to_onehot_y": labels, "ignore_index": ignored}
            channels, dtype, target = next(classes), next(dtypes), next(types)
            case = DiceLoss(**options), (2, channels, *next(shapes)), dtype, next(layouts), labels, target
            yield f"dice {activation}, {term}, background {background}, labels {labels}, ignores {ignored}", case
    for channels, dtype, layout in itertools.product((2, 3, 5), FLOATS, LAYOUTS):
        case = DiceLoss.paper(), (2, channels, 64, 128, 128), dtype, layout, True, torch.uint8
        yield f"the paper's loss, {channels} classes, {dtype}, {layout}", case
    for target in TYPES:
        case = DiceLoss.paper(), (3, 2, 17, 19, 23), torch.bfloat16, torch.channels_last_3d, True, target
        yield f"the paper's loss, labels in {target}", case
    for channels in (2, 3, 4, 16):
        for loss in (
            DiceCELoss(**SOFTMAX, include_background=False, batch=True),
            DiceCELoss(**SOFTMAX, label_smoothing=0.1),
            DiceFocalLoss(**SOFTMAX),
        ):
            dtype, layout = next(dtypes), next(layouts)
            name = f"{type(loss).__name__}, {channels} classes, {dtype}, {layout}"
            name += ", smoothed" if getattr(loss, "cross_entropy", None) and loss.cross_entropy.label_smoothing else ""
            yield name, (loss, (2, channels, 16, 32, 48), dtype, layout, True, torch.uint8)
    for activation in (None, nn.Softmax(1), nn.Sigmoid()):
        loss = SoftDiceLoss(activation, batch_dice=True, do_bg=activation is None)
        case = loss, (2, 3, 32, 32, 32), torch.bfloat16, torch.channels_last_3d, True, torch.int16
        yield f"nnU-Net's loss, {activation}", case


def differentiate(loss, shape, dtype, layout, labels, target_type):
    """A loss and its gradient."""
    logits = torch.empty(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    target = zeros((shape[0], 1 if labels else shape[1], *shape[2:]), target_type)
    loss(logits, target.contiguous(memory_format=layout)).sum().backward()
