"""Dice plus cross-entropy on a batch of volumes: ours, plain PyTorch, `torch.compile`, MONAI's, nnU-Net's, a copy."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.bench_dice import BATCHES, DTYPE, traffic_of
from benchmarks.measure import DEVICE, KERNEL_SHAPE, PASSES, copy_of, measure, passes_of
from vnet_fast import DiceCELoss
from vnet_fast.compat.nnunet import DC_and_CE_loss

# as `--loss dice-ce`
ARGUMENTS = {"include_background": False, "to_onehot_y": True, "softmax": True, "batch": True}
CLASSES = 3
# with 1 added, nnU-Net's loss is that of the others
NNUNET = {"batch_dice": True, "do_bg": False, "smooth": 1e-5}


def plain(logits, target):
    """Both losses as one would write them, in float32 or float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    index = target[:, 0].long()
    probability = torch.softmax(logits, 1)[:, 1:]
    reference = F.one_hot(index, CLASSES).movedim(-1, 1)[:, 1:].to(logits.dtype)
    over = (0, 2, 3, 4)
    intersection, sizes = (probability * reference).sum(over), probability.sum(over) + reference.sum(over)
    dice = (1 - (2 * intersection + 1e-5) / (sizes + 1e-5)).mean()
    return dice + F.cross_entropy(logits, index)


def monai_dice_ce(logits, target):
    """MONAI's loss; its sums overflow in half precision."""
    losses = pytest.importorskip("monai.losses", reason="MONAI is not installed")
    return losses.DiceCELoss(**ARGUMENTS)(logits.float(), target)


def nnunet_form(logits, target):
    """As nnU-Net computes it: softmax, one-hot by scattering, Dice by sums, and PyTorch's cross-entropy."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    over = (2, 3, 4)
    probability = torch.softmax(logits, 1)[:, 1:]
    with torch.no_grad():
        onehot = torch.zeros(logits.shape, device=logits.device, dtype=torch.bool)
        onehot = onehot.scatter_(1, target.long(), 1)[:, 1:]
        ground = onehot.sum(over)
    intersection, prediction = (probability * onehot).sum(over).sum(0), probability.sum(over).sum(0)
    dice = (2 * intersection + 1e-5) / torch.clip(ground.sum(0) + prediction + 1e-5, 1e-8)
    return 1 - dice.mean() + F.cross_entropy(logits, target[:, 0].long())


OURS_AS_NNUNET = DC_and_CE_loss(NNUNET, {})
PROVIDERS = {
    "vnet_fast": DiceCELoss(**ARGUMENTS),
    "vnet_fast.compat.nnunet": lambda logits, target: 1 + OURS_AS_NNUNET(logits, target),
    "PyTorch": plain,
    "torch.compile": torch.compile(plain),
    "MONAI": monai_dice_ce,
    "nnU-Net's form": nnunet_form,
}


def tensors(batch):
    """Logits and target of a batch."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (batch, 1, *KERNEL_SHAPE), generator=generator, dtype=torch.uint8)
    logits = torch.randn(batch, CLASSES, *KERNEL_SHAPE, generator=generator).to(DTYPE)
    logits = logits.contiguous(memory_format=torch.channels_last_3d).to(DEVICE).requires_grad_()
    return logits, target.to(DEVICE)


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
def bench_dice_ce(benchmark, provider, batch, pass_name):
    """Checks and times a pass of a provider."""
    logits, target = tensors(batch)
    traffic = traffic_of(logits, target, pass_name)
    size = " x ".join(map(str, (batch, CLASSES, *KERNEL_SHAPE)))
    group = f"Dice + cross-entropy {pass_name}, {size}, {str(DTYPE).removeprefix('torch.')}"
    if provider == "copy":
        measure(benchmark, group, provider, lambda: copy_of(traffic), traffic)
        return
    function = PROVIDERS[provider]
    if batch == BATCHES[0]:
        check(function, logits, target)
    one = torch.ones((), device=DEVICE)
    measure(benchmark, group, provider, lambda: passes_of(function, (logits, target), one, pass_name), traffic)
