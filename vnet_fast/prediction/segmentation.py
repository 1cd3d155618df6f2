"""Volumes to masks: which file goes where, the networks of checkpoints, a volume's probabilities and labels."""

import math
import os
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from tqdm import tqdm

from vnet_fast.data import cases
from vnet_fast.data.intensity import normalise
from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.io import formats, volumes
from vnet_fast.prediction.inference import OVERLAP, predict_probabilities
from vnet_fast.run import checkpoint
from vnet_fast.run.checkpoint import grid_of

# a folder of DICOM slices has no single file's format
DICOM_OUTPUT = ".nii.gz"


# of a grid that covers a volume: its float32 values take 4 GB, its probabilities as much for each class
MAX_VOXELS = 1 << 30


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


def largest_components(mask):
    """The mask with only the largest connected component (of 26 neighbours) of each label.

    Args:
        mask: (z, y, x) uint8.

    Returns:
        (z, y, x) uint8.
    """
    kept = np.zeros_like(mask)
    for label in np.unique(mask[mask > 0]).tolist():
        components = sitk.ConnectedComponent(sitk.GetImageFromArray((mask == label).astype(np.uint8)), True)
        components = sitk.GetArrayViewFromImage(sitk.RelabelComponent(components, sortByObjectSize=True))
        kept[components == 1] = label
    return kept
