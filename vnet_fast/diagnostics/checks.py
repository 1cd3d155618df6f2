"""Runs on a device what training and prediction need, and says what does not work."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from vnet_fast.devices import HOST, choose_precision, describe_float32, is_out_of_memory
from vnet_fast.diagnostics import machine, speed
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops import convolution_choice, cpu_convolution_choice, cpu_library, device_store, trials
from vnet_fast.ops.dispatch import load_kernels
from vnet_fast.ops.trial_cases import TRIALS
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import WARM_UP, Step

# relative to the norm: bfloat16's rounding of the inputs, and TF32's
CONVOLUTION_ERROR = {torch.bfloat16: 1e-2, torch.float32: 2e-3}
REPORT = "Report it, with all of this output"
# the size of a training step, (z, y, x), and its channels: the paper's on a GPU
STEP = {"cpu": ((16, 16, 16), 2), "cuda": ((64, 128, 128), 16)}


@dataclass
class Findings:
    """What was found: lines to show, and what is wrong, each with a remedy."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(device: torch.device) -> Findings:
    """Everything about the packages, the machine and a device."""
    found = Findings()
    found.lines += machine.describe_packages()
    found.lines += ["", machine.describe_cpu(), machine.describe_tools()]
    if machine.has_unused_gpu():
        found.problems.append(
            "there is an NVIDIA driver, but PyTorch finds no GPU. Install a CUDA build of PyTorch that fits the driver"
        )
    if device != HOST:
        found.lines.append(machine.describe_gpu(device))
    for check in (_check_kernels, _check_convolutions, _check_step, _check_speed, _check_store):
        found.lines.append("")
        try:
            check(device, found)
        except Exception as error:
            # whatever is broken, the rest of the report is needed all the more
            subject = check.__name__.removeprefix("_check_").replace("_", " ")
            text = str(error).splitlines()[0] if str(error) else ""
            found.problems.append(f"examining the {subject} failed ({type(error).__name__}: {text}). {REPORT}")
    return found


def _check_kernels(device: torch.device, found: Findings) -> None:
    if device == HOST:
        found.lines.append(f"kernels{cpu_convolution_choice.description(device)}; Triton's need a GPU")
        if cpu_library.library() is None and cpu_convolution_choice.mode() != cpu_convolution_choice.ONEDNN:
            found.problems.append(f"the CPU's kernels are missing, so that it is slower. {cpu_library.INSTALL}")
        return
    found.lines.append(f"kernels on {device}:")
    width = max(map(len, TRIALS))
    for name in TRIALS:
        missing = "Triton is not installed or can't be imported"
        why = missing if load_kernels(name) is None else trials.repeat(name, device)
        outcome = f"plain PyTorch runs instead: {why}" if why else "passed its trial"
        found.lines.append(f"  {name:{width}}  {outcome}")
        if why:
            found.problems.append(f"the kernels of {name} do not run: {why}. {_kernel_remedy(why)}")


def _kernel_remedy(why: str) -> str:
    if "not installed" in why:
        return "Install triton again"
    if "compiler" in why or "Python.h" in why or "CalledProcessError" in why:
        return "Install a C compiler and Python's headers (such as gcc and python3-dev), which Triton needs"
    return REPORT


def _check_convolutions(device: torch.device, found: Findings) -> None:
    found.lines.append(f"float32: {describe_float32(device)}")
    half, precision = choose_precision("auto", device)
    found.lines.append(f"--amp: {precision}")
    for dtype in dict.fromkeys((torch.float32, half or torch.float32)):
        error = _convolution_error(device, dtype)
        if not error <= CONVOLUTION_ERROR.get(dtype, CONVOLUTION_ERROR[torch.bfloat16]):
            found.problems.append(
                f"a 3-D convolution in {dtype} is wrong by {error:.2g} of its norm. Install another release of PyTorch"
            )


def _convolution_error(device: torch.device, dtype: torch.dtype) -> float:
    """The error of a convolution and its gradients against float64, relative to the norm; the largest of the three."""
    generator = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randn(shape, generator=generator).to(dtype).double().contiguous(memory_format=torch.channels_last_3d)
        for shape in ((1, 16, 10, 12, 14), (16, 16, 5, 5, 5), (1, 16, 10, 12, 14))
    )
    expected = _passes(x, weight, grad)
    results = _passes(*(tensor.to(device, dtype) for tensor in (x, weight, grad)))
    pairs = zip(results, expected, strict=True)
    return max(((found.to(HOST).double() - exact).norm() / exact.norm()).item() for found, exact in pairs)


def _passes(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.requires_grad_(), weight.requires_grad_()
    y = F.conv3d(x, weight, padding=2)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    return y.detach(), grad_x, grad_weight


def _check_step(device: torch.device, found: Findings) -> None:
    """Trains a network for a few iterations, on a GPU to the captured step."""
    autocast, precision = choose_precision(None, device)
    shape, channels = STEP[device.type]
    size = " x ".join(map(str, reversed(shape)))
    try:
        losses, refusal = _train(device, shape, channels, autocast)
    except RuntimeError as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "Free its memory" if is_out_of_memory(error) else REPORT
        found.problems.append(f"a training step of {size} voxels fails ({text}). {remedy}")
        return
    if not all(map(math.isfinite, losses)):
        found.problems.append(f"a training step of {size} voxels gives {losses}. {REPORT}")
    found.lines.append(f"training: {len(losses)} iterations of {size} voxels, {precision}; loss {losses[-1]:.3f}")
    if device == HOST:
        found.lines.append(f"filtered convolutions: {cpu_convolution_choice.summary()}")
        found.lines += [f"  {layer}: {name}" for layer, name in cpu_convolution_choice.chosen()]
    if device.type == "cuda":
        found.lines.append("the step is one CUDA graph" if refusal is None else f"no CUDA graph: {refusal}")
        found.lines.append(f"rewritten convolutions: {convolution_choice.summary(device)}")
        found.lines += [f"  {layer}: {name}" for layer, name in convolution_choice.chosen(device)]
        if refusal:
            found.problems.append(f"the training step can't be captured ({refusal}). Report it, or use --no-graph")


def _train(
    device: torch.device, shape: tuple[int, int, int], channels: int, autocast: torch.dtype | None
) -> tuple[list[float], str | None]:
    torch.manual_seed(0)
    model = VNet(base_channels=channels).to(device)
    step = Step(model, DiceLoss.paper(), make_optimizer(model, "sgd", 1e-4, 0.99, 5e-4), autocast, graph=True)
    step.set_learning_rate(1e-4)
    image = torch.randn(2, 1, *shape, device=device)
    target = (image > 0).to(torch.uint8)
    losses = [step(image, target) for _ in range(WARM_UP + 2)]
    values, refusal = [loss.item() for loss in losses], step.refusal
    step.release()
    return values, refusal


def _check_speed(device: torch.device, found: Findings) -> None:
    half, _ = choose_precision("auto", device)
    found.lines.append(f"copy: {speed.copy_rate(device) / 1e9:.1f} GB/s, read and written")
    for dtype in dict.fromkeys((torch.float32, half or torch.float32)):
        rate = speed.product_rate(device, dtype) / 1e12
        found.lines.append(f"product in {str(dtype).removeprefix('torch.')}: {rate:.3g} TFLOP/s")


def _check_store(device: torch.device, found: Findings) -> None:
    folder = Path(device_store.FOLDER).expanduser()
    device_store.save("doctor", device, {"examined": True})
    if device_store.load("doctor", device) != {"examined": True}:
        found.problems.append(f"{folder} can't be written, so every start tries the kernels again. Give permission")
    found.lines.append(f"results of trials are kept in {folder}")
