"""Draws the pictures of a report."""

from collections.abc import Callable
from pathlib import Path

from vnet_fast import plotting
from vnet_fast.reporting.html import Picture


def draw_picture(
    folder: Path, name: str, draw: Callable[[Path, plotting.Theme], None], alt: str, caption: str
) -> Picture:
    """Draws a picture in both colour schemes, NAME.png and NAME-dark.png.

    Args:
        folder: of the files.
        name: of the files.
        draw: draws it to a path in a theme.
        alt, caption: as in `html.Picture`.
    """
    light, dark = folder / f"{name}.png", folder / f"{name}-dark.png"
    draw(light, plotting.LIGHT)
    draw(dark, plotting.DARK)
    return Picture(light, dark, alt, caption)
