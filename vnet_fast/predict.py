"""Segments volumes with a trained V-Net, in their own geometry."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vnet_fast import checkpoint, command_line, dataset, formats, volumes
from vnet_fast.command_line import option, path_text
from vnet_fast.configuration import find_device
from vnet_fast.devices import choose_precision, device_name, use_all_cores
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.inference import predict_probabilities
from vnet_fast.intensity import normalise

# a folder of DICOM slices has no single file's format
DICOM_OUTPUT = ".nii.gz"


@dataclass(frozen=True)
class Config:
    """Segments volumes with a trained V-Net. Masks are on each input's own grid."""

    checkpoint: str = option(None, "best.pt or last.pt of a run", type=path_text, metavar="FILE", required=True)
    input: str = option(
        None, "a volume, a folder of DICOM slices, or a folder of volumes", type=path_text, required=True
    )
    output: str = option(None, "the mask's file, or a folder", type=path_text, required=True)
    validation_only: bool = option(False, "only the cases that the run validated on", action="store_true")
    probabilities: bool = option(False, "writes NAME_probability files too, float32", action="store_true")
    all_components: bool = option(False, "keeps more than each class's largest component", action="store_true")
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
        found = dataset.find_images(source)
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
        pairs = [(path, target / f"{name}{_output_suffix(path)}") for name, path in found.items()]
    inputs = {part.resolve() for path in found.values() for part in _files_of(path)}
    for _, mask in pairs:
        written = [mask, *(mask.with_suffix(suffix) for suffix in (".zraw", ".raw") if mask.suffix.lower() == ".mhd")]
        for part in written:
            if part.resolve() in inputs:
                raise InputError(part, "would replace the volume itself", "Choose another --output")
    return pairs


def _files_of(path):
    try:
        return formats.files_of(path)
    except InputError:
        # a damaged header: said when the volume is read
        return [path]


def _output_suffix(path):
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


def segment(model, path, spacing, size, autocast=None):
    """Reads a volume and predicts its probabilities.

    Args:
        model: the network.
        path: of the volume.
        spacing: mm, x y z, that the network works on.
        size: voxels, x y z, that it works on.
        autocast: the dtype of mixed precision, or None.

    Returns:
        (SimpleITK image, (K, z, y, x) float32 probabilities on its grid, whether its borders lie
        outside of the network's size).
    """
    image = volumes.read_image(path)
    grid = volumes.working_grid(image, spacing, size)
    try:
        values = normalise(volumes.image_on_grid(image, grid))
    except ValueError as error:
        raise InputError(path, f"{error} on the network's grid", "Check that it is a scan") from None
    probabilities = predict_probabilities(model, values, autocast)
    cropped = min(volumes.covered_share(image, grid)) < 1 - volumes.GEOMETRY_TOLERANCE
    return image, volumes.probabilities_on_image(probabilities, grid, image), cropped


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


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    device = find_device(config.device)
    content = checkpoint.load(config.checkpoint, device)
    model = checkpoint.build_model(content, config.checkpoint, device)
    spacing, size = grid_of(content, config.checkpoint)
    only = set(content["validation"]) if config.validation_only else None
    pairs = plan(config, only)
    folder = pairs[0][1].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"can't be made ({error.strerror})", "Choose another --output") from None
    autocast, words = choose_precision(config.amp, device)
    print(f"device: {device_name(device)}, {words}")

    errors, cropped = [], 0
    quiet = not sys.stderr.isatty()
    for path, target in tqdm(pairs, "predicting", unit="volume", disable=quiet, leave=False):
        try:
            image, probabilities, larger = segment(model, path, spacing, size, autocast)
            if config.probabilities:
                write_probabilities(probabilities, image, target)
            volumes.write(to_labels(probabilities, config.all_components), image, target)
        except InputError as error:
            errors.append(error)
            continue
        cropped += larger
        if quiet:
            print(target, flush=True)
    extent = " x ".join(f"{n * s:g}" for n, s in zip(size, spacing, strict=True))
    if cropped:
        print(f"{cropped} of {len(pairs)} volumes are larger than the network's {extent} mm: background beyond")
    print(f"{len(pairs) - len(errors)} of {len(pairs)} volumes segmented, masks in {folder}")
    if errors:
        raise InputErrors(errors)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.predict"))
