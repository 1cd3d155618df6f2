"""Segments volumes with a trained V-Net, in their own geometry."""

import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text, share
from vnet_fast.data import cases
from vnet_fast.data.intensity import normalise
from vnet_fast.devices import choose_precision, device_name, keep_freed_memory, use_all_cores
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import formats, volumes
from vnet_fast.prediction.inference import HOST, LEFT_RIGHT, NO_FLIP, OVERLAP, predict_probabilities
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import find_device

# a folder of DICOM slices has no single file's format
DICOM_OUTPUT = ".nii.gz"
# of a grid that covers a volume: its float32 values take 4 GB, its probabilities as much for each class
MAX_VOXELS = 1 << 30


@dataclass(frozen=True)
class Config:
    """Segments volumes with a trained V-Net. Masks are on each input's own grid."""

    checkpoint: tuple = option(
        None,
        "best.pt or last.pt of a run; of several, the probabilities are averaged",
        type=path_text,
        metavar="FILE",
        nargs="+",
        required=True,
    )
    input: str = option(
        None, "a volume, a folder of DICOM slices, or a folder of volumes", type=path_text, required=True
    )
    output: str = option(None, "the mask's file, or a folder", type=path_text, required=True)
    validation_only: bool = option(False, "only the cases that every run held out", action="store_true")
    probabilities: bool = option(False, "writes NAME_probability files too, float32", action="store_true")
    all_components: bool = option(False, "keeps more than each class's largest component", action="store_true")
    overlap: float = option(
        None,
        "covers larger volumes by windows that overlap by this share, such as 0.5; without it only their centre is "
        "predicted, which is what the network was trained on",
        type=share,
        metavar="SHARE",
    )
    tta: bool = option(False, "averages with the volume mirrored left to right, in twice the time", action="store_true")
    amp: str = option(
        "off", "mixed precision; --amp alone is auto", nargs="?", const="auto", choices=("auto", "bf16", "fp16", "off")
    )
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def plan(config, only):
    """Which file goes where.

    Args:
        config: the Config.
        only: None, or the names of the cases to take from a folder.

    Returns:
        list of (input, output) paths.

    Raises:
        InputError: if there is nothing to predict, or an output would replace an input.
    """
    source, target = Path(config.input), Path(config.output)
    single = not os.path.isdir(source) or formats.is_dicom_folder(source)
    if single:
        if not os.path.isdir(source):
            formats.check_regular(source)
        # resolved: the name of . is that of the folder
        found = {formats.stem_of(source.resolve()): source}
    else:
        found = cases.find_images(source)
    if only is not None:
        found = {name: path for name, path in found.items() if name in only}
        if not found:
            raise InputError(source, "none of the run's validation cases", "Name the folder it was trained on")
    if single and formats.suffix_of(target):
        pairs = [(source, target)]
    else:
        if formats.suffix_of(target) and not target.is_dir():
            raise InputError(target, f"one file for {len(found)} volumes", "Name a folder")
        if single and target.suffix and not target.is_dir():
            raise InputError(target, "not a format that is written", formats.CONVERT.replace("Convert", "Change"))
        pairs = [(path, target / f"{name}{output_suffix(path)}") for name, path in found.items()]
    # realpath, unlike resolve, bears a loop of links
    inputs = {os.path.realpath(part) for path in found.values() for part in _files_of(path)}
    for _, mask in pairs:
        written = [mask]
        if mask.suffix.lower() in (".mhd", ".nhdr"):
            written += [mask.with_suffix(suffix) for suffix in (".zraw", ".raw", ".raw.gz")]
        for part in written:
            if os.path.realpath(part) in inputs:
                raise InputError(part, "would replace the volume itself", "Choose another --output")
    return pairs


def _files_of(path):
    try:
        return formats.files_of(path)
    except InputError:
        # a damaged header: said when the volume is read
        return [path]


def output_suffix(path):
    """The suffix of the mask of the volume at `path`."""
    return DICOM_OUTPUT if path.is_dir() else formats.suffix_of(path) or DICOM_OUTPUT


def grid_of(content, path):
    """Spacing and size, x y z, of a checkpoint's content; an `InputError` if it has none."""
    try:
        spacing, size = tuple(map(float, content["spacing"])), tuple(content["volume"])
        sound = len(spacing) == len(size) == 3 and min(spacing) > 0
        sound = sound and all(isinstance(n, int) and n > 0 for n in size) and isinstance(content["validation"], list)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(path, "does not say its spacing and size", checkpoint.ANOTHER)
    if content["architecture"]["in_channels"] != 1:
        raise InputError(path, "is of a network for several input channels", checkpoint.ANOTHER)
    return spacing, size


def segment(model, path, spacing, size, autocast=None, overlap=None, **how):
    """Reads a volume and predicts its probabilities.

    In training the network saw each volume's centre, normalised by the intensities there. So the
    whole of a larger volume is normalised by those of its centre, which looks as it did in training.

    Args:
        model: the network, or a ModuleList of those to average.
        path: of the volume.
        spacing: mm, x y z, that the network works on.
        size: voxels, x y z, that it works on.
        autocast: the dtype of mixed precision, or None.
        overlap: None to predict the centre of a larger volume, with background beyond; or the share
            by which windows overlap that cover the whole of it, 0 <= overlap < 1.
        **how: `flips` and `track` of `predict_probabilities`.

    Returns:
        (SimpleITK image, (K, z, y, x) float32 probabilities on its grid, whether its borders lie
        outside of the network's size).

    Raises:
        InputError: if it can't be read, is constant at its centre, or takes more than 2^30 voxels on
            the network's grid.
    """
    image = volumes.read_image(path)
    grid = centre = volumes.working_grid(image, spacing, size)
    covering = volumes.covering_size(image, centre)
    if overlap is not None and covering != centre.size:
        if math.prod(covering) > MAX_VOXELS:
            cause = f"takes {' x '.join(map(str, covering))} voxels on the network's grid"
            raise InputError(path, cause, "Check its spacing, or leave --overlap out")
        grid = volumes.working_grid(image, spacing, covering)
    values = reference = volumes.image_on_grid(image, centre)
    if grid != centre:
        values = volumes.image_on_grid(image, grid)
    try:
        values = normalise(values, reference)
    except ValueError as error:
        raise InputError(path, f"{error} on the network's grid", "Check that it is a scan") from None
    probabilities = predict_probabilities(
        model,
        values,
        autocast,
        window=centre.size[::-1],
        overlap=OVERLAP if overlap is None else overlap,
        say=lambda words: tqdm.write(f"{path}: {words}"),
        **how,
    )
    return image, volumes.probabilities_on_image(probabilities, grid, image), covering != centre.size


def to_labels(probabilities, all_components=False):
    """The most probable class of each voxel, uint8; the largest component of each class unless all
    are wanted.
    """
    labels = probabilities.argmax(0).astype(np.uint8)
    return labels if all_components else volumes.largest_components(labels)


def write_probabilities(probabilities, image, path):
    """One file for each foreground class beside the mask: NAME_probability, numbered if several."""
    stem, suffix = formats.stem_of(path), formats.suffix_of(path)
    for k, probability in enumerate(probabilities[1:], start=1):
        number = f"_{k}" if len(probabilities) > 2 else ""
        volumes.write(probability, image, path.with_name(f"{stem}_probability{number}{suffix}"))


def build_network(content, path, device):
    """The network of a checkpoint's content and its device, the CPU where a GPU's memory is short."""
    try:
        return checkpoint.build_model(content, path, device), device
    except torch.OutOfMemoryError:
        print(f"{path}: out of memory on the GPU, the network runs on the CPU")
    return checkpoint.build_model(content, path, HOST), HOST


def load_networks(paths, device):
    """The networks of checkpoints, together in memory.

    Returns:
        (the network, or a ModuleList of several, its device, spacing and size that it works on, the
        names of the cases that all the runs held out).

    Raises:
        InputError: if one can't be used, or differs from the first in classes, spacing or volume.
    """
    networks, held_out, first = [], [], None
    for path in paths:
        content = checkpoint.load(path)
        network, device = build_network(content, path, device)
        spacing, size = grid_of(content, path)
        ours = {"number of classes": (network.num_classes,), "spacing": spacing, "volume": size}
        first = first or ours
        for name in (name for name in ours if ours[name] != first[name]):
            values = [" ".join(f"{value:g}" for value in which[name]) for which in (ours, first)]
            cause = f"its {name} is {values[0]}, that of {paths[0]} is {values[1]}"
            raise InputError(path, cause, "Name checkpoints that agree in it")
        networks.append(network)
        held_out.append({*content["validation"]})
    # where memory was short for one, all go to the CPU
    model = networks[0] if len(networks) == 1 else torch.nn.ModuleList(networks).to(device)
    return model, device, spacing, size, set.intersection(*held_out)


def segment_all(pairs, config, segment_one):
    """Writes the masks, and the probabilities if they are wanted.

    Args:
        pairs: iterable of (input, output) paths.
        config: the Config.
        segment_one: from a path to what `segment` returns.

    Returns:
        (list of the `InputError` of each volume that has none, how many are larger than the network's
        size).
    """
    errors, count = [], 0
    for path, target in pairs:
        try:
            image, probabilities, larger = segment_one(path=path)
            if config.probabilities:
                write_probabilities(probabilities, image, target)
            volumes.write(to_labels(probabilities, config.all_components), image, target)
        except InputError as error:
            errors.append(error)
            continue
        count += larger
        if not sys.stderr.isatty():
            print(target, flush=True)
    return errors, count


def treatment(config):
    """What is done with volumes larger than the network's size, for the log."""
    if config.overlap is None:
        return "background beyond, unless --overlap is given"
    return f"in windows, overlap {config.overlap:g}"


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    device = find_device(config.device)
    model, device, spacing, size, names = load_networks(config.checkpoint, device)
    if config.validation_only and len(config.checkpoint) > 1 and not names:
        cause = "no case was held out by every run"
        raise InputError("--validation-only", cause, "Give one checkpoint, or train with --fold all")
    pairs = plan(config, names if config.validation_only else None)
    folder = pairs[0][1].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"can't be made ({error.strerror})", "Choose another --output") from None
    autocast, words = choose_precision(config.amp, device)
    together = f", {len(config.checkpoint)} networks averaged" if len(config.checkpoint) > 1 else ""
    print(f"device: {device_name(device)}, {words}{together}")

    bar = partial(tqdm, disable=not sys.stderr.isatty(), leave=False)
    errors, larger = segment_all(
        bar(pairs, "predicting", unit="volume"),
        config,
        partial(
            segment,
            model,
            spacing=spacing,
            size=size,
            autocast=autocast,
            overlap=config.overlap,
            flips=LEFT_RIGHT if config.tta else NO_FLIP,
            track=partial(bar, desc="windows", unit="window"),
        ),
    )
    if larger:
        extent = " x ".join(f"{n * s:g}" for n, s in zip(size, spacing, strict=True))
        print(f"{larger} of {len(pairs)} volumes are larger than the network's {extent} mm: {treatment(config)}")
    print(f"{len(pairs) - len(errors)} of {len(pairs)} volumes segmented, masks in {folder}")
    if errors:
        raise InputErrors(errors)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.predict"))
