"""A network as a graph of PyTorch's own operators, which runs without this package.

The operators of `vnet_fast::` become their definitions in plain PyTorch. The size of the volumes is fixed, as it is in
prediction; their number is not.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.add_prelu import add_prelu_definition
from vnet_fast.ops.norm_prelu_definition import Sets, norm_prelu_definition


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
    with torch.no_grad(), quiet():
        program: torch.export.ExportedProgram = torch.export.export(model, (example,), dynamic_shapes=shapes)
        program = program.run_decompositions(definitions)
    for node in program.graph.nodes:
        # it names paths of this machine, which must not get into the file
        node.meta.pop("stack_trace", None)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
