"""What a result depends on: processor, versions, command and the content of the kernels; no name of a machine."""

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path

import torch

from benchmarks.measure import ON_GPU, SIZE
from vnet_fast.devices import processor

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("triton", "numpy", "monai", "SimpleITK", "openvino", "onnxruntime")


def provenance():
    """The provenance of this run: dict of plain types. pytest-benchmark adds the commit."""
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
        "volume": " x ".join(map(str, SIZE)),
        "kernels": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            for pattern in ("*.py", "cpu/*.h", "cpu/*.cpp")
            for path in sorted(ROOT.glob(f"kernels/{pattern}"))
        },
    }


def version(package):
    """The version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def without_folders(text):
    """A text whose absolute paths are cut to their last names, because folders of a machine are private."""
    return re.sub(r"(?<![\w.])/(?:[^\s/'\"]+/)+", "", text)
