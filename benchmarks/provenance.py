"""What a result depends on: processor, versions, command and the kernels' content; no name of a machine."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import torch

from benchmarks.measure import ON_GPU, VOLUME

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("triton", "numpy", "monai", "SimpleITK")


def provenance():
    """dict of plain types; the commit is pytest-benchmark's to say."""
    return {
        "device": torch.cuda.get_device_name() if ON_GPU else f"CPU, {torch.get_num_threads()} threads",
        "processor": processor(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if ON_GPU else None,
        **{name: version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": without_folders(" ".join(["pytest", *sys.argv[1:]])),
        "volume": " x ".join(map(str, VOLUME[::-1])),
        "kernels": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(ROOT.glob("kernels/*.py"))
        },
    }


def processor():
    """The CPU's model."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def version(package):
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_folders(text):
    """A text whose absolute paths are cut to their names: folders are nobody's business."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", text)
