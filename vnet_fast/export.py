"""Writes a trained V-Net as a file that runs without this program: `torch.export`'s or ONNX.

The operators of `vnet_fast::` become their definitions in plain PyTorch, so that nothing of ours is needed
to load the file. The size of the volumes is fixed, as the network's is in prediction; their number is not.
"""

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from vnet_fast import __version__, command_line
from vnet_fast.command_line import option, path_text
from vnet_fast.data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE
from vnet_fast.devices import HOST, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, replacing
from vnet_fast.ops.add_prelu import add_prelu_definition
from vnet_fast.run import checkpoint
from vnet_fast.run.checkpoint import grid_of

INPUT, OUTPUT = "image", "logits"
# the file within a .pt2 that says what ONNX keeps as properties
ABOUT_FILE = "vnet_fast.json"
INSTALL = "pip install 'vnet_fast[onnx]'"
# of a protocol buffer, which an ONNX file is
MAX_ONNX_BYTES = (1 << 31) - 1
# of the largest logit: what other orders of summation leave in float32, and far less than a wrong graph
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Config:
    """Writes a trained network as a file that runs without vnet_fast: .pt2 (torch.export.load) or .onnx.

    From float32 volumes (N, 1, z, y, x) to logits (N, classes, z, y, x): N is any number, z, y and x are
    those that the network was trained on. The file says its spacing, size and normalisation.
    """

    checkpoint: str = option(None, "best.pt or last.pt of a run", type=path_text, metavar="FILE", required=True)
    output: str = option(None, "the file: .pt2 or .onnx", type=path_text, metavar="FILE", required=True)


def _add_prelu(x, slope, bias, residual):
    return add_prelu_definition(x, slope, bias, residual), x.new_empty(0, dtype=torch.uint8)


def _add_prelu_join(x, slope, bias, skip):
    y, negative = _add_prelu(x, slope, bias, None)
    return torch.cat([y, skip], 1), negative


def _definitions():
    """What the network's operators are in plain PyTorch."""
    return {
        torch.ops.vnet_fast.add_prelu.default: _add_prelu,
        torch.ops.vnet_fast.add_prelu_join.default: _add_prelu_join,
    }


def plain_program(model, size):
    """The network as a graph of PyTorch's own operators.

    Args:
        model: a VNet on the CPU, whose weights need no gradient.
        size: voxels, x y z.

    Returns:
        an ExportedProgram from (N, in_channels, z, y, x) float32 to logits, N free.
    """
    # two volumes: one would fix their number
    example = torch.zeros(2, model.in_channels, *size[::-1])
    shapes = {"x": {0: torch.export.Dim("batch")}}
    with torch.no_grad(), _quiet():
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
        program = program.run_decompositions(_definitions())
    for node in program.graph.nodes:
        # the paths of this machine, which would go into the file
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def _quiet():
    """Without what PyTorch 2.13 says of its own parts: a class that it calls deprecated and uses, and
    torchvision's operators, which it does without.
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


def about(model, spacing, size):
    """What someone who runs the file must know: dict from name to text."""
    z, y, x = size[::-1]
    return {
        "producer": f"vnet_fast {__version__}",
        "topology": model.topology,
        "spacing": " ".join(f"{s:g}" for s in spacing),
        "volume": " ".join(map(str, size)),
        "classes": str(model.num_classes),
        "input": f"(N, {model.in_channels}, {z}, {y}, {x}) float32, resampled to spacing (mm, x y z), "
        "x to the left, y to the back, z to the head",
        "normalisation": f"intensities clipped at percentiles {LOW_PERCENTILE} and {HIGH_PERCENTILE} of the voxels "
        "brighter than the darkest, then zero mean and unit variance over those; outside of the image the darkest",
        "output": f"(N, {model.num_classes}, {z}, {y}, {x}) logits; a softmax over axis 1 makes probabilities, "
        "class 0 is background",
    }


def pt2_bytes(program, facts):
    """A `torch.export` file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file, extra_files={ABOUT_FILE: json.dumps(facts, indent=2)})
    return file.getvalue()


def onnx_bytes(program, facts):
    """An ONNX file."""
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"x": {0: "batch"}},
        )
    exported.model.metadata_props.update(facts)
    return exported.model_proto.SerializeToString()


def run_pt2(content, x):
    """The logits of a `torch.export` file's content."""
    with _quiet():
        return torch.export.load(io.BytesIO(content)).module()(x)


def run_onnx(content, x):
    """The logits of an ONNX file's content."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def check_output(config):
    """The output's path, after what can be known before anything is read; an `InputError`."""
    path = Path(config.output)
    suffix = path.suffix.lower()
    if suffix not in (".pt2", ".onnx"):
        raise InputError(path, "neither .pt2 nor .onnx", "Choose one of them by the name's end")
    if path.is_dir():
        raise InputError(path, "is a folder", "Name a file")
    if os.path.realpath(path) == os.path.realpath(config.checkpoint):
        raise InputError(path, "would replace the checkpoint itself", "Choose another --output")
    missing = [name for name in ("onnx", "onnxscript") if not _is_installed(name)]
    if suffix == ".onnx" and missing:
        raise InputError(path, f"{missing[0]} is not installed", INSTALL)
    return path


def _is_installed(name):
    return importlib.util.find_spec(name) is not None


def check_size(model, path):
    """An `InputError` if the weights do not fit into one ONNX file."""
    taken = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    if taken > MAX_ONNX_BYTES:
        raise InputError(path, f"the weights take {taken / 1e9:.1f} GB, an ONNX file 2.1 GB", "Write a .pt2 instead")


def largest_difference(run, content, model, size, path):
    """Between the file's logits and the network's, of one volume of noise.

    Raises:
        InputError: if it is more than rounding.
    """
    x = torch.randn(1, model.in_channels, *size[::-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        difference = float((run(content, x) - expected).abs().max())
    # not >: NaN is no agreement
    if not difference <= TOLERANCE * float(expected.abs().max()):
        cause = f"not written, its logits would be {difference:.1g} from the network's"
        raise InputError(path, cause, "Try the other format, or another version of PyTorch")
    return difference


def write(path, content):
    """Writes the file, whole or not at all; an `InputError` if it can't be."""
    make_folder(path.parent, "Choose another --output")
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", "Choose another --output") from None


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    path = check_output(config)
    is_onnx = path.suffix.lower() == ".onnx"
    use_all_cores()
    stored = checkpoint.load(config.checkpoint)
    spacing, size = grid_of(stored, config.checkpoint)
    model = checkpoint.build_model(stored, config.checkpoint, HOST).eval().requires_grad_(False)
    # torch.export.save wants the weights in PyTorch's usual layout
    model.to(memory_format=torch.contiguous_format)
    if is_onnx:
        check_size(model, path)
    facts = about(model, spacing, size)
    content = (onnx_bytes if is_onnx else pt2_bytes)(plain_program(model, size), facts)
    words = f"not checked: onnxruntime is not installed ({INSTALL})"
    if not is_onnx or _is_installed("onnxruntime"):
        difference = largest_difference(run_onnx if is_onnx else run_pt2, content, model, size, path)
        words = f"logits to {difference:.1g} of the network's" if difference else "logits equal to the network's"
    write(path, content)
    print(f"{path}: input (N, {model.in_channels}, {', '.join(map(str, size[::-1]))}) float32, {words}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.export"))
