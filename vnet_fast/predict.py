"""Segments volumes with a trained V-Net, in their own geometry."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text, share
from vnet_fast.data.channels import check_order
from vnet_fast.devices import DEVICES, device_name, find_device, use_all_cores
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import make_folder
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.interface.segmenter import Segmenter
from vnet_fast.io.probabilities import ENTROPY, probability_endings
from vnet_fast.io.writing import sweep_unfinished
from vnet_fast.ops.cpu_convolution_choice import description
from vnet_fast.prediction.dicom_output import segment_series, segment_titles, wants_dicom
from vnet_fast.prediction.label_descriptions import write_descriptions
from vnet_fast.prediction.networks import load_networks
from vnet_fast.prediction.plan import plan
from vnet_fast.prediction.segmentation import Segmentation, segment_all
from vnet_fast.prediction.segments import read_segments
from vnet_fast.progress import track


@dataclass(frozen=True)
class Config:
    """Segment volumes with a trained V-Net. Each mask has the grid of its volume."""

    checkpoint: tuple[str, ...] = option(
        None,
        "best.pt or last.pt of a run, or its folder; the probabilities of several checkpoints are averaged",
        type=path_text,
        metavar="FILE",
        nargs="+",
        required=True,
    )
    input: str = option(
        None, "a volume, a folder of DICOM slices, or a folder of volumes", type=path_text, required=True
    )
    output: str = option(None, "file of the mask, or a folder", type=path_text, required=True)
    validation_only: bool = option(False, "predict only the cases that every run held out", action="store_true")
    probabilities: bool = option(False, "also write NAME_probability files, float32", action="store_true")
    entropy: bool = option(
        False, "also write NAME_entropy files, float32: how uncertain each voxel is, in nats", action="store_true"
    )
    dicom_seg: bool = option(
        False, "write the masks of DICOM series as DICOM Segmentations, as an output NAME.dcm does", action="store_true"
    )
    segments: str | None = option(
        None, "TOML file with codes, colours and more of the classes for DICOM Segmentations", type=path_text,
        metavar="FILE",
    )  # fmt: skip
    all_components: bool = option(
        False, "keep all connected components, not only the largest one of each class", action="store_true"
    )
    overlap: float | None = option(
        None,
        "cover larger volumes by windows that overlap by this share, such as 0.5; without it only the centre is "
        "predicted, unless the network was trained on patches",
        type=share,
        metavar="SHARE",
    )
    tta: bool = option(
        False, "average with the prediction of the volume mirrored left to right; takes twice the time",
        action="store_true",
    )  # fmt: skip
    amp: str | None = option(
        None, "mixed precision; --amp alone means auto (default: auto on a GPU, off on a CPU)", nargs="?", const="auto",
        choices=("auto", "bf16", "fp16", "off"),
    )  # fmt: skip
    no_graph: bool = option(
        False, "launch the kernels of the network one by one, not as a CUDA graph", action="store_true"
    )
    device: str = option("auto", "device to predict on", choices=DEVICES)


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    as_dicom = wants_dicom(config.output, config.dicom_seg, config.segments)
    networks = load_networks(config.checkpoint, find_device(config.device))
    if config.validation_only and networks.count > 1 and not networks.held_out:
        cause = "no case was held out by every run"
        raise InputError("--validation-only", cause, "Give one checkpoint, or train with --fold all")
    task, only = networks.task, networks.held_out if config.validation_only else None
    check_order(config.input, task.channels)
    endings = [] if as_dicom or not config.probabilities else probability_endings(len(networks.titles))
    endings += [ENTROPY] if config.entropy else []
    titles = segment_titles(networks.titles, task.regions)
    segments = read_segments(config.segments, titles) if as_dicom else ()
    several = len(task.channels) > 1
    pairs = plan(config.input, config.output, only, several, endings, as_dicom)
    folder = make_folder(pairs[0][1].parent, "Choose another --output")
    sweep_unfinished(folder)
    if os.path.isdir(config.output) and not as_dicom:
        write_descriptions(folder, task.label_names)
    how = config.amp, config.overlap, config.tta, config.all_components, not config.no_graph
    segmenter = Segmenter(networks, *how)
    together = f", {networks.count} networks averaged" if networks.count > 1 else ""
    print(f"device: {device_name(networks.device)}, {segmenter.precision}{description(networks.device)}{together}")
    segment_one: Callable[[Sequence[Path]], Segmentation] = segmenter.segmentation_of
    if as_dicom:
        segment_one = partial(segment_series, segment_one=segment_one, segments=segments)
    volumes = track(pairs, "predicting", "volumes")
    errors, larger = segment_all(volumes, segment_one, config.probabilities, config.all_components, config.entropy)
    if larger:
        print(f"{larger} of {len(pairs)} volumes are {segmenter.larger}")
    print(f"{len(pairs) - len(errors)} of {len(pairs)} volumes segmented, masks in {folder}")
    if errors:
        raise InputErrors(errors)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.predict"))
