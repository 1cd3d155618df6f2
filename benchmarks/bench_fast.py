"""The fast recipe's network on a CPU, on the grids of real data: ours, the same in plain PyTorch, and MONAI's UNet.

A step has the recipe's loss, optimiser and clipping. Before each round of another provider plain PyTorch runs once: the
ratio of both is of the same minutes.
"""

import functools

import pytest
import torch
import torch.nn.functional as F

from benchmarks import tables
from benchmarks.learners import unet
from benchmarks.measure import CHOICE, ON_GPU, time_of
from benchmarks.peers import PlainVNet, dice_loss
from benchmarks.providers import TOLERANCE, Beside
from vnet_fast import VNet
from vnet_fast.devices import HOST, keep_freed_memory
from vnet_fast.run.configuration import LOSSES
from vnet_fast.run.recipes import CPU_CHANNELS, FAST, settings_of
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

# by their names in the table: voxels (x, y, z) that the documentation recommends, and channels of the first stage
GRIDS = {
    "hippocampi": ((32, 48, 40), CPU_CHANNELS),
    "hippocampi, 16 channels": ((32, 48, 40), 16),
    "prostates": ((96, 96, 32), CPU_CHANNELS),
    "prostates, 16 channels": ((96, 96, 32), 16),
}
if CHOICE == "tiny":
    GRIDS = dict.fromkeys(GRIDS, ((16, 16, 16), CPU_CHANNELS))
BATCH = 2
PLAIN, MONAI, OURS = "plain PyTorch, float32", "MONAI UNet, float32", "vnet_fast, float32"
PASSES = ("forward pass", "training step")
ROUNDS, WARM_UP = 9, 2
TIME = "time, ms"

# every step to the next resolution halves every axis
CUBES = (1.0, 1.0, 1.0)
pytestmark = pytest.mark.skipif(ON_GPU, reason="it compares the CPU's convolutions")


def arguments_of(grid):
    """The arguments of the recipe's network on one of GRIDS."""
    volume, channels = GRIDS[grid]
    settings = settings_of(FAST, volume, CUBES, HOST)
    return {"base_channels": channels, **{name: settings[name] for name in ("norm", "kernel_size", "levels")}}


@functools.cache
def fixed_batch(grid, provider):
    """An image and a target; MONAI's UNet takes lengths in multiples of 16."""
    generator = torch.Generator().manual_seed(0)
    multiple = 16 if provider == MONAI else 1
    shape = BATCH, 1, *(-(-length // multiple) * multiple for length in GRIDS[grid][0][::-1])
    image, target = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) > 0.9
    return image, target.to(torch.uint8)


def network_of(grid, provider):
    """A provider's network; plain PyTorch's has the weights of ours."""
    torch.manual_seed(0)
    if provider == MONAI:
        pytest.importorskip("monai", reason="MONAI is not installed")
        return unet(2)
    ours = VNet(**arguments_of(grid))
    if provider == OURS:
        return ours
    plain = PlainVNet(**arguments_of(grid))
    plain.take_weights(ours)
    return plain


def run_of(grid, provider, pass_name):
    """A function of no arguments that runs a pass; that of a step returns the loss, the other one logits."""
    model, (image, target) = network_of(grid, provider), fixed_batch(grid, provider)
    settings = settings_of(FAST, GRIDS[grid][0], CUBES, HOST)
    if pass_name == PASSES[0]:
        model.eval()
        return lambda: _without_gradients(model, image)
    rate, decay, clip = settings["learning_rate"], settings["weight_decay"], settings["clip"]
    if provider == OURS:
        optimizer = make_optimizer(model, settings["optimizer"], rate, 0, decay)
        step = Step(model, LOSSES[settings["loss"]](), optimizer, clip=clip, ema=settings["ema"])
        return lambda: step(image, target)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    return lambda: _plain_step(model, optimizer, clip, image, target)


@torch.no_grad()
def _without_gradients(model, image):
    return model(image)


def _plain_step(model, optimizer, clip, image, target):
    optimizer.zero_grad()
    logits = model(image)
    loss = dice_loss(logits, target) + F.cross_entropy(logits, target[:, 0].long())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


@functools.cache
def baseline(grid, pass_name):
    """A function of no arguments that runs a pass of plain PyTorch, after its first one."""
    run = run_of(grid, PLAIN, pass_name)
    run()
    return run


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("provider", [PLAIN, MONAI, OURS])
@pytest.mark.parametrize("grid", GRIDS)
def bench_fast(benchmark, grid, provider, pass_name):
    """Checks and times a pass of a provider's network."""
    benchmark.group = f"{pass_name}, {grid}"
    cells = {"grid": f"{grid}, {' x '.join(map(str, GRIDS[grid][0]))}", "pass": pass_name, "provider": provider}
    beside = Beside(None if provider == PLAIN else functools.partial(baseline, grid, pass_name))
    with tables.failure_as_row("fast", cells, TIME, provider == OURS):
        keep_freed_memory(provider == OURS)
        run = run_of(grid, provider, pass_name)
        check(grid, provider, pass_name, run())
        seconds = time_of(benchmark, run, ROUNDS, WARM_UP, beside).median
        cells |= {TIME: 1e3 * seconds, "volumes/s": BATCH / seconds}
        tables.keep(benchmark, "fast", cells | {"times plain PyTorch": beside.ratio(seconds, WARM_UP)})


def check(grid, provider, pass_name, result):
    """Raises AssertionError if a result is not finite, or ours is not that of plain PyTorch."""
    assert result.isfinite().all(), "its result is not finite"
    if provider == OURS and pass_name == PASSES[0]:
        expected = run_of(grid, PLAIN, pass_name)()
        error = ((result - expected).norm() / expected.norm()).item()
        assert error <= TOLERANCE[torch.float32], f"its logits differ by {100 * error:.2g} % of their norm"
