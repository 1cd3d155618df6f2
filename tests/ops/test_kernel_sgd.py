"""The kernel of SGD against its definition, and the definition against PyTorch's SGD."""

import itertools

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
from vnet_fast.kernels import sgd as kernels  # noqa: E402
from vnet_fast.kernels.many_tensors import MAX_SIZE, TENSORS  # noqa: E402
from vnet_fast.ops import many_tensors as operator  # noqa: E402
from vnet_fast.ops.sgd import Weights, sgd, sgd_definition  # noqa: E402

pytestmark = MARKS
BLOCK = kernels.BLOCK
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.05
SHAPES = shapes(BLOCK)
# of more tensors than one launch takes
MANY = [*SHAPES, *[(5,)] * TENSORS]


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch):
    """Lets `sgd` run the kernel on any device."""
    monkeypatch.setattr(operator, "kernels_for", lambda name, tensor: kernels)


def make(sizes, gradient_type=torch.float32, copy_type=None, momentum=True):
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in sizes:
        weight, gradient, buffer = (random(shape, generator) for _ in range(3))
        copy = None if copy_type is None else on_device(weight.to(copy_type))
        gradient = on_device(gradient.to(gradient_type))
        made.append(Weights(on_device(weight), gradient, on_device(buffer) if momentum else None, copy))
    return made


def rate_on_device(rate=RATE):
    return torch.tensor(rate, device=DEVICE)


def update(by_kernel, entries, *settings):
    if by_kernel:
        sgd(entries, *settings)
    else:
        for entry in entries:
            sgd_definition(entry, *settings)


@pytest.mark.parametrize(
    ("momentum", "decay", "nesterov"),
    [
        pytest.param(MOMENTUM, DECAY, False, id="momentum and decay"),
        pytest.param(MOMENTUM, DECAY, True, id="Nesterov and decay"),
        pytest.param(0.0, 0.0, False, id="neither"),
        pytest.param(MOMENTUM, 0.0, False, marks=pytest.mark.exhaustive, id="momentum"),
        pytest.param(0.0, DECAY, False, marks=pytest.mark.exhaustive, id="decay"),
    ],
)
@pytest.mark.parametrize("copy_type", [None, *HALF], ids=str)
@pytest.mark.parametrize("gradient_type", TYPES)
def test_kernel_against_the_definition(gradient_type, copy_type, momentum, decay, nesterov):
    ours = make(SHAPES, gradient_type, copy_type, momentum=bool(momentum))
    plain, exact = clones(ours), clones(ours, torch.float64)
    settings = momentum, decay, None, None, nesterov
    sgd(ours, rate_on_device(), *settings)
    for entry in plain:
        sgd_definition(entry, rate_on_device(), *settings)
    for entry in exact:
        sgd_definition(entry, rate_on_device().double(), *settings)
    for a, b, c in zip(ours, plain, exact, strict=True):
        for found, simple, right in list(zip(a, b, c, strict=True))[: 3 if momentum else 1]:
            assert error(found, right) <= 2 * error(simple, right) + EPSILON * right.abs().max().item()
        assert a.copy is None or torch.equal(a.copy, a.weight.to(copy_type))
        # gradients are only read, and nothing beside the tensors is written
        assert torch.equal(a.gradient, b.gradient)
        assert_edges_stay(a)


def test_many_tensors_in_several_launches():
    """Each with its own numbers, in the fewest launches."""
    ours = make(MANY, torch.bfloat16, torch.bfloat16)
    theirs = clones(ours)
    sgd(ours, rate_on_device(), MOMENTUM, DECAY)
    for entry in theirs:
        sgd_definition(entry, rate_on_device(), MOMENTUM, DECAY)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.momentum, b.momentum, rtol=1e-6, atol=1e-6)
        assert torch.equal(a.copy, a.weight.bfloat16())


def test_the_launches_are_few(monkeypatch):
    """One for every 32 tensors of the same types, whatever their order."""
    kernel = Grids()
    monkeypatch.setattr(kernels, "_sgd_kernel", kernel)
    half, plain = make([(5,)] * TENSORS, torch.bfloat16, torch.bfloat16), make([(BLOCK + 1,)] * (TENSORS + 1))
    mixed = [entry for pair in itertools.zip_longest(half, plain) for entry in pair if entry]
    sgd(mixed, rate_on_device(), MOMENTUM, DECAY)
    assert kernel.grids == [(TENSORS,), (2 * TENSORS,), (2,)]


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "definition"])
@pytest.mark.parametrize("copy_type", HALF, ids=str)
def test_gradients_of_a_scaled_loss(copy_type, by_kernel):
    """They are divided by the scale; a GPU may contract other products and sums than without one."""
    ours = make(SHAPES, copy_type, copy_type)
    theirs = clones(ours)
    for entry in ours:
        entry.gradient.mul_(8)
    scale, found_inf = torch.tensor(8.0, device=DEVICE), torch.zeros((), device=DEVICE)
    update(by_kernel, ours, rate_on_device(), MOMENTUM, DECAY, scale, found_inf)
    update(by_kernel, theirs, rate_on_device(), MOMENTUM, DECAY)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.momentum, b.momentum, rtol=1e-6, atol=1e-6)
        assert torch.equal(a.copy, a.weight.to(copy_type))


@pytest.mark.parametrize("by_kernel", [True, False], ids=["kernel", "definition"])
def test_gradients_that_overflowed_change_nothing(by_kernel):
    ours = make(SHAPES, torch.float16, torch.float16)
    for entry in ours:
        entry.gradient[(0,) * entry.gradient.ndim] = torch.inf
    before = clones(ours)
    scale, found_inf = torch.tensor(8.0, device=DEVICE), torch.ones((), device=DEVICE)
    update(by_kernel, ours, rate_on_device(), MOMENTUM, DECAY, scale, found_inf)
    assert_same(ours, before)


def test_a_gradient_of_nan_stays_where_it_is():
    (entry,) = make([(BLOCK + 5,)], torch.bfloat16, torch.bfloat16)
    entry.gradient[BLOCK + 1] = torch.nan
    sgd([entry], rate_on_device(), MOMENTUM, DECAY)
    for tensor in (entry.weight, entry.momentum, entry.copy):
        assert tensor.isnan().nonzero().tolist() == [[BLOCK + 1]]


# The definition


@pytest.mark.parametrize("decay", [DECAY, 0.0], ids=["decay", "no decay"])
@pytest.mark.parametrize(
    ("momentum", "nesterov"),
    [(MOMENTUM, False), (MOMENTUM, True), (0.0, False)],
    ids=["momentum", "Nesterov", "plain"],
)
def test_definition_is_pytorchs_to_the_last_bit(momentum, nesterov, decay):
    ours = make(SHAPES, momentum=bool(momentum))
    theirs = [torch.nn.Parameter(entry.weight.clone()) for entry in ours]
    settings = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov}
    optimizer = torch.optim.SGD(theirs, lr=RATE, foreach=False, **settings)
    for entry in ours:
        if momentum:
            entry.momentum.zero_()
    for iteration in range(3):
        for entry, weight in zip(ours, theirs, strict=True):
            weight.grad = (iteration + 1) * entry.gradient
            sgd_definition(entry._replace(gradient=weight.grad), RATE, **settings)
        optimizer.step()
    for entry, weight in zip(ours, theirs, strict=True):
        assert torch.equal(entry.weight, weight)
        assert not momentum or torch.equal(entry.momentum, optimizer.state[weight]["momentum_buffer"])


def test_definition_reads_the_rate_on_the_device():
    ours = make(SHAPES)
    theirs = clones(ours)
    for a, b in zip(ours, theirs, strict=True):
        sgd_definition(a, rate_on_device(), MOMENTUM, DECAY)
        sgd_definition(b, RATE, MOMENTUM, DECAY)
        torch.testing.assert_close(a.weight, b.weight, rtol=0, atol=EPSILON * b.weight.abs().max().item())


# What the kernel takes


def test_supported():
    for shape in SHAPES:
        assert kernels.supports(*make([shape], torch.bfloat16, torch.bfloat16)[0])
        assert kernels.supports(*make([shape])[0])
    # strides of axes of length 1 differ
    weight = torch.zeros(8, 1, 5, 5, 5, device=DEVICE)
    assert kernels.supports(weight, torch.zeros_like(weight).as_strided(weight.shape, (125, 1, 25, 5, 1)))


@pytest.mark.parametrize(
    "entry",
    {
        "float64": lambda zeros: Weights(zeros(8).double(), zeros(8)),
        "momentum in half precision": lambda zeros: Weights(zeros(8), zeros(8), zeros(8).half()),
        "copy in float32": lambda zeros: Weights(zeros(8), zeros(8), None, zeros(8)),
        "unaligned weight": lambda zeros: Weights(zeros(9)[1:], zeros(8)),
        "unaligned gradient": lambda zeros: Weights(zeros(8), zeros(9).half()[1:]),
        "another layout": lambda zeros: Weights(zeros(4, 4, 2), zeros(4, 2, 4).transpose(1, 2)),
        "gaps": lambda zeros: Weights(zeros(8, 8)[:, :4], zeros(8, 8)[:, :4]),
        "empty": lambda zeros: Weights(zeros(0), zeros(0)),
        "another shape": lambda zeros: Weights(zeros(8), zeros(4, 2)),
    }.items(),
    ids=lambda item: item[0],
)
def test_unsupported_runs_by_the_definition(entry):
    made = entry[1](lambda *shape: torch.zeros(shape, device=DEVICE))
    assert not kernels.supports(*made)
    if made.weight.shape != made.gradient.shape:
        return
    for tensor, value in zip(made, (1.0, 2.0, 3.0, 0.0), strict=True):
        if tensor is not None:
            tensor.fill_(value)
    sgd([made], rate_on_device(0.5), MOMENTUM, 0.0)
    expected = 1 - 0.5 * (2 if made.momentum is None else 2 + MOMENTUM * 3)
    torch.testing.assert_close(made.weight, torch.full_like(made.weight, expected), rtol=1e-3, atol=1e-3)
    assert made.copy is None or torch.equal(made.copy, made.weight)


def test_too_large_is_not_supported():
    weight = torch.empty(MAX_SIZE + 1, device="meta")
    assert not kernels.supports(weight, weight)
    assert kernels.supports(weight[:-1], weight[:-1])


@pytest.mark.parametrize("rate", [RATE, torch.tensor(RATE, dtype=torch.float64)], ids=["number", "float64"])
def test_another_rate_runs_by_the_definition(rate):
    (ours,), (theirs,) = make([(7,)]), make([(7,)])
    rate = rate.to(DEVICE) if isinstance(rate, torch.Tensor) else rate
    sgd([ours], rate, MOMENTUM, DECAY)
    sgd_definition(theirs, rate, MOMENTUM, DECAY)
    assert_same([ours], [theirs])


def test_without_a_momentum_factor_momenta_stay():
    ours = make(SHAPES)
    momenta = [entry.momentum.clone() for entry in ours]
    sgd(ours, rate_on_device(), 0.0, DECAY)
    for entry, momentum in zip(ours, momenta, strict=True):
        assert torch.equal(entry.momentum, momentum)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_replays_of_a_graph_read_the_rate():
    ours = make(MANY, torch.bfloat16, torch.bfloat16)
    theirs, rate = clones(ours), rate_on_device()
    sgd(clones(ours), rate, MOMENTUM, DECAY)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sgd(ours, rate, MOMENTUM, DECAY)
    for value in (0.1, 0.01):
        rate.fill_(value)
        graph.replay()
        sgd(theirs, rate_on_device(value), MOMENTUM, DECAY)
    assert_same(ours, theirs)
