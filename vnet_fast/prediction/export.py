"""Exports a network as a file that runs without this program: a `torch.export` program or ONNX.

The operators of `vnet_fast::` become their definitions in plain PyTorch, so that the file needs nothing of this
package. The size of the volumes is fixed, as it is in prediction; their number is not.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet_fast import __version__
from vnet_fast.data.channels import Channel
from vnet_fast.data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.add_prelu import add_prelu_definition
from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition
from vnet_fast.prediction.task import Task

SOFTMAX = "a softmax over axis 1 gives probabilities, class 0 is background"
INPUT, OUTPUT = "image", "logits"
# the file inside a .pt2 that holds what ONNX keeps as properties
ABOUT_FILE = "vnet_fast.json"
INSTALL = "pip install 'vnet_fast[onnx]'"
# the limit of a protocol buffer, which an ONNX file is
MAX_ONNX_BYTES = (1 << 31) - 1
# relative to the largest logit: float32's differences between orders of summation, far less than a wrong graph's
TOLERANCE = 1e-4
ANOTHER_OUTPUT = "Choose another --output"


def check_output(output: str, checkpoint: str) -> Path:
    """The path of the file to write, after all checks that are possible before anything is read.

    Raises:
        InputError: if nothing can be exported there.
    """
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise InputError(path, "neither .pt2 nor .onnx", "Choose one of them as the end of the name")
    if path.is_dir():
        raise InputError(path, "is a folder", "Name a file")
    if os.path.realpath(path) == os.path.realpath(checkpoint):
        raise InputError(path, "would replace the checkpoint itself", ANOTHER_OUTPUT)
    missing = [name for name in ("onnx", "onnxscript") if not is_installed(name)]
    if suffix == ".onnx" and missing:
        raise InputError(path, f"{missing[0]} is not installed", INSTALL)
    return path


def export(
    model: VNet,
    task: Task,
    path: Path,
) -> str:
    """Writes a network as a file, in the format of its suffix, once its logits are compared with the network's.

    Args:
        model: on the CPU, in evaluation mode; its weights need no gradient.
        task: of the network.
        path: what `check_output` returned.

    Returns:
        the result of the comparison, for the log.

    Raises:
        InputError: if the logits differ, or the file can't be written.
    """
    is_onnx = path.suffix.lower() == ".onnx"
    if is_onnx:
        check_size(model, path)
    x, y, z = task.size
    example = torch.zeros(2, model.in_channels, z, y, x)
    # torch.export.save needs the weights in PyTorch's default layout
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's types
    facts = about(model, task)
    content = (onnx_bytes if is_onnx else pt2_bytes)(plain_program(model, example), facts)
    result = f"not checked: onnxruntime is not installed ({INSTALL})"
    if not is_onnx or is_installed("onnxruntime"):
        difference = largest_difference(run_onnx if is_onnx else run_pt2, content, model, example, path)
        result = f"logits to {difference:.1g} of the network's" if difference else "logits equal to the network's"
    write(path, content)
    return result


def _plain_add_prelu(x: Tensor, slope: Tensor, bias: Tensor | None, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    return add_prelu_definition(x, slope, bias, residual), x.new_empty(0, dtype=torch.uint8)


def _plain_add_prelu_join(x: Tensor, slope: Tensor, bias: Tensor | None, skip: Tensor) -> tuple[Tensor, Tensor]:
    y, negative = _plain_add_prelu(x, slope, bias, None)
    return torch.cat([y, skip], 1), negative


def _plain_norm_prelu(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, residual: Tensor | None, *sets: Any
) -> tuple[Tensor, Tensor, Tensor]:
    # the statistics are not used after it
    unused = x.new_empty(Sets(*sets).shape(x)), x.new_empty(Sets(*sets).shape(x))
    return norm_prelu_definition(x, weight, bias, slope, residual, Sets(*sets)), *unused


def _plain_norm_prelu_join(
    x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, skip: Tensor, *sets: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, *unused = _plain_norm_prelu(x, weight, bias, slope, None, *sets)
    return torch.cat([y, skip], 1), unused[0], unused[1]


def plain_program(model: VNet, example: Tensor) -> torch.export.ExportedProgram:
    """The network as a graph of PyTorch's own operators.

    Args:
        model: on the CPU; its weights need no gradient.
        example: (2, in_channels, z, y, x) float32. With one volume their number would be fixed.

    Returns:
        a program from (N, in_channels, z, y, x) float32 to logits, for any N.
    """
    definitions: dict[Any, Callable[..., Any]] = {
        torch.ops.vnet_fast.add_prelu.default: _plain_add_prelu,
        torch.ops.vnet_fast.add_prelu_join.default: _plain_add_prelu_join,
        torch.ops.vnet_fast.norm_prelu.default: _plain_norm_prelu,
        torch.ops.vnet_fast.norm_prelu_join.default: _plain_norm_prelu_join,
    }
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), _quiet():
        program: torch.export.ExportedProgram = torch.export.export(model, (example,), dynamic_shapes=shapes)
        program = program.run_decompositions(definitions)
    for node in program.graph.nodes:
        # it names paths of this machine, which must not get into the file
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides messages of PyTorch 2.13 about its own parts: a deprecated class that it uses itself, and operators of
    torchvision, which are not needed.
    """
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def about(model: VNet, task: Task) -> dict[str, str]:
    """What a user of the file has to know, as texts by name."""
    x, y, z = task.size
    channels, regions = task.channels, task.regions
    return {
        "producer": f"vnet_fast {__version__}",
        "topology": model.topology,
        "levels": str(model.levels),
        "kernel_size": str(model.kernel_size),
        "spacing": " ".join(f"{s:g}" for s in task.spacing),
        "volume": " ".join(map(str, task.size)),
        "classes": str(model.num_classes),
        "regions": "; ".join(f"{region.name}: {' '.join(map(str, region.labels))}" for region in regions),
        "input": f"(N, {model.in_channels}, {z}, {y}, {x}) float32, resampled to spacing (mm, x y z), "
        "x to the left, y to the back, z to the head",
        "channels": ", ".join(channel.name or str(number) for number, channel in enumerate(channels)),
        "normalisation": "; ".join(dict.fromkeys(map(_normalisation, channels)))
        if len({channel.scaling for channel in channels}) == 1
        else "; ".join(f"channel {number}: {_normalisation(channel)}" for number, channel in enumerate(channels)),
        "output": f"(N, {model.num_classes}, {z}, {y}, {x}) logits; "
        + ("a sigmoid gives the probability of each region" if regions else SOFTMAX),
    }


def _normalisation(channel: Channel) -> str:
    if channel.scaling is None:
        return (
            f"intensities clipped at percentiles {LOW_PERCENTILE} and {HIGH_PERCENTILE} of the voxels brighter than "
            "the darkest, then zero mean and unit variance over those; outside of the image the darkest"
        )
    low, high, mean, deviation = channel.scaling
    return (
        f"outside of the image the darkest intensity; intensities clipped at {low:g} and {high:g}, less {mean:g}, "
        f"divided by {deviation:g}"
    )


def pt2_bytes(program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    """The content of a `torch.export` file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={ABOUT_FILE: json.dumps(facts, indent=2)})
    return file.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    """The content of an ONNX file."""
    with _quiet():
        exported: Any = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: "batch"}},
        )
    exported.model.metadata_props.update(facts)
    return bytes(exported.model_proto.SerializeToString())


def run_pt2(content: bytes, x: Tensor) -> Tensor:
    """The logits of a `torch.export` file's content."""
    with _quiet():
        logits: Tensor = torch.export.load(io.BytesIO(content)).module()(x)
        return logits


def run_onnx(content: bytes, x: Tensor) -> Tensor:
    """The logits of an ONNX file's content."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def is_installed(name: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def check_size(model: VNet, path: Path) -> None:
    """Raises an InputError if the weights do not fit into one ONNX file."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > MAX_ONNX_BYTES:
        raise InputError(path, f"the weights take {size / 1e9:.1f} GB, an ONNX file 2.1 GB", "Write a .pt2 instead")


def largest_difference(
    run: Callable[[bytes, Tensor], Tensor], content: bytes, model: VNet, example: Tensor, path: Path
) -> float:
    """The largest difference between the file's logits and the network's, for one volume of noise.

    Raises:
        InputError: if it is more than rounding.
    """
    x = torch.randn(1, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        difference = float((run(content, x) - expected).abs().max())
    # not >, because NaN is a difference too
    if not difference <= TOLERANCE * float(expected.abs().max()):
        cause = f"not written, its logits would be {difference:.1g} from the network's"
        raise InputError(path, cause, "Try the other format, or another version of PyTorch")
    return difference


def write(path: Path, content: bytes) -> None:
    """Writes the file, whole or not at all; an InputError if that fails."""
    make_folder(path.parent, ANOTHER_OUTPUT)
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", ANOTHER_OUTPUT) from None
