"""Channels-last from the input to the last gradient, counted in what a step runs."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vnet_fast import DiceLoss, VNet
from vnet_fast.ops import cpu_library
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

BATCH, SIZE = 2, (32, 32, 32)
COPIES = {"copy_", "clone", "_to_copy", "contiguous"}
# below it a tensor is a vector of the coarsest stage, not a volume
VOLUME_ELEMENTS = 4096


@pytest.fixture(autouse=True)
def _two_threads():
    """On one thread PyTorch takes other convolutions on a CPU, which leave the layout."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def layout_of(tensor):
    """The order of the axes in memory, those of length 1 left out."""
    axes = [axis for axis in range(tensor.ndim) if tensor.shape[axis] > 1]
    return sorted(axes, key=lambda axis: (-tensor.stride(axis), axis))


class Copies(TorchDispatchMode):
    """Keeps the shapes of the tensors that are copied into another layout."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # copy_(target, source): its target's layout is changed by the call only in what it holds
        before = args[1] if func.overloadpacket.__name__ == "copy_" else args[0] if args else None
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if (
            name in COPIES
            and isinstance(before, torch.Tensor)
            and result.ndim == 5
            and result.shape == before.shape
            and result.numel() >= VOLUME_ELEMENTS
            and layout_of(before) != layout_of(result)
        ):
            self.found.append((name, tuple(result.shape)))
        return result


def step_of(topology, autocast, device):
    torch.manual_seed(0)
    model = VNet(base_channels=8, topology=topology).to(device)
    return Step(model, DiceLoss.paper(), make_optimizer(model, "sgd", 1e-4, 0.9, 0), autocast)


def batch_on(device):
    image = torch.randn(BATCH, 1, *SIZE, device=device)
    return image, (image > 1).to(torch.uint8)


@pytest.mark.parametrize(
    ("topology", "autocast"),
    [
        ("paper", None),
        pytest.param("caffe", torch.bfloat16, marks=pytest.mark.exhaustive),
        pytest.param("paper", torch.bfloat16, marks=pytest.mark.exhaustive),
        pytest.param("caffe", None, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_a_step_copies_no_volume_into_another_layout(topology, autocast):
    step, batch = step_of(topology, autocast, "cpu"), batch_on("cpu")
    step(*batch)
    with Copies() as copies:
        step(*batch)
    # the backward pass is seen too, and so are copies
    assert {"convolution_backward", "add_prelu", "dice_sums_backward"} <= copies.seen
    assert copies.found == []


@pytest.mark.exhaustive
def test_no_operator_copies_into_another_layout_within_itself():
    """As convolutions do that lack a kernel for a layout: seen in a profile, behind the operators."""
    step, batch = step_of("paper", None, "cpu"), batch_on("cpu")
    step(*batch)
    with torch.profiler.profile(record_shapes=True) as profile:
        step(*batch)
    volumes = [event for event in profile.events() if is_volume(event)]
    assert any("convolution_backward" in name for event in volumes for name in ancestors(event))
    # the loss's softmax is behind the logits
    inside = [event for event in volumes if not any("dice_sums" in name for name in ancestors(event))]
    copies = [
        (event.name, event.input_shapes[0]) for event in inside if event.name in ("aten::contiguous", "aten::clone")
    ]
    # the gradient of an up-convolution is half of a joined volume's, which our kernels read where it is; without them
    # it becomes dense in the same layout
    levels = range(0 if cpu_library.library() else 4)
    halves = [[BATCH, 8 * 2**level, *(length // 2**level for length in SIZE)] for level in levels]
    assert sorted(copies) == sorted((name, half) for name in ("aten::contiguous", "aten::clone") for half in halves)
    outside = [event for event in volumes if event not in inside]
    assert "aten::contiguous" in {event.name for event in outside}


def is_volume(event):
    shape = event.input_shapes[0] if event.input_shapes else []
    # a batch of them, which weights are not
    return len(shape) == 5 and shape[0] == BATCH and math.prod(shape) >= VOLUME_ELEMENTS


def ancestors(event):
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names


def test_a_copy_is_counted():
    with Copies() as copies:
        torch.randn(1, 8, 16, 16, 16).contiguous(memory_format=torch.channels_last_3d)
        torch.randn(1, 8, 16, 16, 16).clone()
    assert [shape for _, shape in copies.found] == [(1, 8, 16, 16, 16)]


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
def test_no_kernel_of_a_step_changes_the_layout_on_a_gpu(autocast, monkeypatch):
    """Neither PyTorch's copies nor the conversions that cuDNN launches around its kernels."""
    # rewritten convolutions copy volumes, where that is faster
    monkeypatch.setenv("VNET_FAST_CONV", "cudnn")
    step, batch = step_of("paper", autocast, "cuda"), batch_on("cuda")
    for _ in range(3):
        step(*batch)
    with Copies() as copies:
        step(*batch)
    assert copies.found == []
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        step(*batch)
        torch.cuda.synchronize()
    events = profile.events()
    kernels = [event.name for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    assert any("add_prelu" in name for name in kernels)
    padded = [kernel.name for event in events if has_few_channels(event) for kernel in event.kernels]
    # every conversion belongs to a layer that is padded: one without an operator around it does not
    assert sorted(conversions(kernels)) == sorted(conversions(padded))


def conversions(kernels):
    """Those of the names of kernels that say that they change the layout."""
    words = ("nchwtonhwc", "nhwctonchw", "nchwtonchw", "tensortransform", "transpose")
    return [name for name in kernels if any(word in name.lower() for word in words)]


def has_few_channels(event):
    """Whether a convolution's volume or its weights have fewer channels than tensor cores take, which cuDNN pads."""
    volumes = [shape for shape in event.input_shapes or [] if len(shape) == 5 and isinstance(shape[1], int)]
    return "conv" in event.name and any(shape[1] < 8 for shape in volumes)


def test_layers_of_few_channels_are_known():
    """The first layer and the last in both passes, and no other."""
    step, batch = step_of("paper", None, "cpu"), batch_on("cpu")
    with torch.profiler.profile(record_shapes=True) as profile:
        step(*batch)
    ends = {tuple(map(tuple, event.input_shapes[:2])) for event in profile.events() if has_few_channels(event)}
    x, logits = (BATCH, 1, *SIZE), (BATCH, 2, *SIZE)
    assert {shapes for shapes in ends if x in shapes or logits in shapes} == ends
    assert {(x, (8, 1, 5, 5, 5)), ((BATCH, 8, *SIZE), x), (logits, (BATCH, 16, *SIZE))} <= ends
