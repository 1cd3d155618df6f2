"""Checkpoints: plain tensors and plain types, written whole or not at all, and loaded without running any code."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vnet_fast.errors import InputError
from vnet_fast.files import replacing
from vnet_fast.nn.vnet import VNet

FORMAT = 1
ANOTHER = "Name a checkpoint of this program, such as RUN/best.pt"
# what the unpickler raises for a damaged file
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
PLAIN_TYPES = (torch.Tensor, int, float, bool, str, type(None))
ARCHITECTURE = ("in_channels", "num_classes", "base_channels", "topology")


def save(path: str | Path, model: VNet, keep: Path | None = None, **state: Any) -> None:
    """Writes a checkpoint beside its place, syncs it, and renames it.

    Args:
        path: the file; an older checkpoint there is replaced.
        model: the network; its architecture is stored with its weights.
        keep: None, or a new name for the checkpoint that is replaced.
        **state: tensors and plain types, in dicts, lists and tuples.

    Raises:
        InputError: if the folder can't be written.
        TypeError: if `state` holds anything that could not be loaded again.
    """
    path = Path(path)
    _check_plain(state, "state")
    content = {
        "format": FORMAT,
        "architecture": {name: getattr(model, name) for name in ARCHITECTURE},
        "model": model.state_dict(),
        **state,
    }
    try:
        with replacing(path, keep) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        cause = f"can't be written ({getattr(error, 'strerror', None) or error})"
        raise InputError(path, cause, "Make room or choose another --output") from None


def _check_plain(value: object, name: str) -> None:
    """Refuses NumPy numbers and other objects now, because `load` would refuse them when it is too late."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(entry, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{name}[{index}]")
    elif type(value) not in PLAIN_TYPES:
        raise TypeError(f"{name} must be a tensor or of a plain type; got {type(value).__name__}")


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        InputError: if it is missing or damaged, or is not a checkpoint of this program.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror})", ANOTHER) from None
    except DAMAGED:
        raise InputError(path, "damaged, or not a checkpoint", ANOTHER) from None
    if not isinstance(content, dict) or not {"format", "architecture", "model"} <= content.keys():
        raise InputError(path, "not a checkpoint of this program", ANOTHER)
    if content["format"] != FORMAT:
        raise InputError(path, f"format {content['format']}, this program reads {FORMAT}", "Update the program")
    return content


def build_model(content: dict[str, Any], path: str | Path, device: torch.device) -> VNet:
    """The network of a checkpoint with its weights.

    Args:
        content: what `load` returned.
        path: of the checkpoint, for messages.
        device: where the network goes.

    Raises:
        InputError: if the weights do not fit the architecture.
    """
    try:
        model = VNet(**content["architecture"])
    except (TypeError, ValueError) as error:
        raise InputError(path, f"not an architecture of this program ({error})", ANOTHER) from None
    fill_model(model, content, path)
    return model.to(device)


def fill_model(model: VNet, content: dict[str, Any], path: str | Path) -> None:
    """Loads a checkpoint's weights into a network of the same architecture.

    Raises:
        InputError: if the architecture differs, or the weights do not fit or are not finite.
    """
    ours = {name: getattr(model, name) for name in ARCHITECTURE}
    theirs = content["architecture"]
    different = [name for name in ARCHITECTURE if theirs.get(name) != ours[name]]
    if different:
        cause = "; ".join(f"has {name} {theirs.get(name)}, not {ours[name]}" for name in different)
        raise InputError(path, cause, "Leave those options as they were, or start a new run")
    try:
        model.load_state_dict(content["model"])
    except (RuntimeError, AttributeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise InputError(path, f"its weights do not fit its architecture ({reason})", ANOTHER) from None
    if not all_finite(model):
        raise InputError(path, "some of its weights are NaN or infinite", "Use an earlier checkpoint")


def all_finite(model: nn.Module) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values())


def grid_of(content: dict[str, Any], path: str | Path) -> tuple[tuple[float, float, float], tuple[int, int, int]]:
    """The grid that a checkpoint's network works on.

    Args:
        content: what `load` returned.
        path: of the checkpoint, for messages.

    Returns:
        spacing in mm and size in voxels, both x y z.

    Raises:
        InputError: if the checkpoint does not say them, or its network has several input channels.
    """
    try:
        spacing, size = tuple(map(float, content["spacing"])), tuple(content["volume"])
        is_sound = len(spacing) == len(size) == 3 and min(spacing) > 0
        is_sound = is_sound and all(isinstance(n, int) and n > 0 for n in size)
        is_sound = is_sound and isinstance(content["validation"], list)
    except (KeyError, TypeError, ValueError):
        is_sound = False
    if not is_sound:
        raise InputError(path, "does not say its spacing and size", ANOTHER)
    if content["architecture"]["in_channels"] != 1:
        raise InputError(path, "is of a network for several input channels", ANOTHER)
    return spacing, size  # type: ignore[return-value]  # the lengths are checked above
