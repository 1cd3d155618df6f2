"""The picture of a segmented volume."""

import functools
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from vnet_fast import plotting
from vnet_fast.errors import InputError
from vnet_fast.io.grid import Grid
from vnet_fast.io.label_names import colour_of
from vnet_fast.slices import (
    ContourStyle,
    choose_slices,
    crop_around,
    draw_contours,
    height_of_row,
    intensity_limits,
    show_slice,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 11.0


def draw(image: sitk.Image, structures: Iterable[tuple[str, NDArray[np.bool_]]], title: str = "") -> "Figure":
    """Draws the contours of structures on three slices, axial and in radiological orientation.

    Args:
        image: SimpleITK image of the intensities.
        structures: the name and the voxels, (z, y, x), of each.
        title: above the picture.

    Returns:
        a Figure that notebooks show, whatever backend of matplotlib is in use.

    Raises:
        InputError: if matplotlib is not installed.
    """
    if not plotting.available():
        raise InputError("the picture", "matplotlib is not installed", "pip install 'vnet_fast[plots]'")
    grid = Grid.of(image)
    masks = {name: _radiological(grid.image_from(voxels.astype(np.uint8))) for name, voxels in structures}
    image = sitk.DICOMOrient(image, "LPS")
    values, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()
    whole = np.any(list(masks.values()), axis=0).astype(np.uint8)
    slices = choose_slices(whole)
    rows, columns = crop_around([whole], slices, spacing)
    values, limits = values[:, rows, columns], intensity_limits(values, slices)

    theme = plotting.LIGHT
    figure = plotting.make_figure(WIDTH, 0.9 + height_of_row(values, spacing), theme)
    for axes, z in zip(figure.subplots(1, 3), slices, strict=True):
        show_slice(axes, values, z, limits, spacing, theme.text)
        for style, mask in zip(_styles(masks), masks.values(), strict=True):
            draw_contours(axes, mask[z, rows, columns], style)
    if title:
        figure.suptitle(plotting.escape(title), fontsize=11, color=theme.text)
    _add_legend(figure, masks)
    return _shown(figure)


def _radiological(mask: sitk.Image) -> NDArray[np.uint8]:
    return sitk.GetArrayFromImage(sitk.DICOMOrient(mask, "LPS"))


def _styles(names: Iterable[str]) -> list[ContourStyle]:
    colours = [colour_of(number) for number, _ in enumerate(names, start=1)]
    return [ContourStyle("#" + "".join(f"{round(255 * part):02x}" for part in colour), "solid") for colour in colours]


def _add_legend(figure: "Figure", names: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    names = list(names)
    handles = [
        Line2D([], [], color=style.color, label=plotting.escape(name))
        for name, style in zip(names, _styles(names), strict=True)
    ]
    plotting.add_legend(figure, plotting.LIGHT, handles=handles, ncols=min(6, len(handles)))


def _shown(figure: "Figure") -> "Figure":
    """A figure that a notebook shows as PNG, which others are only if pyplot's backend for notebooks is in use."""
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]  # what notebooks look for
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=plotting.DPI)
    return buffer.getvalue()
