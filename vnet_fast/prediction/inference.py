"""Probabilities of a volume, in windows where it is larger than the network's, on a device that may
be too small for them.
"""

import contextlib
import itertools
from dataclasses import dataclass

import torch

from vnet_fast.devices import HOST, mixed_precision
from vnet_fast.prediction import windows

OVERLAP = 0.5
NO_FLIP = [()]
# x of the working grid: patients are about symmetric there. Training mirrors along no axis, so that
# the field's average over all eight flips does harm (on PROMISE12 Dice 0.61, this 0.72, none 0.71)
LEFT_RIGHT = [(), (-1,)]


@dataclass(frozen=True)
class Attempt:
    """One way to predict a volume.

    Args:
        device: where the network runs.
        window: (d, h, w) voxels of its windows.
        collected: the device that holds the whole volume and its probabilities.
        words: what is different from the attempt before, for the log.
    """

    device: torch.device
    window: tuple[int, int, int]
    collected: torch.device
    words: str = ""


def predict_probabilities(
    model, image, autocast=None, window=None, overlap=OVERLAP, flips=NO_FLIP, say=print, track=iter
):
    """Softmax probabilities of one volume.

    Where the device has not enough memory, the probabilities are collected on the host, then the
    windows halved along their longest axis again and again, down to 64 voxels; at last the network
    runs on the CPU, in float32, with the windows that were asked for. Each step is said.

    Args:
        model: the network, or a ModuleList of networks, whose probabilities are averaged; afterwards it
            is where it was, in evaluation mode.
        image: (D, H, W) float32 array, normalised.
        autocast: the dtype of mixed precision, or None.
        window: (d, h, w) voxels of the windows that a larger image is predicted in, or None: in one.
        overlap: share of the window by which neighbours overlap at least, 0 <= overlap < 1.
        flips: tuples of the axes -3, -2, -1 to flip a window along; the results are flipped back and
            averaged. `()` is the window as it is.
        say: called with a line whenever memory does not suffice.
        track: wraps the list of windows, such as `tqdm`.

    Returns:
        (K, D, H, W) float32 array: the Gaussian-weighted average of the windows; of a single window
        without flips, exactly what the network gives.

    Raises:
        ValueError: if overlap is outside of its range.
    """
    device = next(model.parameters()).device
    model.eval()
    ways = attempts(device, windows.fitted(window or image.shape, image.shape), image.shape)
    for attempt, following in itertools.pairwise(ways):
        # the failed pass lets go of its memory before the next begins
        with contextlib.suppress(torch.OutOfMemoryError):
            return _average(model, image, attempt, autocast, overlap, flips, track)
        say(f"out of memory on the GPU, {following.description}")
    try:
        # mixed precision was chosen for the device
        return _average(model.to(HOST), image, ways[-1], None, overlap, flips, track)
    finally:
        model.to(device)


def attempts(device, window, shape):
    """The ways to predict a volume, from the one that is wanted to the last resort.

    Args:
        device: of the network.
        window: (d, h, w) voxels.
        shape: (D, H, W) voxels of the volume.

    Returns:
        list of Attempt, at least two.
    """
    found = [Attempt(device, window, device)]
    if device != HOST and window != tuple(shape):
        found.append(Attempt(device, window, HOST, "probabilities are collected on the CPU"))
    smaller = window
    while smaller := windows.halved(smaller):
        size = " x ".join(map(str, reversed(smaller)))
        found.append(Attempt(device, smaller, HOST, f"windows are {size} voxels, which is less accurate"))
    return [*found, Attempt(HOST, window, HOST, "the network runs on the CPU, in float32")]


@torch.inference_mode()
def _average(model, image, attempt, autocast, overlap, flips, track):
    """The weighted average of the windows' probabilities: (K, D, H, W) float32 array."""
    volume = torch.from_numpy(image)[None, None].to(attempt.collected)
    average = None
    for window in track(windows.cover(image.shape, attempt.window, overlap, attempt.collected)):
        part = volume[(..., *window.where)].to(attempt.device)
        probabilities = _probabilities(model, part, autocast, flips).to(attempt.collected)
        if average is None:
            average = torch.zeros(len(probabilities), *image.shape, device=attempt.collected)
        average[(slice(None), *window.where)].addcmul_(probabilities, window.weights())
    return average.cpu().numpy()


def _probabilities(model, part, autocast, flips):
    """(K, d, h, w) float32 of a (1, 1, d, h, w) window: the mean over networks and flips."""
    networks = model if isinstance(model, torch.nn.ModuleList) else [model]
    total = 0
    for network, axes in itertools.product(networks, flips):
        with mixed_precision(part.device, autocast):
            logits = network(part.flip(axes))
        total = total + torch.softmax(logits[0].float(), 0).flip(axes)
    return total / (len(networks) * len(flips))
