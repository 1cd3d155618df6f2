"""Whole training steps, validation and prediction on a CUDA device that is not there (`fake_step.py`)."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPERATORS = json.loads(Path(__file__).with_name("operators.json").read_text())
DEFAULT = "step: paper, bf16, dice, sgd"
# launches of a step besides cuDNN's
LAUNCHES = 100
# of a step whose convolutions are rewritten as on Hopper
REWRITTEN, REWRITTEN_LAUNCHES = "step: rewrites True", 240
# of captured steps, the few that copy a volume into another layout, with the reason
COPIES = {
    REWRITTEN: "rewritten convolutions rearrange their weights",
    "step: shape (35, 50, 33)": "the gradient of a crop is contiguous",
    "step: in_channels 3, classes 4, resident False": "the image is contiguous",
}
CAPTURED = (
    "paper, bf16, dice, sgd", "precision float32", "rewrites True", "norm batch",
    "caffe, shape (35, 50, 33), in_channels 3, classes 4, norm instance",
)  # fmt: skip
# what the loss of a step becomes, and what has to be found, or that PyTorch refuses it
SPOILED = {
    "loss(logits, target) * (1 + 0 * logits.sum().item())": "_local_scalar_dense: the host waits for the device",
    "loss(logits[logits > 0].reshape(1, 1, -1), target)": "refused",
    "loss(logits, target) + logits[:, 0][target[:, 0] == 3].sum()": "refused",
    "loss(logits.contiguous(), target)": "clone: bfloat16 (2, 2, 16, 16, 32) channels-last into the layout of",
    "loss(logits, target) + torch.ones(())": "add: tensors on cpu and cuda",
    "loss(logits, target) + torch.ones(1)": "refused",
    "loss(logits, target) + torch.ones(1).cuda()[0]": "_to_copy: float32 (1,) from pageable memory to the device",
    "loss(logits, target.cpu().cuda())": "_to_copy: uint8 (2, 1, 16, 16, 32) to the host",
    "loss(torch.nn.functional.conv3d(logits, torch.ones(2, 2, 1, 1, 1, device='cuda')), target)": "refused",
    "loss(logits, target)": None,
}
# in a process of its own, for all of them
SPOIL = """
import json, sys, torch
from tests.gpu_rehearsal.fake_cuda import fake_cuda
from tests.gpu_rehearsal.fake_step import Configuration, step_of
from tests.gpu_rehearsal.operator_log import OperatorLog

def findings(expression):
    with fake_cuda():
        step, inputs = step_of(Configuration(base_channels=2, shape=(16, 16, 32)))
        with OperatorLog().recording():
            step(*inputs)
        function = eval("lambda loss, logits, target: " + expression)
        loss, step.loss = step.loss, lambda logits, target: function(loss, logits, target)
        with OperatorLog().recording() as log:
            try:
                step(*inputs)
            except Exception as error:
                return ["refused: " + type(error).__name__]
    return log.findings

print(json.dumps([findings(expression) for expression in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def run():
    """Runs Python in a process of its own."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")

    def run_python(*arguments):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)

    return run_python


@pytest.mark.exhaustive
def test_everything_runs_the_operators_that_are_kept(run):
    """If a change is meant, rewrite the file: `python -m tests.gpu_rehearsal.fake_step --write`."""
    result = run("-m", "tests.gpu_rehearsal.fake_step")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.exhaustive
def test_what_a_gpu_refuses_or_waits_for_is_found(run):
    result = run("-c", SPOIL, json.dumps(list(SPOILED)))
    assert result.returncode == 0, result.stderr
    for (expression, expected), findings in zip(SPOILED.items(), json.loads(result.stdout), strict=True):
        if expected is None:
            assert findings == []
        else:
            assert any(finding.startswith(expected) for finding in findings), (expression, findings)


def test_a_captured_step_waits_for_nothing_and_copies_no_volume():
    found = {name: kept["findings"] for name, kept in OPERATORS.items() if kept["findings"] and name.startswith("step")}
    assert found.keys() == COPIES.keys()
    for findings in found.values():
        assert all("is not channels-last" in finding or "into the layout" in finding for finding in findings)


def test_a_captured_window_waits_for_nothing():
    found = {name: kept["findings"] for name, kept in OPERATORS.items() if name.startswith("captured window")}
    assert found.keys() == {f"captured window: {form}" for form in CAPTURED}
    assert found[f"captured window: {CAPTURED[0]}"] == []
    # rewritten weights, and volumes of several channels, which come in another layout
    assert all("into the layout of" in finding for findings in found.values() for finding in findings)


def test_launches_of_a_step():
    assert OPERATORS[DEFAULT]["launches besides cuDNN's"] <= LAUNCHES
    assert OPERATORS[REWRITTEN]["launches besides cuDNN's"] <= REWRITTEN_LAUNCHES


def test_volumes_are_streamed_from_pinned_memory():
    findings, wrong = OPERATORS["streamed inputs"]["findings"], ("pageable", "may be used", "does not wait")
    assert not any(word in finding for word in wrong for finding in findings)
    assert sum("from pinned memory to the device" in finding for finding in findings) == 5


def test_validation_waits_for_masks_alone():
    waits = [finding for finding in OPERATORS["validation"]["findings"] if "to the host" in finding]
    # whose components the host finds, when all are computed
    assert waits == ["2 x _to_copy: uint8 (64, 128, 128) to the host"]


@pytest.mark.parametrize("name", ["prediction in one piece", "prediction in windows"])
def test_a_prediction_on_the_device_brings_the_volume_there_and_back_once(name):
    volumes = [finding for finding in OPERATORS[name]["findings"] if finding.count(",") >= 3]
    assert ["to the host" in finding for finding in volumes] == [False, True]
