import functools
import importlib
import subprocess
import sys

import pytest
import torch
import torch._dynamo
from torch import Tensor

import vnet_fast
from vnet_fast.ops.operator import OPERATORS, operator

NAMES = {
    "add_prelu", "add_prelu_join", "add_prelu_backward", "add_prelu_host_backward", "augment", "cpu_convolution",
    "cpu_convolution_backward", "cpu_convolution_predict", "cpu_strided", "cpu_strided_backward", "dice_sums",
    "dice_sums_backward", "norm_prelu", "norm_prelu_backward", "norm_prelu_join", "patches", "transform",
}  # fmt: skip
START = """
import runpy, sys

cases, run, optimizer = sys.argv[1:]
tiny = ["--iterations", "1", "--base-channels", "2", "--volume", "16", "16", "16", "--device", "cpu"]
for verb, arguments in (
    ("train", [*tiny, "--optimizer", optimizer, "--data", cases, "--output", run]),
    ("predict", ["--checkpoint", run, "--input", cases, "--output", run + "/masks", "--device", "cpu"]),
):
    sys.argv[1:] = arguments
    try:
        runpy.run_module("vnet_fast." + verb, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), verb
"""
AGAIN = """
import importlib, sys, torch

def run():
    from vnet_fast import VNet, DiceLoss
    logits = VNet(base_channels=2)(torch.zeros(1, 1, 16, 16, 16))
    DiceLoss.paper()(logits, torch.zeros(1, 1, 16, 16, 16)).backward()

run()
importlib.reload(sys.modules["vnet_fast.ops.add_prelu"])
run()
for name in [name for name in sys.modules if name.startswith("vnet_fast")]:
    del sys.modules[name]
run()
"""


def python(code, *arguments):
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture
def made():
    """A function that makes the operator of a test."""
    name = "vnet_fast::of_a_test"

    def make(function, **options):
        return operator(name, **options)(function)

    yield make
    OPERATORS.pop(name)._library._destroy()


def test_all_of_the_package_are_made_so():
    importlib.import_module("vnet_fast.training.step")
    for module in ("norm_prelu", "augment", "cpu_convolution", "cpu_strided", "dice", "patches", "transform"):
        importlib.import_module(f"vnet_fast.ops.{module}")
    assert {name.partition("::")[2] for name in OPERATORS} == NAMES
    # those that have no gradient say so, which PyTorch would not
    assert all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "Autograd") for name in OPERATORS)


@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.exhaustive), "adamw"])
def test_training_and_prediction_do_not_import_the_compiler(cases, tmp_path, optimizer):
    python(START, cases, tmp_path / "run", optimizer)


@pytest.mark.exhaustive
def test_the_package_can_be_imported_again():
    python(AGAIN)


def test_its_function_is_called_and_has_gradients(made):
    calls = []

    def double(x: Tensor, factor: float) -> Tensor:
        calls.append(factor)
        return x * factor

    def save(ctx, inputs, output):
        ctx.factor = inputs[1]

    op = made(double, differentiable=True)
    op.register_fake(lambda x, factor: torch.empty_like(x))
    op.register_autograd(lambda ctx, grad: (grad * ctx.factor, None), setup_context=save)
    x = torch.ones(3, requires_grad=True)
    op(x, 2.0).sum().backward()
    assert calls == [2.0]
    assert x.grad.tolist() == [2, 2, 2]
    assert op(torch.ones(3), 3.0).tolist() == [3, 3, 3]
    torch.library.opcheck(torch.ops.vnet_fast.of_a_test.default, (torch.ones(3, requires_grad=True), 2.0))


def test_without_gradient_a_backward_pass_says_so(made):
    def copy(x: Tensor) -> Tensor:
        return x.clone()

    y = made(copy)(torch.ones(3, requires_grad=True))
    with pytest.raises(RuntimeError, match="vnet_fast::of_a_test has no derivative"):
        y.sum().backward()


def test_for_one_device(made):
    def copy(x: Tensor) -> Tensor:
        return x.clone()

    op = made(copy, device_types="cpu")
    assert op(torch.ones(3)).tolist() == [1, 1, 1]
    keys = [torch._C._dispatch_has_kernel_for_dispatch_key("vnet_fast::of_a_test", key) for key in ("CPU", "CUDA")]
    assert keys == [True, False]


def test_the_compiler_does_not_look_into_it(made):
    def add_one(x: Tensor) -> Tensor:
        calls.append(1)
        return x + 1

    @functools.partial(torch._dynamo.disable, recursive=False)
    def call(x):
        # outside of the compiler's graphs, while it looks at every function that is called
        return torch.ops.vnet_fast.of_a_test.default(x)

    calls, graphs = [], []

    def backend(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    made(add_one).register_fake(torch.empty_like)
    torch._dynamo.reset()
    assert torch.compile(lambda x: call(x), backend=backend)(torch.ones(2)).tolist() == [2, 2]
    assert calls == [1]
    assert graphs == []


def test_the_compiler_sees_each_backward_pass_as_a_function_of_its_own(caplog):
    """It compiles a function only so often for other arguments."""
    torch._dynamo.reset()
    y = vnet_fast.VNet(base_channels=8, levels=2)(torch.zeros(1, 1, 16, 16, 16)).square().mean()
    torch.compile(lambda y: y.backward(), backend="eager")(y)
    assert "recompile_limit" not in caplog.text
