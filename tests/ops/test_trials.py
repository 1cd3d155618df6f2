"""Kernels are tried once before they are trusted; the definitions replace those that fail."""

import logging
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from vnet_fast.nn.losses import DiceLoss
from vnet_fast.ops import device_store, dispatch, trials
from vnet_fast.ops.add_prelu import add_prelu
from vnet_fast.ops.dice import DiceOptions
from vnet_fast.ops.training_pass import training_pass

pytest.importorskip("triton", reason="Triton is not installed")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_tried(monkeypatch, tmp_path, through_kernels, rounded_to_nearest):
    """Tries the kernels on the CPU, in the interpreter, with nothing stored."""
    monkeypatch.setattr(trials, "TRIED_ON", {"cpu"})
    monkeypatch.setattr(device_store, "FOLDER", tmp_path / "devices")
    trials.forget()
    yield
    trials.forget()


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(trials.TRIALS))
def test_the_kernels_pass_and_that_is_remembered(name, monkeypatch, caplog):
    tensor = torch.empty(1)
    assert trials.reason(name, CPU) is None
    assert dispatch.kernels_for(name, tensor) is dispatch.load_kernels(name)
    assert trials.reason(name, CPU) == ""
    # by another process
    trials.forget()
    monkeypatch.setattr(trials, "run", lambda name, device: pytest.fail("tried again"))
    assert dispatch.kernels_for(name, tensor) is not None
    assert warnings_of(caplog) == []


def test_other_sources_are_tried_again(monkeypatch):
    assert dispatch.kernels_for("dice", torch.empty(1)) is not None
    trials.forget()
    monkeypatch.setattr(trials, "_source_digest", lambda kernels: "changed")
    tried = []
    monkeypatch.setattr(trials, "run", lambda name, device: tried.append(name) or "")
    assert dispatch.kernels_for("dice", torch.empty(1)) is not None
    assert tried == ["dice"]


def gradients_of(name):
    """Results and gradients of an operation on small tensors."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, 6, generator=generator).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    if name == "add_prelu":
        slope = torch.tensor([0.3, -0.2, 0.5], requires_grad=True)
        y = add_prelu(x, slope)
        return y, *torch.autograd.grad(y.square().sum(), (x, slope))
    loss = DiceLoss.paper()(x[:, :2], (x[:, 2:].detach() > 0).to(torch.uint8))
    return loss, *torch.autograd.grad(loss, x)


FAILURES = {
    "no compiler": (RuntimeError("Failed to find C compiler. Please specify via CC"), "RuntimeError: Failed to find C"),
    "wrong": (None, "differs from its definition by"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("name", ["add_prelu", "dice"])
def test_a_broken_kernel_is_replaced_by_its_definition_with_one_line(monkeypatch, caplog, failure, name):
    kernels = dispatch.load_kernels(name)
    function = {"add_prelu": "add_prelu", "dice": "dice_sums"}[name]
    original = getattr(kernels, function)
    error, message = FAILURES[failure]

    def broken(*arguments, **options):
        if error is not None:
            raise error
        result = original(*arguments, **options)
        first = result[0] if isinstance(result, tuple) else result
        first.mul_(1.1)
        return result

    monkeypatch.setattr(kernels, function, broken)
    found = gradients_of(name)
    (line,) = warnings_of(caplog)
    assert line.startswith(f"cpu: the kernels of {name} are not used (")
    assert message in line
    assert line.endswith(
        "plain PyTorch runs instead, which is slower. Run `python -m vnet_fast.doctor` to find out more"
    )
    assert not device_store.load(trials.STORE, CPU).get(name)
    monkeypatch.setattr(dispatch, "can_run_kernels", lambda tensor: False)
    for tensor, expected in zip(found, gradients_of(name), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)


def test_a_broken_triton_is_one_line(monkeypatch, caplog):
    def broken(name):
        raise OSError("libtriton.so: undefined symbol")

    dispatch.load_kernels.cache_clear()
    dispatch._say_once.cache_clear()
    monkeypatch.setattr(dispatch.importlib, "import_module", broken)
    try:
        for name in ("add_prelu", "dice", "add_prelu"):
            assert dispatch.kernels_for(name, torch.empty(1)) is None
    finally:
        dispatch.load_kernels.cache_clear()
    (line,) = warnings_of(caplog)
    assert "Triton can't be imported (OSError: libtriton.so: undefined symbol)" in line


def test_what_the_kernels_refuse_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(dispatch, "_refused", set())
    kernels, options = dispatch.load_kernels("dice"), DiceOptions("softmax", labels=True)
    logits, labels = torch.randn(1, 2, 3, 4, 5), torch.zeros(1, 1, 3, 4, 5, dtype=torch.uint8)
    assert dispatch.kernels_for("dice", logits, logits, labels, options) is kernels
    empty = logits[:, :, :0]
    for _ in range(2):
        assert dispatch.kernels_for("dice", empty, empty, labels[:, :, :0], options) is None
    (line,) = warnings_of(caplog)
    expected = "cpu: plain PyTorch runs dice for float32 of shape (1, 2, 0, 4, 5), which its kernels do not take"
    assert line == expected


def test_a_trial_does_not_move_the_random_numbers():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert trials.run("dice", CPU) == ""
    assert torch.equal(torch.rand(3), expected)


def test_a_capture_does_not_try(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(trials, "TRIED_ON", {"cuda"})
    monkeypatch.setattr(trials, "run", lambda name, device: pytest.fail("tried within a capture"))
    device = torch.device("cuda", 0)
    assert not trials.passed("dice", dispatch.load_kernels("dice"), device)
    assert trials.reason("dice", device) is None


@pytest.mark.parametrize(
    "context", [training_pass, torch.inference_mode, torch.no_grad, partial(torch.autocast, "cpu")]
)
def test_a_trial_within_a_context_is_as_outside(context):
    with context():
        assert trials.run("add_prelu", CPU) == ""


@pytest.mark.exhaustive
def test_a_device_without_a_number_is_tried_once_and_does_not_wait_for_itself(tmp_path):
    """A GPU may be named `cuda`, while its tensors are on `cuda:0`; here a CPU is named otherwise than its tensors."""
    code = f"""
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from vnet_fast.ops import device_store, dispatch, trials
device_store.FOLDER = device_store.Path({str(tmp_path)!r})
dispatch.can_run_kernels = lambda tensor: True
trials.TRIED_ON = {{"cpu"}}
name = torch.device("cpu", 0)
assert name != torch.empty(1).device
assert trials.passed("dice", dispatch.load_kernels("dice"), name)
assert trials.repeat("dice", name) == ""
"""
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)


def test_results_are_of_the_device_that_tensors_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(trials, "TRIED_ON", {"cuda"})
    tried = []
    monkeypatch.setattr(trials, "run", lambda name, device: tried.append(device) or "")
    monkeypatch.setattr(device_store, "fingerprint", lambda device: "a GPU")
    kernels = dispatch.load_kernels("dice")
    for device in (torch.device("cuda"), torch.device("cuda", 1), torch.device("cuda")):
        assert trials.passed("dice", kernels, device)
    assert tried == [torch.device("cuda", 1)]
