"""The paper's Dice loss on a batch of two volumes: ours, plain PyTorch, compiled, MONAI's, a copy."""

import pytest
import torch

from benchmarks.measure import DEVICE, ON_GPU, PASSES, SIZE, copy_of, measure, passes_of
from vnet_fast import DiceLoss
from vnet_fast.ops.dice import DiceOptions, dice_sums_definition

DTYPE = torch.bfloat16 if ON_GPU else torch.float32
# the network's logits, and on a GPU a batch of more than 256 MB, which no cache holds
BATCHES = (2, 64) if ON_GPU else (2,)
PAPER = DiceOptions(activation="softmax", labels=True, first_class=1, squared=True)


def plain(logits, target):
    """The paper's loss by the definition, with autograd's own backward pass."""
    intersection, prediction, ground = dice_sums_definition(logits, target, PAPER)
    return (1 - 2 * intersection / (prediction + ground + 1e-5)).mean()


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
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(batch, 1, *SIZE, generator=generator) > 0.9).to(torch.uint8)
    logits = torch.randn(batch, 2, *SIZE, generator=generator).to(DTYPE)
    logits = logits.contiguous(memory_format=torch.channels_last_3d).to(DEVICE).requires_grad_()
    return logits, target.to(DEVICE)


def traffic_of(logits, target, which):
    size = logits.numel() * logits.element_size()
    forward, backward = size + target.numel(), 2 * size + target.numel()
    return {"forward": forward, "backward": backward, "both": forward + backward}[which]


def check(function, logits, target):
    """Value and gradient against the definition in float64, before anything is timed."""
    exact = logits.detach().double().requires_grad_()
    values = function(logits, target), plain(exact, target)
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-4, atol=1e-4)
    grads = torch.autograd.grad(values[0], logits)[0], torch.autograd.grad(values[1], exact)[0]
    # rounding of the result, and of float32 sums over the voxels in whatever order
    assert (grads[0].double() - grads[1]).norm() <= (2 * torch.finfo(DTYPE).eps + 1e-5) * grads[1].norm()


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("provider", [*PROVIDERS, "copy"])
def bench_dice(benchmark, provider, batch, which):
    logits, target = tensors(batch)
    traffic = traffic_of(logits, target, which)
    group = f"Dice {which}, {batch} x 2 x {' x '.join(map(str, SIZE))}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    function = PROVIDERS[provider]
    if batch == BATCHES[0]:
        check(function, logits, target)
    one = torch.ones((), device=DEVICE)
    measure(benchmark, group, provider, lambda: passes_of(function, (logits, target), one, which), traffic)
