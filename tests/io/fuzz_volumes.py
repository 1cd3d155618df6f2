"""Damages small volumes at random and reads them, in a process of its own.

A crash or an endless loop of a native library ends the process, and the last line shows the case.

    python -m tests.io.fuzz_volumes headers|streams SEED COUNT FOLDER [itk]

Prints a line for each case: number, suffix, outcome (`refused`, `original`, `described`, `misread`, or the name of
an exception), and the message. With `itk`, SimpleITK alone reads the files: this shows that a misread is detected.
"""

import faulthandler
import gzip
import random
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tests.io.describe_volumes import describe
from vnet_fast.errors import InputError
from vnet_fast.io import volumes

SECONDS_A_CASE = 10
# suffix, whether the voxels are compressed, and the order of bytes
HEADERS = ((".mhd", False, "<"), (".mhd", True, "<"), (".mha", False, "<"), (".mha", True, "<"), (".mha", False, ">"),
           (".nrrd", False, "<"), (".nrrd", True, "<"), (".nrrd", False, ">"), (".nhdr", True, "<"),
           (".nii", False, "<"), (".nii.gz", True, "<"))  # fmt: skip
STREAMS = ((".nii.gz", True, "<"), (".mhd", True, "<"), (".mha", True, "<"), (".nrrd", True, "<"),
           (".nhdr", True, "<"))  # fmt: skip
NASTY_WORDS = (b"0", b"-1", b"nan", b"inf", b"1e15", b"1000000000000000", b"1e-9", b"1e400", b"", b"0x10", b"1,5",
               b"5 5", b"1.5", b"2", b"99999999999999999999", b"../x", b"/etc/hostname", b"LIST", b"True", b"None",
               b"MET_USHORT", b"MET_FLOAT", b"big", b"%s%n", b"x" * 5000)  # fmt: skip
NASTY_NUMBERS = (0, -1, 1, 2, 3, 4, 5, 7, 8, 16, 64, 127, 255, 348, 512, 1024, 32767, -32768)
NASTY_FLOATS = (0.0, -1.0, 1.0, 2.0, 0.5, 352.0, 353.0, float("nan"), float("inf"), 1e-9, 1e30, -0.5)
NIFTI_HEADER_BYTES = 348


def damage_bytes(content, draw):
    """Changes one byte or a few."""
    at, length = draw.randrange(len(content)), draw.choice((1, 1, 2, 8))
    kind = draw.randrange(6)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + draw.randbytes(length) + content[at + length :]
    if kind == 2:
        return content[:at] + content[at + length :]
    if kind == 3:
        return content[:at] + draw.randbytes(length) + content[at:]
    if kind == 4:
        return content[:at]
    return content[:at] + content[at : at + length] + content[at:]


def damage_text(content, draw):
    """Changes bytes, a line or a word of a text header."""
    lines = content.split(b"\n")
    at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    kind = draw.randrange(9)
    if kind < 3:
        return damage_bytes(content, draw)
    if kind == 3:
        del lines[at]
    elif kind == 4:
        lines.insert(other, lines[at])
    elif kind == 5:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 6:
        lines[at] = lines[at].swapcase()
    elif kind == 7:
        key, sign, _ = lines[at].partition(b"=" if b"=" in lines[at] else b":")
        lines[at] = key + sign + b" " + draw.choice(NASTY_WORDS)
    else:
        words = lines[at].split(b" ")
        words[draw.randrange(len(words))] = draw.choice(NASTY_WORDS)
        lines[at] = b" ".join(words)
    return b"\n".join(lines)


def damage_binary(content, draw):
    """Changes bytes or a number of a NIfTI header."""
    kind = draw.randrange(4)
    if kind == 0:
        return damage_bytes(content, draw)
    if kind == 1:
        at = draw.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    form, value = ("<h", draw.choice(NASTY_NUMBERS)) if kind == 2 else ("<f", draw.choice(NASTY_FLOATS))
    size = struct.calcsize(form)
    at = draw.randrange(36, NIFTI_HEADER_BYTES, size)
    return content[:at] + struct.pack(form, value) + content[at + size :]


def damage_header(path, draw):
    """Damages the header of the volume at `path` one to three times, but not its voxels."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if path.suffix in (".nii", ".gz"):
        end, damage = NIFTI_HEADER_BYTES, damage_binary
    else:
        end = content.find(b"\n", content.find(b"ElementDataFile")) if b"ElementDataFile" in content else -1
        end, damage = end if end > 0 else (content + b"\n\n").index(b"\n\n"), damage_text
    header, rest = content[:end], content[end:]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        header = damage(header or b" ", draw)
    path.write_bytes(gzip.compress(header + rest, 1) if path.suffix == ".gz" else header + rest)


def damage_stream(path, draw):
    """Damages the compressed data of the volume at `path` one to three times."""
    data = next((p for s in (".zraw", ".raw.gz") if (p := path.with_suffix(s)).exists()), path)
    content = data.read_bytes()
    start = {".mha": content.find(b"LOCAL\n") + 6, ".nrrd": content.find(b"\n\n") + 2}.get(data.suffix, 0)
    stream = content[start:]
    if draw.random() < 0.05:
        stream += draw.choice((stream, b"\0" * 600, b"x", gzip.compress(b"more")))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        stream = damage_bytes(stream or b" ", draw)
    data.write_bytes(content[:start] + stream)


def write_originals(folder):
    """Writes a small volume in each kind of file, and returns a dict from the kind to the folder."""
    array = np.random.default_rng(0).integers(-300, 3000, (3, 4, 5), dtype=np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((10, -20, 30))
    image.SetDirection((0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1))
    originals = {}
    for kind in {*HEADERS, *STREAMS}:
        suffix, compressed, order = kind
        kind_folder = folder / f"original{''.join(map(str, kind))}"
        kind_folder.mkdir()
        path = kind_folder / f"x{suffix}"
        sitk.WriteImage(image, str(path), useCompression=compressed)
        if order == ">":
            header = path.read_bytes()[: -array.nbytes]
            header = header.replace(b"MSB = False", b"MSB = True").replace(b"endian: little", b"endian: big")
            path.write_bytes(header + array.byteswap().tobytes())
        originals[kind] = kind_folder
    return originals


def read_by_itk(path):
    """Reads a file with SimpleITK alone."""
    try:
        return sitk.ReadImage(str(path), sitk.sitkFloat32)
    except RuntimeError as error:
        raise InputError(path, str(error), "") from None


def read_damaged(path, original, read_image):
    """Reads a damaged file and compares with the original and with its own description: (outcome, message)."""
    described = describe(path)
    try:
        image = read_image(path)
    except InputError as error:
        return "refused", str(error)
    except Exception as error:
        return type(error).__name__, str(error)
    read = (sitk.GetArrayFromImage(image).astype(np.float64), image.GetSpacing(), image.GetOrigin(),
            image.GetDirection())  # fmt: skip
    if original.matches(*read):
        return "original", ""
    return "described" if described and described.matches(*read) else "misread", str(read[1:])


def main(target, seed, count, folder, reader="vnet_fast"):
    """Damages and reads `count` files."""
    folder = Path(folder)
    originals = write_originals(folder)
    kinds, damage = (HEADERS, damage_header) if target == "headers" else (STREAMS, damage_stream)
    read_image = read_by_itk if reader == "itk" else volumes.read_image
    original = describe(originals[".nii", False, "<"] / "x.nii")
    for number in range(int(count)):
        draw = random.Random(f"{target} {seed} {number}")
        kind = kinds[number % len(kinds)]
        case = folder / "case"
        shutil.copytree(originals[kind], case)
        path = case / f"x{kind[0]}"
        print(number, kind[0], end="\t", flush=True)
        # a timer of Python's would not do: a native library that hangs holds the interpreter's lock
        faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
        damage(path, draw)
        outcome, message = read_damaged(path, original, read_image)
        faulthandler.cancel_dump_traceback_later()
        print(outcome, ascii(message[:300]), sep="\t", flush=True)
        shutil.rmtree(case)


if __name__ == "__main__":
    main(*sys.argv[1:])
