"""Writes a trained V-Net for use without this program: as a file, a pipeline folder or a MONAI bundle."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text
from vnet_fast.deployment import bundle, network_file, pipeline
from vnet_fast.devices import HOST, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.prediction.networks import checkpoint_files, load_networks
from vnet_fast.progress import working

PIPELINE = "pipeline"
# each has a `check_output` and an `export`
FORMATS = {"file": network_file, PIPELINE: pipeline, "monai": bundle}


@dataclass(frozen=True)
class Config:
    """Write a trained network for use without vnet_fast.

    A file is the network alone, by the end of its name .pt2 (torch.export.load), .onnx or .xml (OpenVINO). It maps
    float32 volumes (N, channels, z, y, x) to logits (N, classes, z, y, x). N is any number; z, y and x are those that
    the network was trained on. The file states its spacing, size and normalisation.

    A pipeline is a folder that segments volumes with numpy, SimpleITK and onnxruntime. MONAI runs a bundle.
    """

    checkpoint: tuple[str, ...] = option(
        None, "best.pt or last.pt of a run, or its folder; a pipeline averages the probabilities of several",
        type=path_text, metavar="FILE", nargs="+", required=True,
    )  # fmt: skip
    output: str = option(
        None, "the file: .pt2, .onnx or .xml; or a new folder", type=path_text, metavar="PATH", required=True
    )
    format: str = option("file", "file: the network alone; pipeline: a folder with predict.py; monai: a MONAI bundle",
                         choices=tuple(FORMATS))  # fmt: skip
    tta: bool = option(
        False, "a pipeline averages with the prediction of the volume mirrored left to right; takes twice the time",
        action="store_true",
    )  # fmt: skip

    def check(self, checkpoints: Sequence[str]) -> None:
        """Raises an InputError if only a pipeline does what is asked for."""
        if self.format == PIPELINE:
            return
        if len(checkpoints) > 1:
            cause = f"names {len(checkpoints)} networks, and this --format has one"
            raise InputError("--checkpoint", cause, f"Name one, or give --format {PIPELINE}")
        if self.tta:
            raise InputError("--tta", f"given without --format {PIPELINE}", "Leave it out")


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    # in Python, one may be given as it is, and as a Path
    given_paths = [config.checkpoint] if isinstance(config.checkpoint, str | os.PathLike) else config.checkpoint
    checkpoints = checkpoint_files(list(map(os.fspath, given_paths)))
    config.check(checkpoints)
    path = FORMATS[config.format].check_output(config.output, checkpoints)
    threads = torch.get_num_threads()
    use_all_cores()
    try:
        networks = load_networks(checkpoints, HOST)
        model = networks.model.eval().requires_grad_(False)
        models: list[Any] = list(model) if isinstance(model, nn.ModuleList) else [model]
        with working("exporting"):
            if config.format == PIPELINE:
                result = pipeline.export(models, networks.task, path, config.tta)
            else:
                result = FORMATS[config.format].export(models[0], networks.task, path)
    finally:
        # a program may call this too
        torch.set_num_threads(threads)
    print(f"{path}: {result}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.export"))
