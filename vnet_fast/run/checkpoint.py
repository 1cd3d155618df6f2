"""Checkpoints: plain tensors and plain types, written whole or not at all, and loaded without running any code."""

import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vnet_fast.errors import InputError
from vnet_fast.files import replacing
from vnet_fast.nn.vnet import VNet
from vnet_fast.run import fields
from vnet_fast.run.archive import ArchiveError, read_archive
from vnet_fast.run.fields import check_fields, wrong_field
from vnet_fast.run.memory import check_grid
from vnet_fast.stored import shown

FORMAT = 1
ANOTHER = "Name a checkpoint of this program, such as RUN/best.pt"
# what the reader raises for a damaged file
DAMAGED = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip
PLAIN_TYPES = (torch.Tensor, int, float, bool, str, type(None))
ARCHITECTURE = tuple(fields.ARCHITECTURE)


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
        cause = f"can't be written ({_reason(error)})"
        raise InputError(path, cause, "Make room or choose another --output") from None


def _reason(error: BaseException) -> str:
    """The system's reason for an error, which an error of PyTorch's archive may have replaced."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return str(error)


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
    elif isinstance(value, torch.Tensor) and (value.dtype, value.layout) != (torch.float32, torch.strided):
        raise TypeError(f"{name} must be a dense tensor of float32; got {value.dtype}, {value.layout}")


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, of which every field has a value that it may have.

    Fields may be missing, except for `format`, `architecture` and `model`. The weights fit the architecture. Nothing is
    allocated beyond what the file holds.

    Args:
        path: of the file.
        device: where the weights go; all other tensors are on the host.

    Raises:
        InputError: if it is missing or damaged, or is not a checkpoint of this program.
    """
    try:
        content = read_archive(path)
    except FileNotFoundError:
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"can't be read ({error.strerror or error})", ANOTHER) from None
    except ArchiveError as error:
        raise InputError(path, f"damaged, or not a checkpoint ({error})", ANOTHER) from None
    except DAMAGED:
        raise InputError(path, "damaged, or not a checkpoint", ANOTHER) from None
    if not isinstance(content, dict) or not {"format", "architecture", "model"} <= content.keys():
        raise InputError(path, "not a checkpoint of this program", ANOTHER)
    if not fields.is_whole(content["format"]) or content["format"] != FORMAT:
        raise InputError(path, f"format {shown(content['format'])}, this program reads {FORMAT}", "Update the program")
    _check_content(content, path)
    content["model"] = {name: weight.to(device) for name, weight in content["model"].items()}
    return content


def foreground_classes(content: dict[str, Any]) -> int:
    """The number of classes, or of regions, that a checkpoint's network predicts, without the background."""
    return len(content.get("regions", ())) or int(content["architecture"]["num_classes"]) - 1


def _check_content(content: dict[str, Any], path: str | Path) -> None:
    architecture = content["architecture"]
    if isinstance(architecture, dict):
        architecture = content["architecture"] = fields.OLDER_ARCHITECTURE | architecture
    if not isinstance(architecture, dict) or architecture.keys() != fields.ARCHITECTURE.keys():
        raise InputError(path, f"not an architecture of this program ({shown(architecture)})", ANOTHER)
    check_fields(architecture, fields.ARCHITECTURE, path, ANOTHER, "its architecture's")
    wrong = wrong_field(content, fields.GRID)
    if wrong:
        raise InputError(path, f"does not say its spacing and size ({wrong})", ANOTHER)
    check_fields(content, fields.RUN, path, ANOTHER)
    channels, needed = content.get("channels"), architecture["in_channels"]
    if channels is not None and len(channels) != needed:
        raise InputError(path, f"names {len(channels)} channels, and its network has {needed}", ANOTHER)
    regions = content.get("regions", ())
    if regions and len(regions) != architecture["num_classes"]:
        cause = f"names {len(regions)} regions, and its network has {architecture['num_classes']}"
        raise InputError(path, cause, ANOTHER)
    classes = foreground_classes(content)
    if len(content.get("classes", ())) not in (0, classes):
        cause = f"names {len(content['classes'])} classes, and its network has {classes}"
        raise InputError(path, cause, ANOTHER)
    best = content.get("best", {})
    check_fields(best, fields.BEST, path, ANOTHER, "its best")
    for dice in (best.get("per_case") or {}).values():
        if len(dice) != classes:
            cause = f"its best per_case has {len(dice)} classes, and its network {classes}"
            raise InputError(path, cause, ANOTHER)
    misfit = _misfit(content["model"], skeleton(architecture).state_dict())
    if misfit:
        raise InputError(path, f"its weights do not fit its architecture ({misfit})", ANOTHER)


def _misfit(found: Any, expected: dict[str, Any]) -> str | None:
    """How stored weights differ from those of a network in names, types and shapes; None if they do not."""
    if not isinstance(found, dict):
        return f"its model must be a dict of tensors; got {shown(found)}"
    different = [*(expected.keys() - found.keys()), *(found.keys() - expected.keys())]
    if different:
        name = min(map(str, different))
        return f"{'missing' if name in expected else 'unexpected'} {shown(name)[1:-1]}"
    for name, weight in expected.items():
        if not isinstance(found[name], torch.Tensor) or found[name].dtype != weight.dtype:
            return f"{name} is {shown(found[name])}, not a tensor of {weight.dtype}"
        if found[name].shape != weight.shape:
            return f"size mismatch for {name}: {list(found[name].shape)}, not {list(weight.shape)}"
    return None


class _WithoutNumbers(TorchFunctionMode):
    """Draws no numbers: the meta device has none, but importing what pretends to draw them takes a second."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if getattr(function, "__module__", None) == torch.nn.init.__name__ or function is torch.Tensor.normal_:
            return options["tensor"] if "tensor" in options else arguments[0]
        return function(*arguments, **options)


def skeleton(architecture: dict[str, Any]) -> VNet:
    """A network of an architecture, of which the weights have shapes but no memory."""
    with torch.device("meta"), _WithoutNumbers():
        # whatever the program has made PyTorch's default
        return VNet(**architecture).float()


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
        model = VNet(**content["architecture"]).float()
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
    if any(bool((value < 0).any()) for name, value in model.named_buffers() if name.endswith("running_var")):
        raise InputError(path, "a running variance is negative", "Use an earlier checkpoint")


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
        InputError: if the checkpoint does not say them, or a volume of the size does not fit in memory.
    """
    if not fields.GRID.keys() <= content.keys():
        raise InputError(path, "does not say its spacing and size", ANOTHER)
    spacing, size = tuple(map(float, content["spacing"])), tuple(content["volume"])
    check_grid(size, path, ANOTHER)
    return spacing, size  # type: ignore[return-value]  # `load` has checked the lengths
