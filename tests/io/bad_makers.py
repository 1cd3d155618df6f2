"""Makers of bad cases. A maker is called with the folder, the case's name and a generator; it writes
the image and its mask.
"""

import gzip
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.io.dicom_slices import SAGITTAL, write_dicom
from tests.volumes import make_image

SIZE = (8, 7, 6)
MASK = "_segmentation.mha"


@dataclass(frozen=True)
class Bad:
    """A bad case.

    Args:
        make: its maker.
        words: what must be said.
        file: what follows the case's name in the file that is to be named.
    """

    make: object
    words: str
    file: str


def voxels(generator, size=SIZE):
    """Random (z, y, x) int16."""
    return generator.integers(0, 1000, size[::-1], dtype=np.int16)


def write_mask(folder, name, array=None, **place):
    """Writes a mask with one voxel set, or an array."""
    if array is None:
        array = np.zeros(SIZE[::-1], np.uint8)
        array[2:4, 3:5, 3:5] = 1
    sitk.WriteImage(make_image(array, **{"spacing": (1, 1, 2), **place}), str(folder / f"{name}{MASK}"))


def sound(folder, name, generator, suffix=".mha", compressed=False):
    """Writes a sound case: the paths of the image and of the file that holds its voxels."""
    path = folder / f"{name}{suffix}"
    sitk.WriteImage(make_image(voxels(generator), (1, 1, 2)), str(path), useCompression=compressed)
    write_mask(folder, name)
    beside = [path.with_suffix(end) for end in (".raw", ".zraw", ".raw.gz")]
    return path, next((data for data in beside if suffix in (".mhd", ".nhdr") and data.exists()), path)


def bytes_of(change, suffix, words, compressed=False, file=None):
    """A case whose voxels' file has its bytes changed."""

    def make(folder, name, generator):
        data = sound(folder, name, generator, suffix, compressed)[1]
        data.write_bytes(change(data.read_bytes()))

    return Bad(make, words, file or suffix)


def text_of(old, new, words, suffix=".mhd", file=None):
    """A case whose header has a text replaced; NAME in it is the case's."""

    def make(folder, name, generator):
        path, _ = sound(folder, name, generator, suffix, compressed=suffix == ".nhdr")
        content = path.read_bytes()
        before, after = (text.replace("NAME", name).encode() for text in (old, new))
        assert before in content, (before, content[:600])
        path.write_bytes(content.replace(before, after))

    return Bad(make, words, file or suffix)


def number_of(form, place, value, words, suffix=".nii.gz"):
    """A NIfTI case whose header has a number, or several, replaced."""

    def make(folder, name, generator):
        path, _ = sound(folder, name, generator, suffix, compressed=True)
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(form, content, place, *np.atleast_1d(value).tolist())
        path.write_bytes(gzip.compress(bytes(content)))

    return Bad(make, words, suffix)


def image_of(create, words, suffix=".mha"):
    """A case whose image is what `create` makes of a sound array."""

    def make(folder, name, generator):
        sitk.WriteImage(create(voxels(generator)), str(folder / f"{name}{suffix}"))
        write_mask(folder, name)

    return Bad(make, words, suffix)


def mask_of(words, array=None, **place):
    """A case whose mask has another place, or is an array."""

    def make(folder, name, generator):
        sound(folder, name, generator)
        write_mask(folder, name, array, **place)

    return Bad(make, words, MASK)


def labelled(value, dtype=np.float32):
    """A mask with one voxel of a value."""
    array = np.zeros(SIZE[::-1], dtype)
    array[2, 3, 4] = value
    return array


def no_file(create, words, part=".mha", file=None):
    """A case in which `create` makes something that is no file in the place of one."""

    def make(folder, name, generator):
        sound(folder, name, generator, ".mhd" if part == ".raw" else ".mha")
        place = folder / f"{name}{part}"
        place.unlink()
        create(place)

    return Bad(make, words, file or part)


def slices(write, words, file=""):
    """A case that is a folder of DICOM slices."""

    def make(folder, name, generator):
        write(folder / name, int(generator.integers(1 << 30)))
        write_mask(folder, name)

    return Bad(make, words, file)


def bind_socket(path):
    """Makes a socket, whose path may not be long."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def spiked(array):
    """An image with three voxels NaN and two infinite."""
    array = array.astype(np.float32)
    array[0, 0, :3], array[1, 1, :2] = np.nan, -np.inf
    return make_image(array, (1, 1, 2))


def flip(content):
    """Damages the middle of a stream."""
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 20]) + content[middle + 20 :]


def two_series(folder, seed):
    write_dicom(folder, (0, 3, 6), seed=seed)
    write_dicom(folder, (0, 3, 6), series="1.2.3.5", seed=seed)


def two_orientations(folder, seed):
    write_dicom(folder, (0, 3, 6), seed=seed)
    write_dicom(folder, (0, 3, 6), axes=SAGITTAL, seed=seed + 1)
    for index, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"a{index}.dcm")
    write_dicom(folder, (0, 3, 6), seed=seed)


def with_a(name, content):
    """Slices with a file of a name and content among them."""

    def write(folder, seed):
        write_dicom(folder, (0, 3, 6), seed=seed)
        (folder / name).write_bytes(content)

    return write


def cut_slice(folder, seed):
    path = write_dicom(folder, (0, 3, 6), seed=seed) / "1.2.3.4-1.dcm"
    path.write_bytes(path.read_bytes()[:-40])


def fifo_slice(folder, seed):
    os.mkfifo(write_dicom(folder, (0, 3, 6), seed=seed) / "x.dcm")


def only(part):
    """An image or a mask alone."""

    def make(folder, name, generator):
        sound(folder, name, generator)
        (folder / f"{name}{'.mha' if part == MASK else MASK}").unlink()

    return make


def make_bomb(content):
    """A stream of kilobytes that unpacks to a hundred megabytes."""
    return gzip.compress(gzip.decompress(content) + bytes(100 << 20), 1)
