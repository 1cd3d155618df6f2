import pytest
import torch

from benchmarks.measure import DEVICE, PASSES, device_time, passes_of


def scaled(x, slope):
    return x * slope


def leaves():
    x, slope = torch.arange(4.0, device=DEVICE), torch.full((4,), 3.0, device=DEVICE)
    return x.requires_grad_(), slope.requires_grad_()


def accumulator(leaf):
    """The node at which the backward pass of a leaf ends; a leaf has one as long as a graph holds it."""
    return leaf.view_as(leaf).grad_fn.next_functions[0][0]


@pytest.mark.parametrize("pass_name", PASSES)
def test_a_graph_that_is_kept_has_no_leaf_of_the_next(pass_name):
    """The first function runs on the default stream, and the second on one that captures."""
    seen = []

    def function(*inputs):
        seen.append(inputs)
        return scaled(*inputs)

    inputs, grad = leaves(), torch.ones(4, device=DEVICE)
    first = passes_of(function, inputs, grad, pass_name)
    first()
    kept = [accumulator(leaf) for leaf in (*inputs, *seen[-1])]
    for node in kept:
        node.metadata["stream"] = "default"
    passes_of(function, inputs, grad, pass_name)()
    assert [accumulator(leaf).metadata.get("stream") for leaf in seen[-1]] == [None, None]
    # the memory is the same, so that nothing else is measured
    assert [leaf.data_ptr() for leaf in seen[-1]] == [leaf.data_ptr() for leaf in inputs]


def test_passes_give_output_and_gradients():
    inputs, grad = leaves(), torch.full((4,), 2.0, device=DEVICE)
    x, slope = (leaf.detach() for leaf in inputs)
    assert torch.equal(passes_of(scaled, inputs, grad, "forward")(), x * slope)
    for pass_name in ("backward", "both"):
        run = passes_of(scaled, inputs, grad, pass_name)
        for _ in range(2):
            torch.testing.assert_close(run(), (2 * slope, 2 * x))


def test_a_tensor_without_a_gradient_has_none():
    x, slope = leaves()
    grads = passes_of(scaled, (x, slope.detach()), torch.ones(4, device=DEVICE), "both")()
    torch.testing.assert_close(grads, (slope.detach(),))


@pytest.mark.gpu
@pytest.mark.parametrize("pass_name", PASSES)
def test_a_pass_is_captured_while_another_function_keeps_its_graph(pass_name):
    """As `measure` does. Only a device has streams that wait for each other during a capture."""
    inputs = leaves()
    run = passes_of(scaled, inputs, torch.ones(4, device=DEVICE), pass_name)
    run()
    assert device_time(lambda: passes_of(scaled, inputs, torch.ones(4, device=DEVICE), pass_name)) > 0
    run()
