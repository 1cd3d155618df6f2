"""The fast recipe's network on the grids of real data: ours, the same in plain PyTorch, and MONAI's UNet.

A step has the recipe's loss, optimiser and clipping. On a GPU the providers run in mixed precision, and steps also as
one CUDA graph: MONAI's UNet in our step, with our loss and update. Before each round of another provider plain PyTorch
runs once: the ratio of both is of the same minutes.
"""

import functools
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from benchmarks import tables
from benchmarks.learners import unet
from benchmarks.measure import CHOICE, DEVICE, ON_GPU, synchronize, time_of
from benchmarks.peers import PlainVNet, dice_loss
from benchmarks.providers import HALF, PRECISION, TOLERANCE, Beside, as_ours, exactly
from vnet_fast import VNet
from vnet_fast.devices import mixed_precision
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.run.configuration import LOSSES, Config
from vnet_fast.run.recipes import CPU_CHANNELS, FAST, settings_of
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import WARM_UP as STEPS_BEFORE_A_GRAPH
from vnet_fast.training.step import Step

# by their names in the table: voxels (x, y, z) that the documentation recommends, and channels of the first stage
if ON_GPU:
    GRIDS = {
        "hippocampi": ((32, 48, 40), Config.base_channels),
        "prostates": ((96, 96, 32), Config.base_channels),
        "the paper's": ((128, 128, 64), Config.base_channels),
    }
else:
    GRIDS = {
        "hippocampi": ((32, 48, 40), CPU_CHANNELS),
        "hippocampi, 16 channels": ((32, 48, 40), 16),
        "prostates": ((96, 96, 32), CPU_CHANNELS),
        "prostates, 16 channels": ((96, 96, 32), 16),
    }
if CHOICE == "tiny":
    GRIDS = dict.fromkeys(GRIDS, ((32, 32, 32), CPU_CHANNELS))
BATCH = 2
PLAIN, MONAI, OURS = "plain PyTorch", "MONAI UNet", "vnet_fast"
PASSES = ("forward pass", "training step")


@dataclass(frozen=True)
class Entrant:
    """A network, and how it runs.

    Args:
        network: PLAIN, MONAI or OURS.
        amp: whether in mixed precision.
        channels_last: its layout; ours always is.
        graph: whether a step is one CUDA graph.
    """

    network: str
    amp: bool = False
    channels_last: bool = False
    graph: bool = False

    def __str__(self):
        words = [self.network, "AMP" if self.amp else "float32"]
        return ", ".join(words + ["channels-last"] * self.channels_last + ["graph"] * self.graph)

    @property
    def autocast(self):
        """The dtype of mixed precision, or None."""
        return HALF if self.amp else None


BASELINE = Entrant(PLAIN)
ENTRANTS = [BASELINE, Entrant(MONAI), Entrant(OURS)]
if ON_GPU:
    ENTRANTS = [
        BASELINE,
        Entrant(PLAIN, amp=True, channels_last=True),
        Entrant(MONAI, amp=True),
        Entrant(MONAI, amp=True, channels_last=True),
        Entrant(MONAI, amp=True, channels_last=True, graph=True),
        Entrant(OURS, amp=True),
        Entrant(OURS, amp=True, graph=True),
    ]
MEASURED = [
    (entrant, pass_name)
    for entrant in ENTRANTS
    for pass_name in PASSES
    if not (entrant.graph and pass_name == PASSES[0])
]
ROUNDS, WARM_UP = (50, STEPS_BEFORE_A_GRAPH + 1) if ON_GPU else (9, 2)
TIME = "time, ms"
# every step to the next resolution halves every axis
CUBES = (1.0, 1.0, 1.0)


def arguments_of(grid):
    """The arguments of the recipe's network on one of GRIDS."""
    volume, channels = GRIDS[grid]
    settings = settings_of(FAST, volume, CUBES, DEVICE)
    return {"base_channels": channels, **{name: settings[name] for name in ("norm", "kernel_size", "levels")}}


@functools.cache
def fixed_batch(grid, network):
    """An image and a target; MONAI's UNet takes lengths in multiples of 16."""
    generator = torch.Generator().manual_seed(0)
    multiple = 16 if network == MONAI else 1
    shape = BATCH, 1, *(-(-length // multiple) * multiple for length in GRIDS[grid][0][::-1])
    image, target = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) > 0.9
    return image.to(DEVICE), target.to(DEVICE, torch.uint8)


def network_of(grid, entrant):
    """An entrant's network; plain PyTorch's has the weights of ours."""
    torch.manual_seed(0)
    if entrant.network == MONAI:
        pytest.importorskip("monai", reason="MONAI is not installed")
        return _placed(unet(2), entrant)
    ours = VNet(**arguments_of(grid))
    if entrant.network == OURS:
        return ours.to(DEVICE)
    plain = PlainVNet(**arguments_of(grid))
    plain.take_weights(ours)
    return _placed(plain, entrant)


def _placed(model, entrant):
    layout = torch.channels_last_3d if entrant.channels_last else torch.contiguous_format
    return model.to(DEVICE, memory_format=layout)


def run_of(grid, entrant, pass_name):
    """A function of no arguments that runs a pass; that of a step returns the loss, the other one logits."""
    model, (image, target) = network_of(grid, entrant), fixed_batch(grid, entrant.network)
    if pass_name == PASSES[0]:
        model.eval()
        return lambda: _without_gradients(model, image, entrant)
    settings = settings_of(FAST, GRIDS[grid][0], CUBES, DEVICE)
    rate, decay, clip = settings["learning_rate"], settings["weight_decay"], settings["clip"]
    if entrant.network == OURS or entrant.graph:
        optimizer = make_optimizer(model, settings["optimizer"], rate, 0, decay)
        loss, average = LOSSES[settings["loss"]](), settings["ema"]
        step = Step(model, loss, optimizer, entrant.autocast, graph=entrant.graph, clip=clip, ema=average)
        return lambda: _our_step(step, entrant, image, target)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
    return lambda: _plain_step(model, optimizer, clip, entrant.autocast, image, target)


@torch.no_grad()
def _without_gradients(model, image, entrant):
    with as_ours(entrant.network == OURS), mixed_precision(DEVICE, entrant.autocast):
        return model(image)


def _our_step(step, entrant, image, target):
    with as_ours(entrant.network == OURS):
        loss = step(image, target)
    assert step.refusal is None, f"it is no graph: {step.refusal}"
    return loss


def _plain_step(model, optimizer, clip, autocast, image, target):
    optimizer.zero_grad()
    with mixed_precision(DEVICE, autocast):
        logits = model(image)
        loss = dice_loss(logits, target) + F.cross_entropy(logits, target[:, 0].long())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.detach()


@functools.cache
def baseline(grid, pass_name):
    """A function of no arguments that runs a pass of plain PyTorch, after its first one."""
    run = run_of(grid, BASELINE, pass_name)
    run()
    return run


@pytest.mark.parametrize(("entrant", "pass_name"), MEASURED, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def bench_fast(benchmark, grid, entrant, pass_name):
    """Checks and times a pass of an entrant's network."""
    if entrant.amp and HALF is None:
        pytest.skip(PRECISION)
    benchmark.group = f"{pass_name}, {grid}"
    cells = {"grid": f"{grid}, {' x '.join(map(str, GRIDS[grid][0]))}", "pass": pass_name, "provider": str(entrant)}
    beside = Beside(None if entrant == BASELINE else functools.partial(baseline, grid, pass_name))
    ours = entrant.network == OURS
    with tables.failure_as_row("fast", cells, TIME, ours):
        keep_freed_memory(ours)
        run = run_of(grid, entrant, pass_name)
        check(grid, entrant, pass_name, run())
        synchronize()
        seconds = time_of(benchmark, run, ROUNDS, WARM_UP, beside).median
        cells |= {TIME: 1e3 * seconds, "volumes/s": BATCH / seconds}
        tables.keep(benchmark, "fast", cells | {"times plain PyTorch": beside.ratio(seconds, WARM_UP)})


def check(grid, entrant, pass_name, result):
    """Raises AssertionError if a result is not finite, or ours is not that of plain PyTorch."""
    assert result.isfinite().all(), "its result is not finite"
    if entrant.network == OURS and pass_name == PASSES[0]:
        with exactly(None):
            expected = run_of(grid, BASELINE, pass_name)()
        error = ((result - expected).norm() / expected.norm()).item()
        tolerance = TOLERANCE[entrant.autocast or torch.float32]
        assert error <= tolerance, f"its logits differ by {100 * error:.2g} % of their norm"
