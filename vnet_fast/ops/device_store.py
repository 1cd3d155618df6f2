"""What was found out about a device, kept on disk: which kernels passed their trial, which convolutions are fast."""

import contextlib
import functools
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

from vnet_fast.devices import processor
from vnet_fast.errors import InputError
from vnet_fast.files import make_folder, write_text
from vnet_fast.versions import versions

FOLDER = Path("~/.cache/vnet_fast/devices")


@functools.cache
def fingerprint(device: torch.device) -> str:
    """Hexadecimal digest of all that results on a device depend on: the device, its driver, and the packages."""
    facts: dict[str, Any] = {"versions": versions(), "machine": platform.machine(), "device": str(device.type)}
    if device.type == "cpu":
        # a home folder may be of several machines
        facts["device"] = processor()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["device"] = [properties.name, properties.major, properties.minor, properties.multi_processor_count]
        facts["libraries"] = [torch.version.cuda, torch.version.hip, torch.backends.cudnn.version(), _driver()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _driver() -> int | None:
    get_version = getattr(torch._C, "_cuda_getDriverVersion", None)
    return get_version() if get_version else None


def load(kind: str, device: torch.device) -> dict[str, Any]:
    """What was stored of a kind for a device; empty if there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        stored = json.loads(_path(kind, device).read_text(encoding="utf-8"))
        if isinstance(stored, dict):
            return stored
    return {}


def save(kind: str, device: torch.device, values: dict[str, Any]) -> None:
    """Stores values beside those of the same kind that other processes stored; does nothing if that is impossible."""
    # without a home or room on its disk, everything is found out again by the next process
    with contextlib.suppress(InputError, RuntimeError):
        path = _path(kind, device)
        make_folder(path.parent)
        write_text(path, json.dumps(load(kind, device) | values, indent=1, sort_keys=True) + "\n")


def _path(kind: str, device: torch.device) -> Path:
    return FOLDER.expanduser() / fingerprint(device) / f"{kind}.json"
