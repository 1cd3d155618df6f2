"""Writes a trained V-Net for use without this program: as a file, a pipeline folder or a MONAI bundle."""

from dataclasses import dataclass
from typing import Any

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text
from vnet_fast.deployment import bundle, network_file, pipeline
from vnet_fast.devices import HOST, use_all_cores
from vnet_fast.nn.folding import folded
from vnet_fast.prediction.task import Task
from vnet_fast.progress import working
from vnet_fast.run import checkpoint

# each has a `check_output` and an `export`
FORMATS = {"file": network_file, "pipeline": pipeline, "monai": bundle}


@dataclass(frozen=True)
class Config:
    """Write a trained network for use without vnet_fast.

    A file is the network alone, by the end of its name .pt2 (torch.export.load), .onnx or .xml (OpenVINO). It maps
    float32 volumes (N, channels, z, y, x) to logits (N, classes, z, y, x). N is any number; z, y and x are those that
    the network was trained on. The file states its spacing, size and normalisation.

    A pipeline is a folder that segments volumes with numpy, SimpleITK and onnxruntime. MONAI runs a bundle.
    """

    checkpoint: str = option(None, "best.pt or last.pt of a run", type=path_text, metavar="FILE", required=True)
    output: str = option(
        None, "the file: .pt2, .onnx or .xml; or a new folder", type=path_text, metavar="PATH", required=True
    )
    format: str = option("file", "file: the network alone; pipeline: a folder with predict.py; monai: a MONAI bundle",
                         choices=tuple(FORMATS))  # fmt: skip


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    chosen = FORMATS[config.format]
    path = chosen.check_output(config.output, config.checkpoint)
    use_all_cores()
    stored = checkpoint.load(config.checkpoint)
    task = Task.of(stored, config.checkpoint)
    model = folded(checkpoint.build_model(stored, config.checkpoint, HOST)).eval().requires_grad_(False)
    with working("exporting"):
        result = chosen.export(model, task, path)
    print(f"{path}: {result}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.export"))
