"""Segments volumes with the network beside this file: `python predict.py --input IMAGES --output MASKS`.

It needs numpy, SimpleITK, and onnxruntime or OpenVINO.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from vnet_fast.deployment.standalone.network import (
    RUNTIMES,
    Network,
    Settings,
    labels_of,
    load_network,
    load_settings,
    normalised,
    probabilities,
)
from vnet_fast.deployment.standalone.volumes import Grid, InputError, network_grid, plan, read, write

HERE = Path(__file__).resolve().parent
MAX_VOXELS = 1 << 30
BAD_INPUT, INTERRUPTED = 2, 130


def share(text: str) -> float:
    """A number from 0 to below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError
    return value


class Parser(argparse.ArgumentParser):
    """Reports a wrong option in one line."""

    def error(self, message: str) -> None:  # type: ignore[override]  # it does not return
        """Exits with the code of bad input."""
        self.exit(BAD_INPUT, f"error: {message}. See {self.prog} --help\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(description="Segment volumes. Each mask has the grid of its volume.", allow_abbrev=False)
    parser.add_argument(
        "--input", type=Path, required=True, metavar="PATH", help="a volume, a folder of volumes, or of DICOM slices"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PATH", help="file of the mask, or a folder")
    parser.add_argument(
        "--runtime", choices=RUNTIMES, default=RUNTIMES[0], help="what runs the network (default: %(default)s)"
    )
    parser.add_argument("--all-components", action="store_true", help="keep all connected components of each class")
    parser.add_argument(
        "--overlap", type=share, metavar="SHARE",
        help="cover larger volumes by windows that overlap by this share, such as 0.5",
    )  # fmt: skip
    parser.add_argument(
        "--tta", action=argparse.BooleanOptionalAction,
        help="average with the prediction of the volume mirrored left to right; takes twice the time "
        "(default: as the folder was exported)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def segment(
    networks: Sequence[Network], files: Sequence[Path], settings: Settings, options: argparse.Namespace
) -> sitk.Image:
    """The mask of a volume, on the volume's own grid.

    Args:
        networks: from intensities to logits; their probabilities are averaged.
        files: of the volume, one or one for each channel.
        settings: of `pipeline.json`.
        options: of the command line.
    """
    channels, windows = settings["channels"], settings["windows"]
    images = read(files, len(channels))
    covers = windows["always"] or options.overlap is not None
    centre, grid = (network_grid(images[0], settings["spacing"], settings["size"], each) for each in (False, covers))
    if math.prod(grid.size) > MAX_VOXELS:
        size = " x ".join(map(str, grid.size))
        raise InputError(f"{files[0]}: takes {size} voxels on the network's grid. Check its spacing")
    own, values = Grid.of(images[0]), []
    try:
        for image, channel in zip(images, channels, strict=True):
            found = grid.sample(image, math.nan)
            # the network has learned from volumes that were normalised as a whole, or by their centre
            values.append(normalised(found, found if windows["always"] else centre.sample(image, math.nan), channel))
        overlap = windows["overlap"] if options.overlap is None else options.overlap
        mirrored = settings["tta"] if options.tta is None else options.tta
        found = probabilities(networks, np.stack(values), settings, overlap, mirrored)
    except ValueError as error:
        raise InputError(f"{files[0]}: {error}") from None
    return own.image(labels_of(found, grid, own, settings, options.all_components))


def describe(mask: sitk.Image, settings: Settings) -> str:
    """The volume of each label of a mask, or of each region, which may have several labels."""
    counts = np.bincount(sitk.GetArrayViewFromImage(mask).ravel(), minlength=256)
    millilitres = counts * (math.prod(mask.GetSpacing()) / 1000)
    structures = [(region["name"], region["labels"]) for region in settings["regions"]]
    structures = structures or [(name, [int(label)]) for label, name in settings["labels"].items()]
    volumes = [(name, float(millilitres[labels].sum())) for name, labels in structures]
    return ", ".join(f"{name} {f'{volume:.3g}' if volume < 100 else f'{volume:.0f}'} ml" for name, volume in volumes)


def run(options: argparse.Namespace) -> int:
    """Segments volumes; returns the exit code. A volume that can't be is reported, and the others are."""
    settings = load_settings(HERE / "pipeline.json")
    pairs = plan(options.input, options.output, several=len(settings["channels"]) > 1)
    networks = [load_network(HERE / name, options.runtime, settings["size"]) for name in settings["networks"]]
    code = 0
    for files, target in pairs:
        try:
            mask = segment(networks, files, settings, options)
            write(mask, target)
            print(f"{target}: {describe(mask, settings)}", flush=True)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            code = BAD_INPUT
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs with the arguments of the command line; returns the exit code."""
    options = parse(arguments)
    try:
        return run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted; the masks that are listed are complete", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
