"""Entries of the cache that someone has changed, exchanged or replaced are never used."""

import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.volumes import write_case
from vnet_fast.data import cache as cache_module
from vnet_fast.data.cache import Cache
from vnet_fast.data.cache_entry import compute_digest
from vnet_fast.data.cases import find_cases
from vnet_fast.errors import InputErrors

SPACING, SIZE = (1.5, 1.5, 2.0), (16, 16, 16)


@pytest.fixture
def cached(tmp_path):
    """A case, the cache that has it, its entry, and the arrays in it."""
    write_case(tmp_path, "A", labels=2)
    (case,) = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    (prepared,) = cache.load([case])
    (entry,) = (tmp_path / "cache").iterdir()
    with np.load(entry) as stored:
        arrays = {name: stored[name] for name in stored}
    return case, cache, prepared, entry, arrays


def rewrite(entry, arrays, changed, right_digest, save=np.savez):
    arrays = {**arrays, **changed}
    if right_digest:
        arrays["digest"] = np.frombuffer(compute_digest(entry.stem, arrays), np.uint8)
    with open(entry, "wb") as file:
        save(file, **arrays)


def assert_made_again(cached, capsys, reason=""):
    case, cache, prepared, entry, _ = cached
    capsys.readouterr()
    (again,) = cache.load([case])
    for name in ("ranks", "table", "mask", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(prepared, name))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{entry}: damaged ({reason}")
    assert line.endswith("), prepared again")
    cache.load([case])
    assert not capsys.readouterr().out


def changes(arrays):
    table, mask = arrays["table"], arrays["mask"]
    generator = np.random.default_rng(0)
    return {
        "table of 1e30": {"table": np.full_like(table, 1e30)},
        "table with NaN": {"table": np.where(np.arange(table.size) == 5, np.float32(np.nan), table)},
        "table that falls": {"table": table[::-1].copy()},
        "random mask": {"mask": generator.integers(0, 256, mask.shape, dtype=np.uint8)},
        "shapes that disagree": {"mask": mask[:-1]},
        "transposed": {"ranks": np.asfortranarray(arrays["ranks"])},
        "another type": {"mask": mask.astype(np.int64)},
        "a huge label": {"labels": np.array([0, 10**9])},
        "labels twice": {"labels": np.array([0, 1, 1, 2], np.uint8)},
        "no labels": {"labels": np.array([], np.uint8)},
        "an extent beyond the grid": {"extent": np.array([[0, 1], [0, 1], [0, 999]], np.uint32)},
        "an empty extent": {"extent": np.array([[0, 1], [0, 1], [1, 1]], np.uint32)},
        "big-endian": {"ranks": arrays["ranks"].astype(">u2")},
        "objects": {"labels": np.array([{}], dtype=object)},
        "one more array": {"more": mask},
        "a scalar": {"mask": np.uint8(1)},
    }


NAMES = list(changes({"table": np.zeros(9), "mask": np.zeros((2, 2, 2)), "ranks": np.zeros(1)}))
# objects have no bytes to digest
CHANGES = [(name, right) for name in NAMES for right in (False, True) if (name, right) != ("objects", True)]


@pytest.mark.parametrize(("change", "right_digest"), CHANGES)
def test_what_no_case_has_is_not_used(cached, capsys, change, right_digest):
    _, _, _, entry, arrays = cached
    rewrite(entry, arrays, changes(arrays)[change], right_digest)
    assert_made_again(cached, capsys)


@pytest.mark.parametrize("mask", [np.zeros_like, lambda mask: np.roll(mask, 1)], ids=["zeroed", "moved"])
def test_a_mask_that_a_case_could_have(cached, capsys, mask):
    _, _, _, entry, arrays = cached
    rewrite(entry, arrays, {"mask": mask(arrays["mask"])}, right_digest=False)
    assert_made_again(cached, capsys, "its digest differs")


def test_an_entry_under_another_name(cached, tmp_path, capsys):
    _, cache, _, entry, _ = cached
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    write_case(other_folder, "B", seed=5)
    (other,) = find_cases(other_folder)
    (expected,) = cache.load([other])
    other_entry = cache.folder / f"{cache.key(other)}.npz"
    shutil.copy(entry, other_entry)
    (again,) = cache.load([other])
    np.testing.assert_array_equal(again.ranks, expected.ranks)
    assert "its digest differs" in capsys.readouterr().out


def test_a_bomb_takes_no_memory(cached, capsys):
    _, _, _, entry, arrays = cached
    rewrite(entry, arrays, {"mask": np.zeros(1 << 26, np.uint8)}, False, np.savez_compressed)
    tracemalloc.start()
    assert_made_again(cached, capsys, "not a whole entry")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 24


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")],
                         ids=["folder", "FIFO", "device"])  # fmt: skip
def test_what_is_no_file_is_one_line(cached, make):
    case, cache, _, entry, _ = cached
    entry.unlink()
    make(entry)
    with pytest.raises(InputErrors) as raised:
        cache.load([case])
    assert str(raised.value) == f"{entry}: not a regular file. Delete it, or choose another --cache"


def test_an_entry_that_cannot_be_read_is_made_again(cached, capsys, monkeypatch):
    case, cache, _, entry, _ = cached

    def fail(*arguments):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "read_entry", fail)
        cache.load([case])
    assert capsys.readouterr().out == f"{entry}: damaged (Input/output error), prepared again\n"


@pytest.mark.parametrize("times", [1, 99])
def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch, times):
    """It is read again; if it never stays the same, no entry is left."""
    write_case(tmp_path, "A")
    (case,) = find_cases(tmp_path)
    original, reads = cache_module.read_case, []

    def read_case(*arguments):
        if len(reads) < times:
            reads.append(1)
            write_case(tmp_path, "A", seed=len(reads))
        return original(*arguments)

    monkeypatch.setattr(cache_module, "read_case", read_case)
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    if times > 1:
        with pytest.raises(InputErrors, match=r"A.mhd: changes while it is read, or its mask does. Start again"):
            cache.load([case])
        assert not list((tmp_path / "cache").iterdir())
        return
    (prepared,) = cache.load([case])
    monkeypatch.setattr(cache_module, "read_case", original)
    (fresh,) = Cache(tmp_path / "fresh", SPACING, SIZE).load([case])
    np.testing.assert_array_equal(prepared.ranks, fresh.ranks)
    assert [path.stem for path in (tmp_path / "cache").iterdir()] == [cache.key(case)]
