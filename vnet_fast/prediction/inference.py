"""Probabilities of a volume, in windows if it is larger than the network's size, on a device that may be too small."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vnet_fast.devices import HOST, free_memory, is_out_of_memory, mixed_precision
from vnet_fast.errors import InputError
from vnet_fast.host_memory import return_freed_memory
from vnet_fast.prediction import windows
from vnet_fast.prediction.passes import Passes

OVERLAP = 0.5
NO_FLIP: list[tuple[int, ...]] = [()]
# Along x of the network's grid, where patients are about symmetric. Training mirrors along no axis, so that averaging
# over all eight flips does harm (on PROMISE12, Dice is 0.61 with all flips, 0.72 with this one, and 0.71 with none).
LEFT_RIGHT: list[tuple[int, ...]] = [(), (-1,)]
NOT_FINITE_REMEDY = "Use another checkpoint, or --amp off"
ON_HOST = "the network runs on the CPU, in float32"
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Attempt:
    """One way to predict a volume.

    Args:
        device: where the network runs.
        window: (d, h, w) voxels of its windows.
        collected: the device that holds the whole volume and its probabilities.
        description: how it differs from the attempt before, for the log.
    """

    device: torch.device
    window: Shape
    collected: torch.device
    description: str = ""


def predict_probabilities(
    model: nn.Module,
    image: np.ndarray,
    autocast: torch.dtype | None = None,
    window: Shape | None = None,
    overlap: float = OVERLAP,
    flips: Sequence[tuple[int, ...]] = NO_FLIP,
    notify: Callable[[str], object] = print,
    track: Callable[[Any], Iterable[windows.Window]] = iter,
    overlapping: bool = False,
    passes: Passes | None = None,
) -> np.ndarray:
    """Probabilities of one volume. If memory is short, `list_attempts` are made one after the other, and reported.

    Args:
        model: the network, or a ModuleList of networks to average; left in evaluation mode, its weights where they are.
        image: (D, H, W) float32, normalised, or (C, D, H, W) of several channels.
        autocast: the dtype of mixed precision, or None.
        window: (d, h, w) voxels of the windows for a larger image; None predicts the image in one piece.
        overlap: the least share of the window by which neighbours overlap, 0 <= overlap < 1.
        flips: tuples of axes to flip a window along, of -3, -2, -1; the results are flipped back and averaged.
        notify: called with a message whenever memory does not suffice, or there can be no CUDA graph.
        track: wraps the list of windows, such as `tqdm`.
        overlapping: whether each output has a sigmoid of its own, instead of a softmax of all.
        passes: run the windows; those of several volumes may share them. None: the volume has its own.

    Returns:
        (K, D, H, W) float32, the Gaussian-weighted average of the windows.

    Raises:
        ValueError, InputError: if overlap is outside of its range; if a logit is not finite.
        torch.OutOfMemoryError: if the memory does not suffice in any way.
    """
    passes = passes or Passes()
    d, h, w = image.shape[-3:]
    window = windows.clip_to_shape(window or (d, h, w), (d, h, w))
    attempts = list_attempts(next(model.eval().parameters()).device, window, (d, h, w))
    how = overlap, flips, track, overlapping, passes
    for attempt, following in itertools.zip_longest(attempts, attempts[1:]):
        probabilities, exhausted = _average_if_memory(passes, model, image, attempt, autocast, *how)
        passes.explain(notify)
        if probabilities is not None:
            break
        _tell(notify, exhausted, following)
    return cast(np.ndarray, probabilities)


def _tell(notify: Callable[[str], object], exhausted: str, following: Attempt | None) -> None:
    """Says what is tried next; raises an error if that is nothing."""
    if following is None:
        raise torch.OutOfMemoryError(f"the memory of the {exhausted} does not suffice for a volume")
    notify(f"out of memory on the {exhausted}, {following.description}")


def as_batch(image: np.ndarray) -> Tensor:
    """(1, C, D, H, W) of the (D, H, W) or (C, D, H, W) intensities of a volume."""
    return torch.from_numpy(image).view(1, -1, *image.shape[-3:])


def list_attempts(device: torch.device, window: Shape, shape: Shape) -> list[Attempt]:
    """The ways to predict a volume, from the requested one to the last resort.

    If a GPU's memory is too small, the probabilities are collected on the host. If it still is, the windows are
    halved along their longest axis, repeatedly, down to 64 voxels. At last the network runs on the CPU, in float32,
    with the requested windows.

    Args:
        device: of the network.
        window: (d, h, w) voxels.
        shape: (D, H, W) voxels of the volume.

    Returns:
        the attempts; on a CPU, none but those with smaller windows follows the first.
    """
    attempts = [Attempt(device, window, device)]
    if device != HOST and window != shape:
        attempts.append(Attempt(device, window, HOST, "probabilities are collected on the CPU"))
    smaller = windows.halve_longest_axis(window)
    while smaller is not None:
        size = " x ".join(map(str, reversed(smaller)))
        attempts.append(Attempt(device, smaller, HOST, f"windows are {size} voxels, which is less accurate"))
        smaller = windows.halve_longest_axis(smaller)
    return attempts if device == HOST else [*attempts, Attempt(HOST, window, HOST, ON_HOST)]


def _average_if_memory(
    passes: Passes, model: nn.Module, image: np.ndarray, attempt: Attempt, *how: Any
) -> tuple[np.ndarray | None, str]:
    """`_average`; or None and whose memory does not suffice, CPU or GPU. It is free then."""
    held = True
    while held:
        try:
            if attempt.description == ON_HOST:
                # without mixed precision, which was chosen for the device
                return _average(_on_host(model), image, attempt, None, *how[1:]), ""
            return _average(model, image, attempt, *how), ""
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            on_cpu = attempt.device == HOST or isinstance(error, MemoryError)
        # after the except clause, whose traceback keeps the memory of the failed pass
        free_memory(attempt.device)
        # neither a graph of passes nor memory of what is gone may be why windows are smaller: the same is tried again
        held = passes.make_room() or (on_cpu and return_freed_memory())
        # also what a graph kept
        free_memory(attempt.device)
    return None, "CPU" if on_cpu else "GPU"


class _OnHost(nn.Module):
    """A network of another device that runs on the CPU, by copies of its weights: where they lie, there may be a CUDA
    graph that reads and updates them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # not as a module of this one
        self._networks = [network]
        self._weights: dict[str, Tensor] = {
            **{name: nn.Parameter(weight.to(HOST), requires_grad=False) for name, weight in network.named_parameters()},
            **{name: buffer.to(HOST) for name, buffer in network.named_buffers()},
        }

    def forward(self, x: Tensor) -> Tensor:
        """The network's logits."""
        logits: Tensor = functional_call(self._networks[0], self._weights, (x,))
        return logits


@torch.inference_mode()
def _on_host(model: nn.Module) -> nn.Module:
    networks = [_OnHost(network) for network in (model if isinstance(model, nn.ModuleList) else [model])]
    return nn.ModuleList(networks) if isinstance(model, nn.ModuleList) else networks[0]


@torch.inference_mode()
def _average(
    model: nn.Module,
    image: np.ndarray,
    attempt: Attempt,
    autocast: torch.dtype | None,
    overlap: float,
    flips: Sequence[tuple[int, ...]],
    track: Callable[[Any], Iterable[windows.Window]],
    overlapping: bool = False,
    passes: Passes | None = None,
) -> np.ndarray:
    """The weighted average of the windows' probabilities, (K, D, H, W) float32."""
    d, h, w = image.shape[-3:]
    run, passes = partial(_predict_window, model, autocast, flips, overlapping), passes or Passes()
    settings = autocast, tuple(flips), overlapping
    volume = as_batch(image).to(attempt.collected)
    average: Tensor | None = None
    largest = []
    for window in track(windows.cover((d, h, w), attempt.window, overlap, attempt.collected)):
        z, y, x = window.where
        part = volume[..., z, y, x].to(attempt.device)
        probabilities, largest_logit = passes(run, model, part, settings)
        probabilities = probabilities.to(attempt.collected)
        largest.append(largest_logit)
        if average is None:
            average = torch.zeros(len(probabilities), d, h, w, dtype=torch.float32, device=attempt.collected)
        average[:, z, y, x].addcmul_(probabilities, window.weights())
    assert average is not None
    check_finite(largest)
    array: np.ndarray = average.cpu().numpy()
    return array


def _predict_window(
    model: nn.Module,
    autocast: torch.dtype | None,
    flips: Sequence[tuple[int, ...]],
    overlapping: bool,
    part: Tensor,
) -> tuple[Tensor, Tensor]:
    """(K, d, h, w) float32 of a (1, C, d, h, w) window, the mean over networks and flips; and a scalar, the sum of
    their largest logits, which is finite if all logits are.
    """
    networks = list(model) if isinstance(model, nn.ModuleList) else [model]
    total: Tensor | int = 0
    largest: Tensor | float = 0.0
    for network, axes in itertools.product(networks, flips):
        with mixed_precision(part.device, autocast):
            logits = network(part.flip(axes))
        # one pass over the logits
        largest = largest + torch.linalg.vector_norm(logits, torch.inf, dtype=torch.float32)
        values = logits[0].float()
        total = total + (torch.sigmoid(values) if overlapping else torch.softmax(values, 0)).flip(axes)
    mean: Tensor = total / (len(networks) * len(flips))  # type: ignore[assignment]  # there is at least one term
    assert isinstance(largest, Tensor)
    return mean, largest


def check_finite(largest: Sequence[Tensor]) -> None:
    """Raises an InputError unless the largest logits of all windows are finite; waits for the device once."""
    if not torch.isfinite(torch.stack(list(largest))).all():
        raise InputError("the network's output", "is not finite", NOT_FINITE_REMEDY)
