"""Makers of bad cases: functions of a folder, a case's name and a generator that write the image and its mask."""

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
        message: part of the error's message.
        file: what follows the case's name in the path that the message must name.
    """

    make: object
    message: str
    file: str


def voxels(generator, size=SIZE):
    """Random (z, y, x) int16."""
    return generator.integers(0, 1000, size[::-1], dtype=np.int16)


def write_mask(folder, name, array=None, **placement):
    """Writes a small mask, or the given (z, y, x) array."""
    if array is None:
        array = np.zeros(SIZE[::-1], np.uint8)
        array[2:4, 3:5, 3:5] = 1
    sitk.WriteImage(make_image(array, **{"spacing": (1, 1, 2), **placement}), str(folder / f"{name}{MASK}"))


def write_sound_case(folder, name, generator, suffix=".mha", compressed=False):
    """Writes a sound case, and returns the paths of the image and of the file that holds its voxels."""
    path = folder / f"{name}{suffix}"
    sitk.WriteImage(make_image(voxels(generator), (1, 1, 2)), str(path), useCompression=compressed)
    write_mask(folder, name)
    data_files = [path.with_suffix(end) for end in (".raw", ".zraw", ".raw.gz")]
    return path, next((data for data in data_files if suffix in (".mhd", ".nhdr") and data.exists()), path)


def changed_bytes(change, suffix, message, compressed=False, file=None):
    """A case with changed bytes in the file that holds its voxels."""

    def make(folder, name, generator):
        data = write_sound_case(folder, name, generator, suffix, compressed)[1]
        data.write_bytes(change(data.read_bytes()))

    return Bad(make, message, file or suffix)


def changed_header(old, new, message, suffix=".mhd", file=None):
    """A case with a text replaced in its header; NAME stands for the case's name."""

    def make(folder, name, generator):
        path, _ = write_sound_case(folder, name, generator, suffix, compressed=suffix == ".nhdr")
        content = path.read_bytes()
        before, after = (text.replace("NAME", name).encode() for text in (old, new))
        assert before in content, (before, content[:600])
        path.write_bytes(content.replace(before, after))

    return Bad(make, message, file or suffix)


def changed_number(number_format, position, value, message, suffix=".nii.gz"):
    """A NIfTI case with one or several numbers replaced in its header."""

    def make(folder, name, generator):
        path, _ = write_sound_case(folder, name, generator, suffix, compressed=True)
        content = bytearray(gzip.decompress(path.read_bytes()))
        struct.pack_into(number_format, content, position, *np.atleast_1d(value).tolist())
        path.write_bytes(gzip.compress(bytes(content)))

    return Bad(make, message, suffix)


def bad_image(create, message, suffix=".mha"):
    """A case with the image that `create` returns for a sound array."""

    def make(folder, name, generator):
        sitk.WriteImage(create(voxels(generator)), str(folder / f"{name}{suffix}"))
        write_mask(folder, name)

    return Bad(make, message, suffix)


def bad_mask(message, array=None, **placement):
    """A case whose mask has another placement, or is the given array."""

    def make(folder, name, generator):
        write_sound_case(folder, name, generator)
        write_mask(folder, name, array, **placement)

    return Bad(make, message, MASK)


def labelled(value, dtype=np.float32):
    """A mask with one voxel of a value."""
    array = np.zeros(SIZE[::-1], dtype)
    array[2, 3, 4] = value
    return array


def no_regular_file(create, message, part=".mha", file=None):
    """A case in which `create` replaces a file by something that is not a regular file."""

    def make(folder, name, generator):
        write_sound_case(folder, name, generator, ".mhd" if part == ".raw" else ".mha")
        path = folder / f"{name}{part}"
        path.unlink()
        create(path)

    return Bad(make, message, file or part)


def bad_series(write, message, file=""):
    """A case that is a folder of DICOM slices."""

    def make(folder, name, generator):
        write(folder / name, int(generator.integers(1 << 30)))
        write_mask(folder, name)

    return Bad(make, message, file)


def make_socket(path):
    """Makes a socket; its path must be short, so it is bound from its own folder."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


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


def with_extra_file(name, content):
    """Slices with an extra file among them."""

    def write(folder, seed):
        write_dicom(folder, (0, 3, 6), seed=seed)
        (folder / name).write_bytes(content)

    return write


def cut_slice(folder, seed):
    path = write_dicom(folder, (0, 3, 6), seed=seed) / "1.2.3.4-1.dcm"
    path.write_bytes(path.read_bytes()[:-40])


def fifo_slice(folder, seed):
    os.mkfifo(write_dicom(folder, (0, 3, 6), seed=seed) / "x.dcm")


def unpaired(part):
    """An image without its mask, or a mask without its image."""

    def make(folder, name, generator):
        write_sound_case(folder, name, generator)
        (folder / f"{name}{'.mha' if part == MASK else MASK}").unlink()

    return make


def make_bomb(content):
    """A stream of some kilobytes that unpacks to a hundred megabytes."""
    return gzip.compress(gzip.decompress(content) + bytes(100 << 20), 1)
