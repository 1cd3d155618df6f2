"""Small parsers of volumes, independent of the program's, with which the fuzz test compares.

They know only files as SimpleITK writes them. For a damaged header with anything else they return None; such a file
must be refused, or read as it was before the damage.
"""

import gzip
import math
import re
import zlib
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4",
              "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # fmt: skip
NRRD_TYPES = {"signed char": "i1", "unsigned char": "u1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4",
              "uint": "u4", "float": "f4", "double": "f8", "int8": "i1", "int16": "i2"}  # fmt: skip
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass
class Description:
    """Voxels (z, y, x), and (spacing, origin, direction), several if the file states them in several ways."""

    voxels: np.ndarray
    placements: list

    def matches(self, voxels, spacing, origin, direction):
        """Returns whether this is what was read."""
        return (
            voxels.shape == self.voxels.shape
            and np.allclose(voxels, self.voxels, rtol=1e-5, atol=0)
            and any(
                np.allclose(spacing, s, rtol=1e-3, atol=0)
                and np.allclose(origin, o, rtol=1e-5, atol=2e-3)
                and np.allclose(direction, d, rtol=0, atol=2e-3)
                for s, o, d in self.placements
            )
        )


def describe(path):
    """Returns the Description of a file, or None if the parser does not understand all of it."""
    by_suffix = {".mhd": _meta, ".mha": _meta, ".nrrd": _nrrd, ".nhdr": _nrrd, ".nii": _nifti, ".gz": _nifti}
    try:
        return by_suffix[path.suffix](path)
    except (ValueError, KeyError, IndexError, AttributeError, OSError, EOFError, zlib.error, OverflowError):
        return None


def _voxels(data, kind, size):
    if len(size) != 3 or min(size) < 1 or math.prod(size) * np.dtype(kind).itemsize != len(data):
        raise ValueError
    return np.frombuffer(data, kind).reshape(size[::-1]).astype(np.float64)


def _numbers(text, count):
    parts = text.split()
    if len(parts) != count or not all(re.fullmatch(NUMBER, part) for part in parts):
        raise ValueError
    return [float(part) for part in parts]


def _meta(path):
    content = path.read_bytes()
    header = content[: content.index(b"\n", content.index(b"\nElementDataFile = ") + 1)]
    lines = header.decode("latin-1").split("\n")
    fields = {name.strip(): value.strip() for name, value in (line.split(" = ") for line in lines)}
    defaults = {"Offset", "TransformMatrix", "BinaryDataByteOrderMSB", "BinaryData", "CompressedData"}
    optional = {*defaults, "CenterOfRotation", "CompressedDataSize", "AnatomicalOrientation", "ObjectType"}
    needed = {"NDims", "ElementSpacing", "DimSize", "ElementType", "ElementDataFile"}
    if len(fields) != len(lines) or not needed <= fields.keys() or fields["NDims"] != "3":
        raise ValueError
    # an unknown name may be the damaged name of a field that is missing
    if not fields.keys() <= needed | optional and not defaults <= fields.keys():
        raise ValueError
    if fields.get("BinaryData", "True") != "True":
        raise ValueError
    name = fields["ElementDataFile"]
    if name == "LOCAL":
        data = content[content.index(b"\n", content.index(b"ElementDataFile = ")) + 1 :]
    else:
        if "/" in name:
            raise ValueError
        data = (path.parent / name).read_bytes()
    if {"True": True, "False": False}[fields.get("CompressedData", "False")]:
        if "CompressedDataSize" in fields and _numbers(fields["CompressedDataSize"], 1) != [len(data)]:
            raise ValueError
        data = zlib.decompress(data)
    order = {"True": ">", "False": "<"}[fields.get("BinaryDataByteOrderMSB", "False")]
    kind = order + META_TYPES[fields["ElementType"].removeprefix("MET_")]
    voxels = _voxels(data, kind, [int(word) for word in fields["DimSize"].split()])
    columns = np.array(_numbers(fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1"), 9)).reshape(3, 3)
    placement = _numbers(fields["ElementSpacing"], 3), _numbers(fields.get("Offset", "0 0 0"), 3), columns.T.ravel()
    return Description(voxels, [placement])


def _nrrd(path):
    header, _, data = path.read_bytes().partition(b"\n\n")
    magic, *lines = header.decode("latin-1").strip("\n").split("\n")
    lines = [line for line in lines if not line.startswith("#")]
    fields = {name.lower(): value for name, value in (line.split(": ") for line in lines)}
    # upper and lower case are the same, except in the name of a file
    fields = {name: value if name == "data file" else value.lower() for name, value in fields.items()}
    optional = {"kinds", "space origin", "data file"}
    needed = {"type", "dimension", "space", "sizes", "space directions", "endian", "encoding"}
    if len(fields) != len(lines) or not needed <= fields.keys() <= needed | optional:
        raise ValueError
    if not re.fullmatch("NRRD000[1-5]", magic) or fields["dimension"] != "3":
        raise ValueError
    if fields.get("kinds", "domain domain domain").split() not in ([kind] * 3 for kind in ("domain", "space")):
        raise ValueError
    if "data file" in fields:
        if "/" in fields["data file"]:
            raise ValueError
        data = (path.parent / fields["data file"]).read_bytes()
    if {"gzip": True, "gz": True, "raw": False}[fields["encoding"]]:
        data = gzip.decompress(data)
    order = {"little": "<", "big": ">"}[fields["endian"]]
    voxels = _voxels(data, order + NRRD_TYPES[fields["type"]], [int(word) for word in fields["sizes"].split()])
    signs = {"left-posterior-superior": (1, 1, 1), "right-anterior-superior": (-1, -1, 1)}[fields["space"]]
    vector = rf"\(({NUMBER}),({NUMBER}),({NUMBER})\)"
    directions = re.fullmatch(" ".join([vector] * 3), fields["space directions"])
    origin = re.fullmatch(vector, fields.get("space origin", "(0,0,0)"))
    steps = np.array([float(word) for word in directions.groups()]).reshape(3, 3) * signs
    spacing = np.linalg.norm(steps, axis=1)
    with np.errstate(all="ignore"):
        direction = (steps / spacing[:, None]).T.ravel()
    return Description(voxels, [(spacing, np.array([float(w) for w in origin.groups()]) * signs, direction)])


def _nifti(path):
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    order = "<" if content[:4] == (348).to_bytes(4, "little") else ">"
    if int.from_bytes(content[:4], "little" if order == "<" else "big") != 348 or content[344:348] != b"n+1\0":
        raise ValueError

    def read(kind, position, count=1):
        return np.frombuffer(content, order + kind, count, position).astype(np.float64)

    axes, *lengths = read("i2", 40, 8).astype(int).tolist()
    if not 3 <= axes <= 7 or set(lengths[3:axes]) > {1}:
        raise ValueError
    kind, bits = NIFTI_TYPES[int(read("i2", 70)[0])], read("i2", 72)[0]
    start, slope, intercept = read("f4", 108, 3).tolist()
    if bits != 8 * np.dtype(kind).itemsize or start < 352 or start % 1:
        raise ValueError
    voxels = _voxels(content[int(start) :], order + kind, lengths[:3])
    if math.isfinite(slope) and slope != 0:
        voxels = voxels * slope + (intercept if math.isfinite(intercept) else 0)
    return Description(voxels, _nifti_placements(read, content[123] & 7))


def _nifti_placements(read, unit):
    scale = {0: 1, 1: 1000, 2: 1, 3: 0.001}[unit]
    handedness, *pixdim = read("f4", 76, 4).tolist()
    spacing, to_lps = np.array(pixdim) * scale, np.array([-1, -1, 1])
    placements = []
    with np.errstate(all="ignore"):
        if read("i2", 254)[0] > 0:
            affine = read("f4", 280, 12).reshape(3, 4) * to_lps[:, None] * scale
            lengths = np.linalg.norm(affine[:, :3], axis=0)
            placements.append((lengths, affine[:, 3], (affine[:, :3] / lengths).ravel()))
        if read("i2", 252)[0] > 0:
            b, c, d = read("f4", 256, 3)
            a = math.sqrt(max(0, 1 - b * b - c * c - d * d))
            matrix = Rotation.from_quat([b, c, d, a]).as_matrix() * [1, 1, -1 if handedness < 0 else 1]
            placements.append((spacing, read("f4", 268, 3) * to_lps * scale, (matrix * to_lps[:, None]).ravel()))
    return placements or [(spacing, (0, 0, 0), np.eye(3).ravel())]
