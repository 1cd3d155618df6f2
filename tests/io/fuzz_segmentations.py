"""Damages DICOM Segmentations at random and reads them, in a process of its own, as `fuzz_volumes` does with volumes.

    python -m tests.io.fuzz_segmentations KIND SEED COUNT FOLDER

KIND is `elements`, whose damage is anywhere, or `places`, whose damage is in the text of numbers, so that more of it
is read. What is read must be what pydicom alone finds in the damaged file.
"""

import faulthandler
import random
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk

from tests.io.dicom_slices import write_series
from tests.io.fuzz_volumes import SECONDS_A_CASE, damage_bytes
from tests.io.segmentation_files import decode, make_labels, make_volume, write_segmentation
from vnet_fast.errors import InputError
from vnet_fast.io import volumes

# of a position that may be off, in voxels: what the reader allows, of the small spacing of these volumes
OFF = 0.25
NUMBER = re.compile(rb"-?[0-9]+\.[0-9]{2,}")


def describe(path, image):
    """The labels in a file on the grid of an image, by pydicom alone; None if they are no valid mask."""
    try:
        dataset = pydicom.dcmread(path)
        labels = np.zeros(image.GetSize()[::-1], np.uint8)
        for number, position, frame in decode(dataset):
            place = np.array(image.TransformPhysicalPointToContinuousIndex(position))
            index = round(place[2])
            if np.abs(place - (0, 0, index)).max() > OFF or index < 0 or (labels[index][frame > 0] > 0).any():
                return None
            labels[index][frame > 0] = number
    # whatever pydicom raises, the file is none that can be read
    except Exception:
        return None
    return labels


def damage_places(content, draw):
    """Changes a digit of a number in decimals: a position, a direction or a spacing."""
    numbers = list(NUMBER.finditer(content))
    at = draw.choice(range(*draw.choice(numbers).span()))
    return content[:at] + draw.choice(b"0123456789-").to_bytes(1, "big") + content[at + 1 :]


def main(kind, seed, count, folder):
    """Damages and reads `count` files."""
    folder = Path(folder)
    series = write_series(folder / "series", make_volume())
    image, labels = volumes.read_image(series), make_labels()
    path = write_segmentation(folder / "x.dcm", series, labels)
    content = path.read_bytes()
    warnings.simplefilter("ignore")
    for number in range(int(count)):
        draw = random.Random(f"{kind} {seed} {number}")
        damaged = content
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            damaged = damage_bytes(damaged or b" ", draw) if kind == "elements" else damage_places(damaged, draw)
        path.write_bytes(damaged)
        print(number, ".dcm", end="\t", flush=True)
        faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
        try:
            read = sitk.GetArrayFromImage(volumes.read_mask(path, image))
        except InputError as error:
            outcome, message = "refused", str(error)
        except Exception as error:
            outcome, message = type(error).__name__, str(error)
        else:
            described, message = describe(path, image), ""
            same = described is not None and np.array_equal(read, described)
            outcome = "original" if np.array_equal(read, labels) else "described" if same else "misread"
        faulthandler.cancel_dump_traceback_later()
        print(outcome, ascii(message[:300]), sep="\t", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
