"""Reads a file of `torch.save` without running any code from it, and without allocating more than it holds.

The file is a ZIP archive of a pickle and the bytes of its tensors. `torch.load` verifies no checksum, and believes
what the pickle says about sizes. Here every record is verified by its checksum, and the pickle is followed by an
interpreter of the few instructions that `torch.save` writes for numbers, texts, containers and float32 tensors.

Source:
    PyTorch's torch/serialization.py, and the description of opcodes in Python's pickletools.
"""

import errno
import math
import pickletools
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vnet_fast.stored import open_regular

CHUNK = 1 << 20
# of the pickle, hundreds of times that of a run
MAX_PICKLE_BYTES = 16 << 20
MAX_AXES = 8
MAPPING, REBUILD, FLOAT = "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage"
ITEM_BYTES = 4
PUSH_ARGUMENT = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLE_LENGTHS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class ArchiveError(ValueError):
    """A file is no archive of a checkpoint, with the reason in words."""


class Name(str):
    """A name of Python's in a pickle, which is never looked up."""


class Records:
    """The records of an archive, each of which is as long in the file as in memory.

    Args:
        archive: an open archive.
        length: bytes of its file.

    Raises:
        ArchiveError: if a record is compressed, occurs twice, or they are longer than the file together.
    """

    def __init__(self, archive: zipfile.ZipFile, length: int) -> None:
        self.archive, self.members = archive, archive.infolist()
        self.by_name = {member.filename: member for member in self.members}
        if len(self.by_name) < len(self.members):
            raise ArchiveError("a record occurs twice")
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size != m.compress_size for m in self.members):
            raise ArchiveError("a record is compressed")
        self.total = sum(member.file_size for member in self.members)
        if self.total > length:
            raise ArchiveError("its records are longer than the file")
        # torch.save names the folder of the records after the file
        (self.root,) = {name.partition("/")[0] for name in self.by_name}
        self.read_ones: set[str] = set()

    def size(self, name: str) -> int:
        """Bytes of a record."""
        return self.by_name[f"{self.root}/{name}"].file_size

    def read_into(self, name: str, target: memoryview) -> None:
        """Reads a record into memory of its size, and verifies its checksum."""
        with self.archive.open(self.by_name[f"{self.root}/{name}"]) as file:
            for start in range(0, len(target), CHUNK):
                part = target[start : start + CHUNK]
                if file.readinto(part) != len(part):  # type: ignore[attr-defined]  # missing in its types
                    raise EOFError(name)
        self.read_ones.add(name)

    def read(self, name: str) -> bytes:
        """A record, of which the checksum is verified."""
        content = bytearray(self.size(name))
        self.read_into(name, memoryview(content))
        return bytes(content)

    def verify_others(self) -> None:
        """Verifies the checksums of the records that nothing has read."""
        for name in self.by_name:
            if name.partition("/")[2] not in self.read_ones:
                with self.archive.open(name) as file:
                    while file.read(CHUNK):
                        pass


class Interpreter:
    """Follows a pickle.

    Args:
        records: of the archive, for the tensors.
    """

    def __init__(self, records: Records) -> None:
        self.records = records
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Tensor] = {}
        self.elements = 0

    def run(self, content: bytes) -> Any:
        """The object that a pickle describes.

        Raises:
            ArchiveError: if it is of a kind that no checkpoint holds.
            LookupError, TypeError, ValueError, EOFError: if it is damaged.
        """
        for opcode, argument, _ in pickletools.genops(content):
            self._follow(opcode.name, argument)
        (result,) = self.stack
        return result

    def _follow(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in PUSH_ARGUMENT:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "GLOBAL":
            stack.append(_allowed(argument))
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "TUPLE" or name in TUPLE_LENGTHS:
            stack.append(tuple(self._pop(TUPLE_LENGTHS.get(name))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1 if name == "APPEND" else None)
            _of_type(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2 if name == "SETITEM" else None)
            _set_items(_of_type(stack[-1], dict), items)
        elif name == "BUILD":
            # what a network notes about the version of its state
            stack.pop()
            _of_type(stack[-1], dict)
        elif name == "BINPERSID":
            stack.append(self._storage(*_of_type(stack.pop(), tuple)))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name not in ("PROTO", "STOP"):
            raise ArchiveError(f"has the instruction {name}")

    def _pop(self, count: int | None) -> list[Any]:
        """The last `count` objects of the stack, or those after the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < 0:
            raise LookupError("the stack is empty")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _call(self, function: object, arguments: Any) -> Any:
        _of_type(arguments, tuple)
        if function is NAMES[MAPPING] and not arguments:
            return {}
        if function is not NAMES[REBUILD]:
            raise ArchiveError("calls what is no function of a checkpoint")
        storage, offset, size, stride, requires_grad, hooks = arguments
        if not isinstance(storage, Tensor) or requires_grad or hooks:
            raise ArchiveError("has a tensor without its numbers")
        return self._tensor(storage, offset, size, stride)

    def _storage(self, kind: str, dtype: object, key: str, location: str, length: int) -> Tensor:
        """The numbers of tensors, from a record; the place where they were is not needed."""
        if kind != "storage" or dtype is not NAMES[FLOAT]:
            raise ArchiveError("has a tensor that is not of float32")
        if _of_type(key, str) not in self.storages:
            name = f"data/{key}"
            if type(length) is not int or self.records.size(name) != length * ITEM_BYTES:
                raise ArchiveError("has a tensor of another size than its record")
            self.storages[key] = torch.empty(length, dtype=torch.float32)
            if length:
                self.records.read_into(name, self.storages[key].numpy().view("u1").data)
        return self.storages[key]

    def _tensor(self, storage: Tensor, offset: Any, size: Any, stride: Any) -> Tensor:
        if not (_are_lengths((offset,)) and _are_lengths(size) and _are_lengths(stride) and len(size) == len(stride)):
            raise ArchiveError("has a tensor of an odd shape")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        # tensors that share or repeat their numbers could need more memory than the file has
        self.elements += count
        if self.elements * ITEM_BYTES > self.records.total or count > len(storage) or (count and last >= len(storage)):
            raise ArchiveError("has a tensor that is larger than its numbers")
        return storage.as_strided(size, stride, offset) if count else torch.empty(size)


NAMES = {name: Name(name) for name in (MAPPING, REBUILD, FLOAT)}


def _allowed(name: str) -> Name:
    if name not in NAMES:
        raise ArchiveError(f"names {ascii(name.replace(' ', '.'))[1:-1][:60]}")
    return NAMES[name]


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    return value


def _set_items(target: dict[Any, Any], items: list[Any]) -> None:
    keys, values = items[::2], items[1::2]
    # Python compares nested keys by recursion
    if any(type(key) not in (str, int) for key in keys):
        raise ArchiveError("has a name that is neither text nor number")
    target.update(zip(keys, values, strict=True))


def _are_lengths(values: Any) -> bool:
    return type(values) is tuple and len(values) <= MAX_AXES and all(type(n) is int and 0 <= n < 2**62 for n in values)


def read_archive(path: str | Path) -> Any:
    """The object in a file of `torch.save`.

    Returns:
        dicts, lists, tuples, numbers, texts, None, and float32 tensors on the host.

    Raises:
        OSError: if the file can't be read.
        ArchiveError: if it holds anything else.
        Exception: if it is damaged, one of many kinds.
    """
    with open_regular(path) as file:
        try:
            return _read_records(file)
        except OSError as error:
            # a place before the beginning of the file
            if error.errno == errno.EINVAL:
                raise ArchiveError("its list of records is damaged") from None
            raise


def _read_records(file: IO[bytes]) -> Any:
    length = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        records = Records(archive, length)
        if f"{records.root}/byteorder" in records.by_name and records.read("byteorder") != sys.byteorder.encode():
            raise ArchiveError("was written by a machine with another order of bytes")
        if records.size("data.pkl") > MAX_PICKLE_BYTES:
            raise ArchiveError("its description is too long")
        result = Interpreter(records).run(records.read("data.pkl"))
        records.verify_others()
    return result
