"""Writes a network as one file of another program: a `torch.export` program, ONNX or OpenVINO's IR.

Its logits are compared with the network's before it gets its name.
"""

import importlib.util
import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet_fast.deployment.facts import about
from vnet_fast.deployment.program import plain_program, quiet
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.task import Task

INPUT, OUTPUT = "image", "logits"
PT2, ONNX, OPENVINO = ".pt2", ".onnx", ".xml"
# the second file of OpenVINO's IR, with the weights
WEIGHTS = ".bin"
# the packages that write a format, and how to install them
NEEDED = {
    PT2: ((), ""),
    ONNX: (("onnx", "onnxscript"), "pip install 'vnet_fast[onnx]'"),
    OPENVINO: (("openvino",), "pip install 'vnet_fast[openvino]'"),
}
# the file inside a .pt2 that holds what ONNX keeps as properties, and the section of it in OpenVINO's IR
ABOUT_FILE, ABOUT_SECTION = "vnet_fast.json", "vnet_fast"
# the limit of a protocol buffer, which an ONNX file is
MAX_ONNX_BYTES = (1 << 31) - 1
# relative to the largest logit: float32's differences between orders of summation, far less than a wrong graph's
TOLERANCE = 1e-4
ANOTHER_OUTPUT = "Choose another --output"
# the content of the files of a network, by suffix
Content = dict[str, bytes]


def check_output(output: str, checkpoints: Sequence[str]) -> Path:
    """The path of the file to write, after all checks that are possible before anything is read.

    Raises:
        InputError: if nothing can be exported there.
    """
    path = Path(output)
    suffix = path.suffix.lower()
    if suffix not in NEEDED:
        remedy = "Choose one of them as the end of the name, or a folder's --format"
        raise InputError(path, "does not end in .pt2, .onnx or .xml (OpenVINO)", remedy)
    if path.is_dir():
        raise InputError(path, "is a folder", "Name a file")
    weights = path.with_suffix(WEIGHTS)
    for written in (path, weights) if suffix == OPENVINO else (path,):
        if os.path.realpath(written) in map(os.path.realpath, checkpoints):
            raise InputError(written, "would replace the checkpoint itself", ANOTHER_OUTPUT)
    if suffix == OPENVINO and os.path.lexists(weights) and not path.exists():
        raise InputError(weights, f"would be replaced, and is of no {path.name}", ANOTHER_OUTPUT)
    check_packages(suffix, path)
    return path


def check_packages(suffix: str, path: Path) -> None:
    """Raises an InputError if a package is missing that writes a format."""
    packages, install = NEEDED[suffix]
    missing = [name for name in packages if not is_installed(name)]
    if missing:
        raise InputError(path, f"{missing[0]} is not installed", install)


def export(model: VNet, task: Task, path: Path) -> str:
    """Writes a network as a file, in the format of its suffix, once its logits are compared with the network's.

    Args:
        model: on the CPU, in evaluation mode; its weights need no gradient.
        task: of the network.
        path: what `check_output` returned.

    Returns:
        what was written, and the result of the comparison.

    Raises:
        InputError: if the logits differ, or the file can't be written.
    """
    content, result = checked_content(model, task, path)
    make_folder(path.parent, ANOTHER_OUTPUT)
    # the file that is named comes last, so that it never lacks its weights
    for suffix in reversed(content):
        write(path if suffix == path.suffix.lower() else path.with_suffix(suffix), content[suffix])
    shape = ", ".join(map(str, reversed(task.size)))
    return f"input (N, {model.in_channels}, {shape}) float32, {result}"


def checked_content(model: VNet, task: Task, path: Path) -> tuple[Content, str]:
    """The files of a network in the format of a path's suffix, and how their logits differ from the network's.

    Args:
        model, task: as for `export`.
        path: of the file, for messages too.

    Raises:
        InputError: if the logits differ by more than rounding, or the weights are too large for the format.
    """
    suffix = path.suffix.lower()
    if suffix == ONNX:
        check_size(model, path)
    x, y, z = task.size
    example = torch.zeros(2, model.in_channels, z, y, x, dtype=torch.float32)
    # torch.export.save needs the weights in PyTorch's default layout
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's types
    program, facts = plain_program(model, example), about(model, task)
    if suffix == PT2:
        content, run = {PT2: pt2_bytes(program, facts)}, run_pt2
    elif suffix == ONNX:
        content, run = {ONNX: onnx_bytes(program, facts)}, run_onnx
    else:
        content, run = openvino_bytes(program, facts, example), run_openvino
    if suffix == ONNX and not is_installed("onnxruntime"):
        return content, f"not checked: onnxruntime is not installed ({NEEDED[ONNX][1]})"
    return content, compared(lambda x: run(content, x), model, example, path)


def pt2_bytes(program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    """The content of a `torch.export` file."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(program, file, extra_files={ABOUT_FILE: json.dumps(facts, indent=2)})
    return file.getvalue()


def onnx_bytes(program: torch.export.ExportedProgram, facts: dict[str, str]) -> bytes:
    """The content of an ONNX file."""
    with quiet():
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


def openvino_bytes(program: torch.export.ExportedProgram, facts: dict[str, str], example: Tensor) -> Content:
    """The contents of the two files of OpenVINO's IR."""
    import openvino

    with quiet():
        model = openvino.convert_model(program)
    model.reshape([-1, *example.shape[1:]])
    model.input(0).get_tensor().set_names({INPUT})
    model.output(0).get_tensor().set_names({OUTPUT})
    for name, fact in facts.items():
        model.set_rt_info(fact, [ABOUT_SECTION, name])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{OPENVINO}")
        openvino.save_model(model, path, compress_to_fp16=False)
        return {OPENVINO: path.read_bytes(), WEIGHTS: path.with_suffix(WEIGHTS).read_bytes()}


def run_pt2(content: Content, x: Tensor) -> Tensor:
    """The logits of a `torch.export` file's content."""
    with quiet():
        logits: Tensor = torch.export.load(io.BytesIO(content[PT2])).module()(x)
        return logits


def run_onnx(content: Content, x: Tensor) -> Tensor:
    """The logits of an ONNX file's content."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content[ONNX], providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def run_openvino(content: Content, x: Tensor) -> Tensor:
    """The logits of the contents of OpenVINO's files."""
    import openvino

    core = openvino.Core()
    model = core.read_model(content[OPENVINO], content[WEIGHTS])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled({INPUT: x.numpy()})[OUTPUT].copy())


def is_installed(name: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(name) is not None


def check_size(model: VNet, path: Path) -> None:
    """Raises an InputError if the weights do not fit into one ONNX file."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if size > MAX_ONNX_BYTES:
        raise InputError(path, f"the weights take {size / 1e9:.1f} GB, an ONNX file 2.1 GB", "Write a .pt2 instead")


def compared(run: Callable[[Tensor], Tensor], model: VNet, example: Tensor, path: Path) -> str:
    """How other logits differ from the network's, for one volume of noise, as a text.

    Args:
        run: computes the other logits.
        model: the network.
        example: of the shape of its input.
        path: for messages.

    Raises:
        InputError: if they differ by more than rounding.
    """
    x = torch.randn(1, *example.shape[1:], dtype=example.dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        difference = float((run(x) - expected).abs().max())
    # not >, because NaN is a difference too
    if not difference <= TOLERANCE * float(expected.abs().max()):
        cause = f"not written, its logits would be {difference:.1g} from the network's"
        raise InputError(path, cause, "Try another format, or another version of PyTorch")
    return f"logits to {difference:.1g} of the network's" if difference else "logits equal to the network's"


def write(path: Path, content: bytes) -> None:
    """Writes a file, whole or not at all; an InputError if that fails."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", ANOTHER_OUTPUT) from None
