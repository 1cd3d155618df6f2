"""The label descriptions of ITK-SNAP beside predicted masks: names and colours of their labels.

ITK-SNAP reads them by Segmentation > Import Label Descriptions. They have the colours that 3D Slicer finds in masks in
NRRD, and that the report's viewer has.

Source:
    the files that ITK-SNAP 4 writes: index, red, green, blue (0 to 255), alpha (0 to 1), two flags (visible in slices,
    visible in 3-D) and the name in quotation marks, on a line for each label.
"""

from collections.abc import Mapping
from pathlib import Path

from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.io.label_names import colour_of, on_one_line
from vnet_fast.progress import note
from vnet_fast.text_table import printable

NAME = "labels.label"
ANOTHER_OUTPUT = "Choose another --output"
# by the first line other programs know the format, and by the second we know a file that may be replaced
HEADER = (
    "# ITK-SnAP Label Description File",
    "# Written by vnet_fast",
    "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
)


def write_descriptions(folder: Path, names: Mapping[int, str]) -> None:
    """Writes the label descriptions into a folder of masks, and says so if another program's file is kept.

    Without names nothing is written, and those of another network, which would be wrong here, are removed.

    Args:
        folder: of the masks.
        names: dict from label, 1 and up, to name.

    Raises:
        InputError: if the file can't be written or removed.
    """
    path = folder / NAME
    if not names:
        _remove(path)
    elif not path.exists() or _is_ours(path):
        write_text(path, descriptions(names), ANOTHER_OUTPUT)
    else:
        note(printable(f"{path}: kept, because vnet_fast did not write it"))


def descriptions(names: Mapping[int, str]) -> str:
    """The text of a file of label descriptions.

    Args:
        names: dict from label, 1 and up, to name.
    """
    rows = [(0, (0.0, 0.0, 0.0), 0, "Clear Label"), *((n, colour_of(n), 1, name) for n, name in names.items())]
    lines = []
    for label, colour, shown, name in rows:
        red, green, blue = (round(255 * value) for value in colour)
        # a quotation mark would end the name
        text = on_one_line(name).replace('"', "'")
        lines.append(f'{label:5} {red:5} {green:4} {blue:4} {shown:8} {shown:2} {shown:2}    "{text}"')
    return "\n".join([*HEADER, *lines]) + "\n"


def _remove(path: Path) -> None:
    if _is_ours(path):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(path, f"can't be removed ({error.strerror})", ANOTHER_OUTPUT) from None


def _is_ours(path: Path) -> bool:
    ours = "\n".join(HEADER[:2]).encode()
    try:
        with open(path, "rb") as file:
            return file.read(len(ours)) == ours
    except OSError:
        return False
