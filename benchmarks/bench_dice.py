"""The paper's Dice loss on a batch of volumes: ours, plain PyTorch, `torch.compile`, MONAI's and a copy."""

import pytest
import torch

from benchmarks.measure import DEVICE, KERNEL_SHAPE, ON_GPU, PASSES, copy_of, measure, passes_of
from vnet_fast import DiceLoss
from vnet_fast.ops.dice import DiceOptions, dice_sums_definition

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# the paper's batch, and on a GPU also a batch of more than 256 MB, which no cache holds
BATCHES = (2, 64) if ON_GPU else (2,)
PAPER = DiceOptions(activation="softmax", labels=True, first_class=1, squared=True)


def plain(logits, target):
    """The paper's loss by the definition, with autograd's own backward pass."""
    intersection, prediction, reference = dice_sums_definition(logits, target, PAPER)
    return (1 - 2 * intersection / (prediction + reference + 1e-5)).mean()


def monai_dice(logits, target):
    """MONAI's loss with the paper's settings."""
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    loss = losses.DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5
    )
    return loss(logits.float(), target)


PROVIDERS = {
    "vnet_fast": DiceLoss.paper(),
    "PyTorch": plain,
    "torch.compile": torch.compile(plain),
    "MONAI": monai_dice,
}


def tensors(batch):
    """Logits and target of a batch."""
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(batch, 1, *KERNEL_SHAPE, generator=generator) > 0.9).to(torch.uint8)
    logits = torch.randn(batch, 2, *KERNEL_SHAPE, generator=generator).to(DTYPE)
    logits = logits.contiguous(memory_format=torch.channels_last_3d).to(DEVICE).requires_grad_()
    return logits, target.to(DEVICE)


def traffic_of(logits, target, pass_name):
    """Bytes that a pass must move: it reads logits and target, and the backward pass writes a gradient."""
    forward, backward = logits.nbytes + target.nbytes, 2 * logits.nbytes + target.nbytes
    return {"forward": forward, "backward": backward, "both": forward + backward}[pass_name]


def check(function, logits, target):
    """Raises AssertionError if value or gradient differ from those of the definition in float64."""
    exact = logits.detach().double().requires_grad_()
    values = function(logits, target), plain(exact, target)
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(values[0], logits)[0], torch.autograd.grad(values[1], exact)[0]
    # rounding of the result, and of float32 sums over the voxels in any order
    assert (grads[0].double() - grads[1]).norm() <= (2 * torch.finfo(DTYPE).eps + 1e-5) * grads[1].norm()


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_dice(benchmark, provider, batch, pass_name):
    """Checks and times a pass of a provider."""
    logits, target = tensors(batch)
    traffic = traffic_of(logits, target, pass_name)
    group = f"Dice {pass_name}, {batch} x 2 x {' x '.join(map(str, KERNEL_SHAPE))}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    function = PROVIDERS[provider]
    if batch == BATCHES[0]:
        check(function, logits, target)
    one = torch.ones((), device=DEVICE)
    measure(benchmark, group, provider, lambda: passes_of(function, (logits, target), one, pass_name), traffic)
