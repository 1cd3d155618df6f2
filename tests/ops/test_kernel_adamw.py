"""The kernel of AdamW against its definition, and both against PyTorch's AdamW."""

import itertools
import math

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, MARKS, TYPES  # noqa: E402
from tests.ops.update_checks import (  # noqa: E402
    EPSILON,
    HALF,
    Grids,
    assert_edges_stay,
    assert_same,
    clones,
    error,
    on_device,
    random,
    shapes,
)
from vnet_fast.kernels import adamw as kernels  # noqa: E402
from vnet_fast.kernels.many_tensors import MAX_SIZE, TENSORS  # noqa: E402
from vnet_fast.ops import many_tensors as operator  # noqa: E402
from vnet_fast.ops.adamw import AdamSettings, AdamWeights, adamw, adamw_definition, advance  # noqa: E402

pytestmark = MARKS
BLOCK = kernels.BLOCK
RATE, BETAS, DECAY, AVERAGE_DECAY = 0.1, (0.9, 0.999), 0.05, 0.8
SHAPES = shapes(BLOCK)
# of more tensors than one launch takes
MANY = [*SHAPES, *[(5,)] * TENSORS]
# what an update writes
WRITTEN = ("weight", "momentum", "square", "average")


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch):
    """Lets `adamw` run the kernel on any device."""
    monkeypatch.setattr(operator, "kernels_for", lambda name, tensor: kernels)


def make(sizes, gradient_type=torch.float32, copy_type=None, averaged=True, step=3.0):
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in sizes:
        weight, gradient, momentum, square, average = (random(shape, generator) for _ in range(5))
        made.append(
            AdamWeights(
                on_device(weight),
                on_device(gradient.to(gradient_type)),
                on_device(momentum),
                on_device(square.square()),
                torch.tensor(step, device=DEVICE),
                None if copy_type is None else on_device(weight.to(copy_type)),
                on_device(average) if averaged else None,
            )
        )
    return made


def number(value):
    return torch.tensor(value, device=DEVICE)


def settings_of(decay=DECAY, averaged=True, scale=None, found_inf=None, rate=RATE, betas=BETAS):
    numbers = [None if value is None else number(value) for value in (scale, found_inf)]
    return AdamSettings(number(rate), betas, 1e-8, decay, *numbers, number(AVERAGE_DECAY) if averaged else None)


def update(by_kernel, entries, settings):
    if by_kernel:
        adamw(entries, settings)
    else:
        for entry in entries:
            adamw_definition(entry, settings)


@pytest.mark.parametrize("averaged", [True, False], ids=["average", "no average"])
@pytest.mark.parametrize("decay", [DECAY, 0.0], ids=["decay", "no decay"])
@pytest.mark.parametrize("copy_type", [None, *HALF], ids=str)
@pytest.mark.parametrize("gradient_type", TYPES)
def test_kernel_against_the_definition(gradient_type, copy_type, decay, averaged):
    ours = make(SHAPES, gradient_type, copy_type, averaged)
    before, plain, exact = clones(ours), clones(ours), clones(ours, torch.float64)
    settings = settings_of(decay, averaged)
    adamw(ours, settings)
    update(False, plain, settings)
    in_float64 = settings._replace(
        rate=settings.rate.double(), average_decay=averaged and number(AVERAGE_DECAY).double()
    )
    update(False, exact, in_float64)
    for a, b, c, start in zip(ours, plain, exact, before, strict=True):
        # the definition has the corrections of the averages in float64. The kernel rounds them some times, and a GPU
        # divides and takes roots to one or two units in the last place
        correction = 6 * EPSILON * error(start.weight, c.weight)
        for name in WRITTEN if averaged else WRITTEN[:3]:
            found, simple, right = (getattr(entry, name) for entry in (a, b, c))
            allowed = 2 * error(simple, right) + EPSILON * right.abs().max().item()
            assert error(found, right) <= allowed + (correction if name in ("weight", "average") else 0), name
        assert a.copy is None or torch.equal(a.copy, a.weight.to(copy_type))
        # gradients and steps are only read, and nothing beside the tensors is written
        assert torch.equal(a.gradient, b.gradient)
        assert a.step == 3
        assert_edges_stay(a)


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "definition"])
@pytest.mark.parametrize("betas", [BETAS, (0.0, 0.0), (0.5, 0.9)], ids=str)
def test_several_updates_are_those_of_pytorch(by_kernel, betas):
    """From the first one on, where the corrections of the averages are largest; with an average as by foreach."""
    ours = make(SHAPES, step=0.0)
    for entry in ours:
        entry.momentum.zero_()
        entry.square.zero_()
    theirs = [torch.nn.Parameter(entry.weight.double()) for entry in ours]
    averages = [entry.average.double() for entry in ours]
    optimizer = torch.optim.AdamW(theirs, lr=RATE, betas=betas, weight_decay=DECAY, foreach=False)
    settings = settings_of(betas=betas)
    for iteration in range(6):
        gradients = [(-1) ** iteration * 10.0 ** (2 - iteration) * entry.gradient for entry in ours]
        advance([entry.step for entry in ours])
        given = [entry._replace(gradient=on_device(g)) for entry, g in zip(ours, gradients, strict=True)]
        update(by_kernel, given, settings)
        for weight, gradient in zip(theirs, gradients, strict=True):
            weight.grad = gradient.double()
        optimizer.step()
        averages = [
            weight + AVERAGE_DECAY * (average - weight) for average, weight in zip(averages, theirs, strict=True)
        ]
        for entry, weight, average in zip(ours, theirs, averages, strict=True):
            state = optimizer.state[weight]
            assert entry.step == state["step"] == iteration + 1
            for found, right in (
                (entry.momentum, state["exp_avg"]),
                (entry.square, state["exp_avg_sq"]),
                (entry.weight, weight.detach()),
                (entry.average, average.detach()),
            ):
                # each update rounds all of them some times
                assert error(found, right) <= 4 * (iteration + 1) * EPSILON * right.abs().max().item()


@pytest.mark.parametrize("step", [1, 2, 7, 100, 500, 5000, 10**6])
@pytest.mark.parametrize("beta", [0.5, 0.9, 0.999, 0.99999])
def test_corrections_are_right_at_any_step(step, beta):
    """A weight that only the correction changes: m' / (1 - βᵗ), and √(1 - βᵗ), with the other factor zero."""
    for betas, exact in (((beta, 0.0), 1 / (1 - beta**step)), ((0.0, beta), math.sqrt(1 - beta**step))):
        (entry,) = make([(4,)], averaged=False, step=float(step))
        entry.weight.zero_()
        entry.gradient.fill_(1)
        entry.momentum.fill_(1)
        entry.square.fill_(1)
        adamw([entry], settings_of(0.0, averaged=False, rate=1.0, betas=betas))
        torch.testing.assert_close(
            -entry.weight.double(), torch.full_like(entry.weight, exact).double(), rtol=7 * EPSILON, atol=0
        )


def test_many_tensors_in_several_launches():
    """Each with its own numbers and its own step."""
    ours = make(MANY, torch.bfloat16, torch.bfloat16)
    for i, entry in enumerate(ours):
        entry.step.fill_(1 + i)
    theirs = clones(ours)
    adamw(ours, settings_of())
    update(False, theirs, settings_of())
    for a, b in zip(ours, theirs, strict=True):
        for name in WRITTEN:
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6)
        assert torch.equal(a.copy, a.weight.bfloat16())


def test_the_launches_are_few(monkeypatch):
    """One for every 32 tensors of the same types, whatever their order."""
    kernel = Grids()
    monkeypatch.setattr(kernels, "_adamw_kernel", kernel)
    half, plain = make([(5,)] * TENSORS, torch.bfloat16, torch.bfloat16), make([(BLOCK + 1,)] * (TENSORS + 1))
    mixed = [entry for pair in itertools.zip_longest(half, plain) for entry in pair if entry]
    adamw(mixed, settings_of())
    assert kernel.grids == [(TENSORS,), (2 * TENSORS,), (2,)]


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "definition"])
@pytest.mark.parametrize("copy_type", HALF, ids=str)
def test_gradients_of_a_scaled_loss(copy_type, by_kernel):
    """They are divided by the scale; a GPU may contract other products and sums than without one."""
    ours = make(SHAPES, copy_type, copy_type)
    theirs = clones(ours)
    for entry in ours:
        entry.gradient.mul_(8)
    update(by_kernel, ours, settings_of(scale=8.0, found_inf=0.0))
    update(by_kernel, theirs, settings_of())
    for a, b in zip(ours, theirs, strict=True):
        for name in WRITTEN:
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-6)
        assert torch.equal(a.copy, a.weight.to(copy_type))


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "definition"])
@pytest.mark.parametrize("wrong", [torch.inf, torch.nan], ids=str)
def test_gradients_that_overflowed_change_the_average_only(by_kernel, wrong):
    ours = make(SHAPES, torch.float16, torch.float16)
    for entry in ours:
        entry.gradient[(0,) * entry.gradient.ndim] = wrong
    before, settings = clones(ours), settings_of(scale=8.0, found_inf=1.0)
    advance([entry.step for entry in ours], settings.found_inf)
    update(by_kernel, ours, settings)
    # a copy is the rounded weight again
    expected = [
        entry._replace(average=entry.weight + AVERAGE_DECAY * (entry.average - entry.weight)) for entry in before
    ]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.average, b.average, rtol=1e-6, atol=1e-6)
    # gradients may be NaN
    rest = ([entry._replace(average=None, gradient=None) for entry in entries] for entries in (ours, before))
    assert_same(*rest)


def test_steps_advance_unless_gradients_overflowed():
    steps = [number(float(i)) for i in range(3)]
    addresses = [step.data_ptr() for step in steps]
    for found_inf, expected in ((None, [1, 2, 3]), (0.0, [2, 3, 4]), (1.0, [2, 3, 4])):
        advance(steps, None if found_inf is None else number(found_inf))
        assert [step.item() for step in steps] == expected
    # where a graph finds them
    assert [step.data_ptr() for step in steps] == addresses
    advance([])


@pytest.mark.parametrize("wrong", [torch.inf, torch.nan], ids=str)
def test_a_gradient_that_is_not_finite_stays_where_it_is(wrong):
    (entry,) = make([(BLOCK + 5,)], torch.bfloat16, torch.bfloat16)
    entry.gradient[BLOCK + 1] = wrong
    adamw([entry], settings_of())
    for tensor in (entry.weight, entry.momentum, entry.square, entry.copy, entry.average):
        assert (~tensor.isfinite()).nonzero().tolist() == [[BLOCK + 1]]


def test_gradients_of_zero_at_the_start_change_nothing_without_decay():
    """There is 0 / (0 + ε), and no NaN."""
    (entry,) = make([(BLOCK + 5,)], step=1.0)
    for tensor in (entry.gradient, entry.momentum, entry.square):
        tensor.zero_()
    before = entry.weight.clone()
    adamw([entry], settings_of(0.0))
    assert torch.equal(entry.weight, before)
    assert not entry.momentum.any()
    assert not entry.square.any()


# The definition


@pytest.mark.skipif(DEVICE == "cuda", reason="there PyTorch multiplies by the reciprocal of a number of the host")
@pytest.mark.parametrize("decay", [DECAY, 0.0], ids=["decay", "no decay"])
def test_definition_is_pytorchs_to_the_last_bit(decay):
    ours = make(SHAPES, step=0.0)
    theirs = [torch.nn.Parameter(entry.weight.clone()) for entry in ours]
    optimizer = torch.optim.AdamW(theirs, lr=RATE, weight_decay=decay, foreach=False)
    settings = settings_of(decay)._replace(rate=RATE)
    for entry in ours:
        entry.momentum.zero_()
        entry.square.zero_()
    for iteration in range(3):
        advance([entry.step for entry in ours])
        for entry, weight in zip(ours, theirs, strict=True):
            weight.grad = (iteration + 1) * entry.gradient
            adamw_definition(entry._replace(gradient=weight.grad), settings)
        optimizer.step()
    for entry, weight in zip(ours, theirs, strict=True):
        state = optimizer.state[weight]
        assert torch.equal(entry.weight, weight)
        assert torch.equal(entry.momentum, state["exp_avg"])
        assert torch.equal(entry.square, state["exp_avg_sq"])


def test_definition_reads_the_rate_on_the_device():
    ours = make(SHAPES)
    theirs = clones(ours)
    for a, b in zip(ours, theirs, strict=True):
        adamw_definition(a, settings_of())
        adamw_definition(b, settings_of()._replace(rate=RATE))
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=EPSILON * b.weight.abs().max().item())


# What the kernel takes


def test_supported():
    for shape in SHAPES:
        assert kernels.supports(*make([shape], torch.bfloat16, torch.bfloat16)[0])
        assert kernels.supports(*make([shape], averaged=False)[0])


@pytest.mark.parametrize(
    "change",
    {
        "float64": lambda entry: {name: getattr(entry, name).double() for name in WRITTEN},
        "momentum in half precision": lambda entry: {"momentum": entry.momentum.half()},
        "square in half precision": lambda entry: {"square": entry.square.half()},
        "average in half precision": lambda entry: {"average": entry.average.half()},
        "step in float64": lambda entry: {"step": entry.step.double()},
        "copy in float32": lambda entry: {"copy": entry.copy.float()},
        "unaligned average": lambda entry: {"average": torch.zeros(9, device=DEVICE)[1:]},
    }.items(),
    ids=lambda item: item[0],
)
def test_unsupported_runs_by_the_definition(change):
    (entry,) = make([(8,)], copy_type=torch.bfloat16)
    ours = entry._replace(**change[1](entry))
    assert not kernels.supports(*ours)
    (theirs,) = clones([ours])
    adamw([ours], settings_of())
    adamw_definition(theirs, settings_of())
    assert_same([ours], [theirs])
    assert not torch.equal(ours.weight, make([(8,)])[0].weight.to(ours.weight.dtype))


def test_too_large_is_not_supported():
    weight, step = torch.empty(MAX_SIZE + 1, device="meta"), torch.empty((), device="meta")
    assert not kernels.supports(*[weight] * 4, step)
    assert kernels.supports(*[weight[:-1]] * 4, step)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_replays_of_a_graph_read_rate_step_and_decay():
    ours = make(MANY, torch.bfloat16, torch.bfloat16)
    theirs, settings = clones(ours), settings_of()
    adamw(clones(ours), settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        advance([entry.step for entry in ours])
        adamw(ours, settings)
    for value in (0.1, 0.01):
        settings.rate.fill_(value)
        settings.average_decay.fill_(value)
        graph.replay()
        advance([entry.step for entry in theirs])
        adamw(theirs, settings_of(rate=value)._replace(average_decay=number(value)))
    assert_same(ours, theirs)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
@pytest.mark.parametrize("scaled", [True, False], ids=["scaled", "unscaled"])
def test_kernel_is_pytorchs_fused_optimiser(scaled):
    """Up to rounding, over several updates, of which its scaler skips one."""
    ours = make(SHAPES, step=0.0)
    for entry in ours:
        entry.momentum.zero_()
        entry.square.zero_()
    theirs = [torch.nn.Parameter(entry.weight.clone()) for entry in ours]
    rate = number(RATE)
    optimizer = torch.optim.AdamW(theirs, lr=rate, weight_decay=DECAY, fused=True, capturable=True)
    for iteration in range(5):
        skipped = scaled and iteration == 2
        settings = settings_of(scale=4.0, found_inf=float(skipped)) if scaled else settings_of()
        advance([entry.step for entry in ours], settings.found_inf)
        adamw(ours, settings)
        if scaled:
            optimizer.grad_scale, optimizer.found_inf = settings.grad_scale, settings.found_inf
        for entry, weight in zip(ours, theirs, strict=True):
            weight.grad = entry.gradient.clone()
        optimizer.step()
    for entry, weight in zip(ours, theirs, strict=True):
        state = optimizer.state[weight]
        assert entry.step == state["step"] == (4 if scaled else 5)
        for found, right in (
            (entry.weight, weight),
            (entry.momentum, state["exp_avg"]),
            (entry.square, state["exp_avg_sq"]),
        ):
            torch.testing.assert_close(found, right.detach(), rtol=1e-5, atol=1e-6)
