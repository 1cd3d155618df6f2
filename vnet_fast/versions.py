"""Versions of what a result depends on."""

import importlib.metadata
import platform

from vnet_fast import __version__

PACKAGES = ("torch", "triton", "numpy", "SimpleITK")


def versions():
    """dict from name to version; None where a package is not installed."""
    found = {"vnet_fast": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
