"""The versions of the packages that a result depends on."""

import importlib.metadata
import platform

from vnet_fast import __version__

PACKAGES = ("torch", "triton", "numpy", "SimpleITK")


def versions() -> dict[str, str | None]:
    """The version of each package by its name; None where it is not installed."""
    found: dict[str, str | None] = {"vnet_fast": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found
