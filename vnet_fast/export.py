"""Writes a trained V-Net as a file that runs without this program."""

from dataclasses import dataclass
from typing import Any

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text
from vnet_fast.devices import HOST, use_all_cores
from vnet_fast.nn.folding import folded
from vnet_fast.prediction.export import check_output, export
from vnet_fast.prediction.task import Task
from vnet_fast.progress import working
from vnet_fast.run import checkpoint


@dataclass(frozen=True)
class Config:
    """Write a trained network as a file that runs without vnet_fast: .pt2 (torch.export.load) or .onnx.

    It maps float32 volumes (N, channels, z, y, x) to logits (N, classes, z, y, x). N is any number; z, y and x are
    those that the network was trained on. The file states its spacing, size and normalisation.
    """

    checkpoint: str = option(None, "best.pt or last.pt of a run", type=path_text, metavar="FILE", required=True)
    output: str = option(None, "the file: .pt2 or .onnx", type=path_text, metavar="FILE", required=True)


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    path = check_output(config.output, config.checkpoint)
    use_all_cores()
    stored = checkpoint.load(config.checkpoint)
    task = Task.of(stored, config.checkpoint)
    model = folded(checkpoint.build_model(stored, config.checkpoint, HOST)).eval().requires_grad_(False)
    with working("exporting"):
        result = export(model, task, path)
    shape = ", ".join(map(str, reversed(task.size)))
    print(f"{path}: input (N, {model.in_channels}, {shape}) float32, {result}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.export"))
