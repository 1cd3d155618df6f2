"""Checkpoints: plain tensors and plain types, written whole or not at all, loaded without running
any code.
"""

import pickle
import struct
import zipfile
from pathlib import Path

import torch

from vnet_fast.errors import InputError
from vnet_fast.files import replacing
from vnet_fast.nn.vnet import VNet

FORMAT = 1
ANOTHER = "Name a checkpoint of this program, such as RUN/best.pt"
# what the unpickler makes of a damaged file
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    struct.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
PLAIN_TYPES = (torch.Tensor, int, float, bool, str, type(None))
ARCHITECTURE = ("in_channels", "num_classes", "base_channels", "topology")


def save(path, model, keep=None, **state):
    """Writes a checkpoint beside its place, synced, and renames it.

    Args:
        path: the file; the one before is replaced.
        model: a VNet; its architecture is kept with its weights.
        keep: None, or the file that the one before becomes.
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


def _check_plain(value, name):
    """A NumPy number or another object would be refused by `load`, when it is too late."""
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_plain(entry, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{name}[{index}]")
    elif type(value) not in PLAIN_TYPES:
        raise TypeError(f"{name} must be a tensor or of a plain type; got {type(value).__name__}")


def load(path, device="cpu"):
    """The content of a checkpoint, a dict.

    Raises:
        InputError: if it is missing, damaged, or no checkpoint of this program.
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


def build_model(content, path, device):
    """The network of a checkpoint with its weights.

    Args:
        content: what `load` returned.
        path: where it came from, for messages.
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


def fill_model(model, content, path):
    """Loads a checkpoint's weights into a network that must have the same architecture.

    Raises:
        InputError: if it has another one, or the weights do not fit or are not finite.
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


def all_finite(model):
    """Whether no weight is NaN or infinite."""
    return all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values())


def grid_of(content, path):
    """Spacing and size, x y z, of a checkpoint's content; an `InputError` if it has none."""
    try:
        spacing, size = tuple(map(float, content["spacing"])), tuple(content["volume"])
        sound = len(spacing) == len(size) == 3 and min(spacing) > 0
        sound = sound and all(isinstance(n, int) and n > 0 for n in size) and isinstance(content["validation"], list)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise InputError(path, "does not say its spacing and size", ANOTHER)
    if content["architecture"]["in_channels"] != 1:
        raise InputError(path, "is of a network for several input channels", ANOTHER)
    return spacing, size
