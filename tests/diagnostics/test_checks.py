"""The doctor finds what is wrong, and says what to do."""

import re

import pytest
import torch

from vnet_fast.diagnostics import checks, machine, speed
from vnet_fast.diagnostics.checks import Findings
from vnet_fast.ops import device_store, trials

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def small_and_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(device_store, "FOLDER", tmp_path / "devices")
    monkeypatch.setattr(speed, "COPIED", {"cpu": 1 << 20})
    monkeypatch.setattr(speed, "SIDE", {"cpu": 64})


def found_by(check, device=CPU):
    found = Findings()
    check(device, found)
    return found


def test_a_working_cpu_is_described_whole():
    found = checks.examine(CPU)
    text = "\n".join(found.lines)
    assert found.problems == []
    for pattern in (
        r"torch +2\.", r"python +3\.", r"SimpleITK +\d", r"platform +\w", r"CPU: .*\d+ of \d+ cores, \d+ threads",
        "C compiler: ", r"kernels, convolutions by .*; Triton's need a GPU", "filtered convolutions: ",
        r"training: 5 iterations of 16 x 16 x 16 voxels",
        r"copy: [\d.]+ GB/s", r"product in float32: [\d.e-]+ TFLOP/s", "results of trials are kept in",
    ):  # fmt: skip
        assert re.search(pattern, text), pattern


@pytest.mark.parametrize(
    ("why", "remedy"),
    [
        ("RuntimeError: Failed to find C compiler", "Install a C compiler and Python's headers"),
        ("float32 output differs from its definition by 0.1 of the largest value", "Report it"),
        (None, "Install triton"),
    ],
)
def test_kernels_that_do_not_run_are_named(monkeypatch, why, remedy):
    monkeypatch.setattr(checks, "load_kernels", lambda name: None if why is None else object())
    monkeypatch.setattr(trials, "repeat", lambda name, device: why if name == "dice" else "")
    found = found_by(checks._check_kernels, GPU)
    problems = [problem for problem in found.problems if problem.startswith("the kernels of dice do not run: ")]
    assert len(problems) == 1
    assert remedy in problems[0]
    if why is not None:
        assert found.problems == problems
        lines = [" ".join(line.split()) for line in found.lines]
        assert f"dice plain PyTorch runs instead: {why}" in lines
        assert "add_prelu passed its trial" in lines


def test_a_wrong_convolution_is_found(monkeypatch):
    assert found_by(checks._check_convolutions).problems == []
    original = checks.F.conv3d

    def conv3d(x, *rest, **how):
        y = original(x, *rest, **how)
        return y if x.dtype == torch.float64 else y * 1.05

    monkeypatch.setattr(checks.F, "conv3d", conv3d)
    problems = found_by(checks._check_convolutions).problems
    assert problems
    assert all(re.match(r"a 3-D convolution in torch\.\w+ is wrong by 0\.05", problem) for problem in problems)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "Free its memory"),
        (RuntimeError("no engine\nand more"), "Report it"),
    ],
)
def test_a_step_that_fails_is_found(monkeypatch, error, remedy):
    def failing(*arguments):
        raise error

    monkeypatch.setattr(checks, "_train", failing)
    (problem,) = found_by(checks._check_step).problems
    first = str(error).splitlines()[0]
    assert problem.startswith(f"a training step of 16 x 16 x 16 voxels fails ({first}). {remedy}")


def test_what_breaks_one_examination_does_not_end_the_others(monkeypatch):
    def failing(*arguments):
        raise RuntimeError("cuDNN error\nand more")

    monkeypatch.setattr(speed, "copy_rate", failing)
    found = checks.examine(CPU)
    (problem,) = found.problems
    assert problem.startswith("examining the speed failed (RuntimeError: cuDNN error). Report it")
    assert any("results of trials are kept" in line for line in found.lines)


def test_a_loss_that_is_not_finite_is_found(monkeypatch):
    monkeypatch.setattr(checks, "_train", lambda *arguments: ([0.5, float("nan")], None))
    (problem,) = found_by(checks._check_step).problems
    assert problem.startswith("a training step of 16 x 16 x 16 voxels gives [0.5, nan]")


def test_a_refused_graph_is_found(monkeypatch):
    monkeypatch.setattr(checks, "_train", lambda *arguments: ([0.5], "operation not permitted"))
    monkeypatch.setattr(checks, "choose_precision", lambda name, device: (None, "float32"))
    found = found_by(checks._check_step, GPU)
    assert found.problems[0].startswith("the training step can't be captured (operation not permitted)")
    assert any(line.startswith("rewritten convolutions: 0 of 0 passes") for line in found.lines)


def test_a_folder_that_cannot_be_written_is_found(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(device_store, "FOLDER", tmp_path / "file" / "devices")
    (problem,) = found_by(checks._check_store).problems
    assert problem.startswith(str(tmp_path / "file" / "devices"))


def test_a_gpu_that_pytorch_does_not_see_is_found(monkeypatch, tmp_path):
    (tmp_path / "version").write_text("NVRM version")
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.has_unused_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not machine.has_unused_gpu()


@pytest.mark.parametrize(("number", "version"), [(91900, "9.19.0"), (91002, "9.10.2"), (8902, "8.9.2")])
def test_the_version_of_cudnn_is_written_as_usual(number, version):
    assert machine.cudnn_version(number) == version


@pytest.mark.gpu
def test_on_a_gpu_everything_works(monkeypatch):
    """Every kernel passes its trial, convolutions are right, and a step of the paper's size is captured."""
    monkeypatch.undo()
    found = checks.examine(GPU)
    assert found.problems == [], "\n".join(found.lines)
