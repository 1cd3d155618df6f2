"""Training passes: one launch for all sums, and the gradients of every use of an activation in its kernel."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from vnet_fast import DiceLoss, VNet
from vnet_fast.ops import add_prelu as operators
from vnet_fast.ops import dispatch
from vnet_fast.ops.add_prelu import add_prelu, add_prelu_join
from vnet_fast.ops.training_pass import training_pass


def volume(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    return x.contiguous(memory_format=torch.channels_last_3d).requires_grad_(requires_grad)


def weights(channels=8, seed=0):
    slope = torch.linspace(-0.2, 0.5, channels).requires_grad_()
    bias = (torch.linspace(-1, 1, channels) + seed).requires_grad_()
    return slope, bias


@pytest.fixture
def calls(through_kernels, monkeypatch):
    """The kernels' functions that run: (name, number of gradients or layers)."""
    found = []

    def spy(module, name, count):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (found.append((name, count(a))), original(*a))[1])

    kernels = dispatch.load_kernels("add_prelu")
    spy(kernels, "add_prelu_backward", lambda arguments: len(arguments[0]))
    spy(kernels, "add_prelu_backward_partials", lambda arguments: len(arguments[0]))
    spy(kernels, "sum_all_partials", lambda arguments: len(arguments[1]))
    return found


def trained(network, in_pass, image, target):
    """The gradients of the weights after a pass."""
    network.zero_grad()
    if in_pass:
        with training_pass():
            DiceLoss.paper()(network(image), target).backward()
    else:
        DiceLoss.paper()(network(image), target).backward()
    return [weight.grad.clone() for weight in network.parameters()]


def network_and_batch():
    torch.manual_seed(0)
    network = VNet(base_channels=2)
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    image = volume(1, 1, 16, 16, 16)
    return network, image, (image > 0.5).to(torch.uint8)


def test_a_network_has_the_same_gradients_with_fewer_launches(calls):
    network, *batch = network_and_batch()
    with torch.profiler.profile() as profile:
        inside = trained(network, True, *batch)
    gradients = [count for name, count in calls if name == "add_prelu_backward_partials"]
    # the outputs of four left stages go down and into two gradients of the joined tensor; those of the down- and
    # up-convolutions are inputs and residuals
    assert {count: gradients.count(count) for count in gradients} == {3: 4, 2: 8, 1: 17}
    assert calls[29:] == [("sum_all_partials", 29)]
    # PyTorch adds no gradients of volumes
    added = [event for event in profile.events() if event.name in ("aten::add", "aten::add_")]
    assert not [event for event in added if event.cpu_parent and "Backward" in event.cpu_parent.name]
    exact = trained(network.double(), False, batch[0].double(), batch[1])
    for ours, reference in zip(inside, exact, strict=True):
        assert (ours - reference).norm() <= 1e-3 * reference.norm() + 1e-7


def test_autograd_adds_the_gradients_outside():
    """What the test above counts is there without a pass."""
    network, *batch = network_and_batch()
    with torch.profiler.profile() as profile:
        trained(network, False, *batch)
    assert sum(event.name in ("aten::add", "aten::add_") for event in profile.events()) >= 12


def test_gradients_are_added_to_those_that_are_there(calls):
    slope, bias = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    expected = torch.autograd.grad(add_prelu(x, slope, bias).sum(), (slope, bias))
    for count in (1, 2):
        with training_pass():
            add_prelu(x, slope, bias).sum().backward()
        for weight, gradient in zip((slope, bias), expected, strict=True):
            torch.testing.assert_close(weight.grad, count * gradient)


def test_weights_of_two_layers_have_the_sum_of_both_gradients(calls):
    slope, bias = weights()
    results = []
    for in_pass in (False, True):
        x = volume(1, 8, 2, 3, 4, requires_grad=True)
        slope.grad = bias.grad = None
        with training_pass() if in_pass else torch.enable_grad():
            add_prelu(add_prelu(x, slope, bias), slope, bias, x).sum().backward()
        results.append((x.grad, slope.grad, bias.grad))
    assert calls[2:] == [("add_prelu_backward_partials", 1)] * 2 + [("sum_all_partials", 2)]
    for outside, inside in zip(*results, strict=True):
        torch.testing.assert_close(inside, outside)


@pytest.mark.parametrize("why", ["hook", "post hook", "half", "no leaf", "subclass", "process group"])
def test_gradients_that_cannot_wait_are_there_at_once(calls, monkeypatch, why):
    slope, bias = weights()
    leaf, seen = slope, []
    if why == "hook":
        slope.register_hook(lambda grad: seen.append(grad))
    elif why == "post hook":
        slope.register_post_accumulate_grad_hook(lambda weight: seen.append(weight.grad))
    elif why == "half":
        slope = leaf = slope.detach().bfloat16().requires_grad_()
    elif why == "no leaf":
        slope = slope * 1
    elif why == "subclass":
        slope = leaf = type("Sharded", (torch.Tensor,), {})(slope.detach()).requires_grad_()
    else:
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    x = volume(1, 8, 2, 3, 4, requires_grad=True).detach()
    x = x.bfloat16().requires_grad_() if why == "half" else x.requires_grad_()
    with training_pass():
        add_prelu(x, slope, bias).sum().backward()
        assert leaf.grad is not None
        assert bias.grad is not None
    assert calls == [("add_prelu_backward", 1)]
    assert len(seen) == ("hook" in why)


def test_frozen_weights_get_no_gradient(calls):
    slope, bias = weights()
    slope.requires_grad_(False)
    with training_pass():
        add_prelu(volume(1, 8, 2, 3, 4, requires_grad=True), slope, bias).sum().backward()
        assert bias.grad is None
    assert slope.grad is None
    assert bias.grad is not None


def test_layers_that_no_gradient_reaches(calls):
    slope, bias = weights()
    other, _ = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    with training_pass():
        add_prelu(x, other, bias)
        add_prelu(x, slope).sum().backward()
    assert other.grad is None
    assert bias.grad is None
    expected = torch.autograd.grad(add_prelu(x, slope).sum(), slope)[0]
    assert torch.equal(slope.grad, expected)


def test_after_the_pass_gradients_do_not_wait(calls):
    slope, bias = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    with training_pass():
        late = add_prelu(x, slope, bias).sum()
    late.backward()
    expected = torch.autograd.grad(add_prelu(x, slope, bias).sum(), (x, slope, bias))
    for weight, gradient in zip((x, slope, bias), expected, strict=True):
        assert torch.equal(weight.grad, gradient)


def test_a_second_backward_pass_within(calls):
    slope, bias = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    with training_pass():
        y = add_prelu(x, slope, bias).sum()
        y.backward(retain_graph=True)
        y.backward()
    expected = torch.autograd.grad(add_prelu(x, slope, bias).sum(), (x, slope, bias))
    for weight, gradient in zip((x, slope, bias), expected, strict=True):
        torch.testing.assert_close(weight.grad, 2 * gradient)


def test_another_thread_is_outside_the_pass(calls):
    """Where the kernels are tried, which asks for gradients of its own."""
    (slope, bias), (other, _) = weights(), weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    with training_pass():
        y = add_prelu(x, slope, bias)
        with ThreadPoolExecutor(1) as thread:
            gradients = thread.submit(lambda: torch.autograd.grad(add_prelu(x, other).sum(), other)).result()
        y.sum().backward()
    assert calls == [("add_prelu_backward", 1), ("add_prelu_backward_partials", 1), ("sum_all_partials", 1)]
    assert torch.equal(gradients[0], torch.autograd.grad(add_prelu(x, other).sum(), other)[0])


def test_a_pass_that_fails_leaves_nothing_behind(calls):
    slope, bias = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)

    def fail():
        with training_pass():
            add_prelu(x, slope, bias).sum().backward()
            raise KeyError("of the user")

    with pytest.raises(KeyError, match="of the user"):
        fail()
    assert slope.grad is None
    assert ("sum_all_partials", 1) not in calls
    calls.clear()
    add_prelu(x, slope, bias).sum().backward()
    assert calls == [("add_prelu_backward", 1)]


@pytest.mark.parametrize("uses", [1, 2, 3, 5])
def test_an_activation_with_any_number_of_uses(calls, uses):
    """As residual, as skip, and of PyTorch's own operations, more often than there are spare aliases."""
    results = []
    for in_pass in (False, True):
        (slope, bias), x = weights(), volume(1, 8, 2, 3, 4, requires_grad=True)
        skip = volume(1, 8, 2, 3, 4, seed=1, requires_grad=True)
        with training_pass() if in_pass else torch.enable_grad():
            y = add_prelu(x, slope, bias)
            total = (y * volume(1, 8, 2, 3, 4, seed=3)).sum()
            for use in range(1, uses):
                other = volume(1, 8, 2, 3, 4, seed=3 + use)
                if use % 2:
                    joined = add_prelu_join(other, slope.detach(), None, y)
                    total = total + (joined * volume(1, 16, 2, 3, 4, seed=9)).sum() + joined.square().sum()
                else:
                    total = total + add_prelu(other, slope.detach(), None, y).square().sum()
            # a skip without spare aliases gets the sum of the gradients of the joined tensor
            joined = add_prelu_join(x, slope, None, skip)
            total = total + (joined * volume(1, 16, 2, 3, 4, seed=11)).sum()
            total = total + add_prelu(volume(1, 16, 2, 3, 4, seed=12), torch.ones(16), None, joined).square().sum()
            total.backward()
        results.append((x.grad, skip.grad, slope.grad, bias.grad))
    for outside, inside in zip(*results, strict=True):
        torch.testing.assert_close(inside, outside, rtol=1e-4, atol=1e-5)


def test_spare_aliases_are_the_activation_itself(calls):
    (slope, bias), x = weights(), volume(1, 8, 2, 3, 4, requires_grad=True)
    with training_pass():
        y = add_prelu(x, slope, bias)
        total = y.sum() + add_prelu(x, slope, None, y).sum()
        assert [spare.data_ptr() for spare in y._vnet_fast_spares] == [y.data_ptr()]
        y.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


def test_outside_a_pass_an_activation_has_its_whole_gradient(calls):
    (slope, bias), x = weights(), volume(1, 8, 2, 3, 4, requires_grad=True)
    y = add_prelu(x, slope, bias)
    y.retain_grad()
    add_prelu(y * 2, torch.ones(8), None, y).sum().backward()
    assert torch.equal(y.grad, torch.full_like(y, 3))


def test_on_a_cpu_a_pass_changes_no_bit():
    network, *batch = network_and_batch()
    for outside, inside in zip(trained(network, False, *batch), trained(network, True, *batch), strict=True):
        assert torch.equal(outside, inside)


def of_fake_tensors(function, x):
    # their mode is entered for each operator that sees one
    function(FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x))


TRACERS = {
    "make_fx": lambda function, x: make_fx(function)(x),
    "fake tensors": of_fake_tensors,
    "compile": lambda function, x: torch.compile(function, backend="aot_eager", fullgraph=True)(x),
    "vmap": lambda function, x: torch.func.vmap(function)(x[None]),
    "trace": lambda function, x: torch.jit.trace(function, x, check_trace=False),
    "export": lambda function, x: torch.export.export(Wrapped(function), (x,)),
}


class Wrapped(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*:DeprecationWarning")
@pytest.mark.parametrize("tracer", TRACERS)
def test_who_traces_sees_the_registered_operator(through_kernels, monkeypatch, tracer):
    for name in ("add_prelu_directly", "add_prelu_join_directly"):
        monkeypatch.setattr(operators, name, None)
    slope, skip = torch.full((8,), 0.25), volume(1, 8, 2, 3, 4, seed=1)
    with torch.no_grad() if tracer == "export" else torch.enable_grad():
        TRACERS[tracer](lambda x: add_prelu_join(add_prelu(x, slope), slope, None, skip), volume(1, 8, 2, 3, 4))


def test_a_second_derivative_is_refused(through_kernels):
    slope, bias = weights()
    x = volume(1, 8, 2, 3, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(add_prelu(x, slope, bias).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
