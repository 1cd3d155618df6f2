"""Runs the network: from a volume's intensities to probabilities, and from those to labels."""

import importlib
import itertools
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast.deployment.standalone.volumes import Floats, Grid, InputError

RUNTIMES = ("onnxruntime", "openvino")
FORMAT = 2
# what `pipeline.json` must have: itself, in `windows`, in each of `channels`, and in the `scaling` of one
KEYS = (
    "networks", "tta", "spacing", "size", "channels", "windows", "labels", "regions", "threshold", "label_of_regions"
)  # fmt: skip
WINDOW_KEYS, CHANNEL_KEYS = ("always", "overlap", "sigma"), ("percentiles", "scaling")
SCALING_KEYS = ("low", "high", "mean", "deviation")
EXPORT_AGAIN = "Export the folder again"
# the axes along which a window is mirrored: none, and left to right
NO_FLIP: tuple[tuple[int, ...], ...] = ((),)
LEFT_RIGHT: tuple[tuple[int, ...], ...] = ((), (-1,))
# from (1, C, d, h, w) intensities to (1, K, d, h, w) logits
Network = Callable[[Floats], Floats]
Settings = Mapping[str, Any]


def load_settings(path: Path) -> Settings:
    """What `pipeline.json` says about the network, its volumes and its masks."""
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _check_keys(settings, ("format",), path)
        if settings["format"] != FORMAT:
            raise InputError(f"{path}: format {settings['format']}, and these programs read {FORMAT}. {EXPORT_AGAIN}")
        _check_keys(settings, KEYS, path)
        _check_keys(settings["windows"], WINDOW_KEYS, path)
        for channel in settings["channels"]:
            _check_keys(channel, CHANNEL_KEYS, path)
            _check_keys(channel["scaling"] or SCALING_KEYS, SCALING_KEYS, path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: can't be read ({error}). {EXPORT_AGAIN}") from None
    return settings


def _check_keys(part: Container[str], keys: Sequence[str], path: Path) -> None:
    """Raises an InputError if a part of the settings has not all of these keys."""
    missing = [key for key in keys if key not in part]
    if missing:
        raise InputError(f"{path}: has no {missing[0]}. {EXPORT_AGAIN}")


def load_network(path: Path, runtime: str, size: Sequence[int]) -> Network:
    """The network of an ONNX file.

    Args:
        path: of the file.
        runtime: the program that runs it, one of RUNTIMES.
        size: voxels of its input, x y z.
    """
    try:
        module: Any = importlib.import_module(runtime)
    except ImportError:
        raise InputError(f"--runtime: {runtime} is not installed. pip install {runtime}") from None
    try:
        if runtime == "openvino":
            model = module.Core().read_model(path)
            channels = model.input(0).partial_shape[1].get_length()
            # known shapes let it choose its kernels
            model.reshape([1, channels, *reversed(size)])
            hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
            compiled = module.Core().compile_model(model, "CPU", hints)
            return lambda values: compiled({"image": values})["logits"]
        session = module.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda values: session.run(["logits"], {"image": values})[0]
    except Exception as error:  # each runtime has classes of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
        raise InputError(f"{path}: can't be loaded ({reason}). {EXPORT_AGAIN}") from None


def normalised(values: Floats, reference: Floats, channel: Settings) -> Floats:
    """Intensities as the network knows them; those outside of the image become the darkest one.

    Args:
        values: of a channel, NaN outside of the image.
        reference: the part that percentiles, mean and variance are of, if they are not those of the training data.
        channel: what `pipeline.json` says about it.

    Raises:
        ValueError: if all voxels of the reference have the same value.
    """
    inside = reference[~np.isnan(reference)]
    if inside.size == 0 or inside.min() == inside.max():
        raise ValueError("all voxels have the same value on the network's grid. Check that it is a scan")
    if channel["scaling"] is not None:
        low, high, mean, deviation = (channel["scaling"][name] for name in SCALING_KEYS)
        filled = np.where(np.isnan(values), np.nanmin(values), values)
        return np.asarray((np.clip(filled, low, high) - mean) / deviation, np.float32)
    foreground = inside[inside > inside.min()]
    low, high = np.percentile(foreground, channel["percentiles"])
    if low == high:
        # the foreground has a single value, so the surround must count too
        foreground, low, high = inside, inside.min(), inside.max()
    clipped = np.clip(foreground, low, high).astype(np.float64)
    filled = np.clip(np.nan_to_num(values, nan=low), low, high)
    return np.asarray((filled - clipped.mean()) / clipped.std(), np.float32)


def windows_of(length: int, window: int, overlap: float, sigma: float) -> Iterator[tuple[slice, Floats]]:
    """The windows along an axis, spread evenly, with Gaussian weights that sum to 1 at each voxel."""
    strides = math.ceil((length - window) / max(1, int(window * (1 - overlap))))
    first = [round(i * (length - window) / max(1, strides)) for i in range(strides + 1)]
    distance = (np.arange(window) - (window - 1) / 2) / (sigma * window)
    gaussian, total = np.exp(-(distance**2) / 2), np.zeros(length)
    for start in first:
        total[start : start + window] += gaussian
    for start in first:
        yield slice(start, start + window), (gaussian / total[start : start + window]).astype(np.float32)


def probabilities(
    networks: Sequence[Network], values: Floats, settings: Settings, overlap: float, mirrored: bool = False
) -> Floats:
    """The probabilities of (C, z, y, x) intensities, (K, z, y, x), averaged over windows that overlap by this share.

    Args:
        networks: whose probabilities are averaged.
        values: the intensities.
        settings: of `pipeline.json`.
        overlap: of the windows.
        mirrored: whether they are also averaged with those of each window mirrored left to right.
    """
    axes = [
        list(windows_of(length, window, overlap, settings["windows"]["sigma"]))
        for length, window in zip(values.shape[1:], reversed(settings["size"]), strict=True)
    ]
    average: Floats | None = None
    ways = list(itertools.product(networks, LEFT_RIGHT if mirrored else NO_FLIP))
    for (z, of_z), (y, of_y), (x, of_x) in itertools.product(*axes):
        part, overlapping = values[:, z, y, x], bool(settings["regions"])
        found = np.mean([_of_window(network, part, flip, overlapping) for network, flip in ways], axis=0)
        if average is None:
            average = np.zeros((len(found), *values.shape[1:]), np.float32)
        weights = of_z[:, None, None] * of_y[:, None] * of_x
        average[:, z, y, x] += weights * found
    assert average is not None
    return average


def _of_window(network: Network, values: Floats, flip: tuple[int, ...], overlapping: bool) -> Floats:
    """The probabilities of a window, which the network sees mirrored along some axes."""
    logits = network(np.ascontiguousarray(np.flip(values, flip)[None]))[0]
    if not np.isfinite(logits).all():
        raise ValueError("the network's output is not finite. Check the volume's intensities")
    return np.flip(activated(logits, overlapping), flip)


def activated(logits: Floats, overlapping: bool) -> Floats:
    """The probabilities of (K, z, y, x) logits: of each for itself if they overlap, else of one of all."""
    if overlapping:
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
    powers = np.exp(logits - logits.max(0))
    return np.asarray(powers / powers.sum(0), np.float32)


def largest_component(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The largest connected component; 26 neighbours are connected."""
    filtered = sitk.ConnectedComponent(sitk.GetImageFromArray(inside.astype(np.uint8)), True)
    components = sitk.GetArrayViewFromImage(filtered)
    sizes = np.bincount(components.ravel())[1:]
    return components == 1 + sizes.argmax() if sizes.size else inside


def labels_of(found: Floats, grid: Grid, own: Grid, settings: Settings, all_components: bool) -> NDArray[np.uint8]:
    """The labels of probabilities, (z, y, x) on the volume's own grid.

    Args:
        found: (K, z, y, x) on the network's grid.
        grid: the network's.
        own: the volume's.
        settings: of `pipeline.json`.
        all_components: whether not only the largest component of each class is kept.
    """
    shape = tuple(reversed(own.size))
    if settings["regions"]:
        codes = np.zeros(shape, np.uint16)
        for number, probability in enumerate(found):
            inside = own.sample(grid.image(probability), 0) > settings["threshold"]
            codes |= (inside if all_components else largest_component(inside)).astype(np.uint16) << number
        return np.array(settings["label_of_regions"], np.uint8)[codes]
    labels, highest = np.zeros(shape, np.uint8), own.sample(grid.image(found[0]), 1)
    for label, probability in enumerate(found[1:], start=1):
        sampled = own.sample(grid.image(probability), 0)
        labels[sampled > highest] = label
        highest = np.maximum(highest, sampled)
    if all_components:
        return labels
    mask = np.zeros_like(labels)
    for label in range(1, len(found)):
        mask[largest_component(labels == label)] = label
    return mask
