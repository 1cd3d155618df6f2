"""Changes of stored files for `fuzz_stored`, of their bytes and of what the bytes mean."""

import io
import json
import math
import os
import warnings
import zipfile

import numpy as np
import torch

from tests.io.fuzz_volumes import damage_bytes
from vnet_fast.data.cache_entry import compute_digest

HUGE_TEXT = "@huge@"
# in JSON, 10^5000 and what nests 100,000 times are written as text
RAW_TEXTS = ("9" * 5000, "-" + "9" * 5000, "[" * 100_000, '{"a":' * 100_000, "1e999", "NaN", "-Infinity", "01", "")
VALUES = (None, True, False, -1, 0, 1, 2, 3, 255, 256, 10**9, -(10**9), 2**31, 2**63, 10**400, 0.5, -0.5, 1e30, 1e308,
          math.inf, -math.inf, math.nan, "", "x", "5", "-1", "0", "ignore", "all", "auto", "--seed=5", "x" * 5000,
          "9" * 5000, "a\0b", "a\nb", "\ud800", "größe", [], {}, [1], [[1]], [1, 2, 3], [0, 0, 0], [16, 16, 16],
          ["a", "b"], {"a": 1}, {"": 0}, [[[[[[[[[[1]]]]]]]]]])  # fmt: skip


def is_equal(ours, theirs):
    """Whether two trees of plain values, tensors and arrays have the same values and types."""
    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, np.ndarray):
        alike = isinstance(theirs, np.ndarray) and (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        return alike and ours.tobytes() == theirs.tobytes()
    if isinstance(ours, dict):
        return (
            isinstance(theirs, dict)
            and list(ours) == list(theirs)
            and all(is_equal(ours[key], theirs[key]) for key in ours)
        )
    if isinstance(ours, list | tuple):
        return (
            type(ours) is type(theirs)
            and len(ours) == len(theirs)
            and all(is_equal(*pair) for pair in zip(ours, theirs, strict=True))
        )
    if isinstance(ours, float) and type(theirs) in (int, float):
        # of 1 in JSON, 1.0 mm is read
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    return type(ours) is type(theirs) and ours == theirs


def replaced_by_no_file(path, draw):
    """Now and then, makes something else of a file; returns whether it has."""
    if draw.random() > 0.02:
        return False
    path.unlink()
    draw.choice((os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path), lambda path: None))(path)
    return True


def places_in(tree, depth=0):
    """The places in a tree of dicts and lists: (container, key)."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in list(entries):
        yield tree, key
        if isinstance(value, dict | list) and depth < 6:
            yield from places_in(value, depth + 1)


def change_tree(tree, draw, values):
    """Changes one place in a tree."""
    # names are drawn first, so that the many weights do not hide the others
    top = draw.choice(list(tree))
    inside = list(places_in(tree[top])) if isinstance(tree[top], dict | list) else []
    container, key = draw.choice(inside) if inside and draw.random() < 0.7 else (tree, top)
    kind, value = draw.randrange(5), draw.choice(values)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, dict):
        container[draw.choice(("", "x", "ignore", "9", "2", "x" * 5000, "\0"))] = container.pop(key)
    elif kind == 2 and isinstance(container[key], list):
        container[key] = draw.choice((container[key][:-1], container[key] * 2, [container[key]]))
    elif kind == 3:
        container[key] = [container[key]]
    else:
        container[key] = value


def mutate_bytes(content, draw):
    """Changes bytes one to three times."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content = damage_bytes(content or b" ", draw)
    return content


def mutate_json(path, draw):
    """Changes a file of JSON; returns whether a checksum protects it."""
    if replaced_by_no_file(path, draw):
        return False
    content = path.read_bytes()
    if draw.random() < 0.4:
        path.write_bytes(mutate_bytes(content, draw))
        return False
    tree, values = json.loads(content), (*VALUES, *([HUGE_TEXT] * 10))
    for _ in range(draw.choice((1, 1, 2))):
        if tree:
            change_tree(tree, draw, values)
    text = json.dumps(draw.choice((tree, tree, tree, tree, tree, [tree], {"labels": tree})))
    path.write_text(text.replace(f'"{HUGE_TEXT}"', draw.choice(RAW_TEXTS)))
    return False


def tensors():
    """Tensors that no checkpoint has."""
    dense = torch.ones(2, 2, 1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return (
            dense.expand(2, 2, 1, 1, 1), torch.ones(1).expand(10**12), torch.zeros(0), torch.zeros(()),
            dense * math.nan, dense.long(), dense.bool(), dense.to(torch.complex64), dense.double(), dense.bfloat16(),
            dense.to_sparse(), torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8), torch.nn.Parameter(dense),
            torch.nested.nested_tensor([dense[0], dense[1]]), torch.zeros(3, device="meta"),
        )  # fmt: skip


def mutate_checkpoint(path, draw):
    """Changes a checkpoint; returns whether checksums protect it."""
    if replaced_by_no_file(path, draw):
        return False
    content, kind = path.read_bytes(), draw.randrange(5)
    if kind == 0:
        path.write_bytes(mutate_bytes(content, draw))
        return True
    if kind == 1:
        # in the pickle, or in the list of records
        start = draw.choice((0, len(content) - (16 << 10)))
        part = mutate_bytes(content[start : start + (16 << 10)], draw)
        path.write_bytes(content[:start] + part + content[start + (16 << 10) :])
        return True
    if kind == 2:
        _rezip(path, content, draw)
        return False
    tree = torch.load(io.BytesIO(content), weights_only=True)
    change_tree(tree, draw, (*VALUES, *tensors(), *tensors()))
    torch.save(tree, path)
    return False


def _rezip(path, content, draw):
    """Changes the bytes of a record, mostly the pickle, with right checksums; or compresses records."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        records = {member.filename: file.read(member) for member in file.infolist()}
    name = draw.choice((next(iter(records)), next(iter(records)), next(iter(records)), draw.choice(list(records))))
    compression = zipfile.ZIP_DEFLATED if draw.random() < 0.1 else zipfile.ZIP_STORED
    records[name] = mutate_bytes(records[name], draw)
    if draw.random() < 0.1:
        del records[draw.choice(list(records))]
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, record in records.items():
            file.writestr(name, record)


def arrays_of(case):
    """What an entry holds of a prepared case."""
    extent = np.array(case.extent, np.uint32)
    return {
        "labels": list(case.labels), "extent": extent, "ranks": case.ranks, "table": case.table, "mask": case.mask,
    }  # fmt: skip


def load_arrays(entry):
    """What NumPy reads of an entry."""
    with np.load(entry, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in ("labels", "extent", "ranks", "table", "mask")}
    return {**arrays, "labels": arrays["labels"].tolist()}


def mutate_entry(path, draw):
    """Changes an entry of the cache; returns whether its digest protects it."""
    if replaced_by_no_file(path, draw):
        return False
    content = path.read_bytes()
    if draw.random() < 0.5:
        path.write_bytes(mutate_bytes(content, draw))
        return True
    with np.load(io.BytesIO(content)) as stored:
        arrays = {name: stored[name] for name in stored}
    name = draw.choice(("labels", "extent", "ranks", "table", "mask"))
    arrays[name] = _change_array(arrays[name], draw)
    right = draw.random() < 0.7
    if right:
        arrays["digest"] = np.frombuffer(compute_digest(path.stem, arrays), np.uint8)
    if draw.random() < 0.1:
        del arrays[draw.choice(list(arrays))]
    with open(path, "wb") as file:
        (np.savez_compressed if draw.random() < 0.1 else np.savez)(file, **arrays)
    return not right


def _change_array(array, draw):
    """Another array."""
    generator = np.random.default_rng(draw.randrange(2**32))
    return draw.choice(
        (
            lambda: np.zeros_like(array),
            lambda: generator.permutation(array.reshape(-1)).reshape(array.shape),
            lambda: np.sort(generator.normal(size=array.shape), axis=0).astype(array.dtype),
            lambda: array[:-1],
            lambda: np.concatenate([array, array]),
            lambda: array.astype(draw.choice((np.int64, np.float16, np.float64, np.bool_, ">u2"))),
            lambda: array.reshape(-1),
            lambda: np.asfortranarray(array),
            lambda: np.full_like(array, 10**9 if array.dtype == np.float32 else 200),
            lambda: np.full(array.shape, draw.choice((math.nan, math.inf, 1e30)), np.float32),
            lambda: np.array([0, 10**9]),
            lambda: np.zeros(1 << 20, array.dtype),
        )
    )()
