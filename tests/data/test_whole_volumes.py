"""Cases that keep their whole extent, in memory and in the cache."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_cache_trust import rewrite
from tests.data.test_channels import write_channels
from tests.volumes import write_case
from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import find_cases
from vnet_fast.data.extent import exceed
from vnet_fast.errors import InputErrors

# open files of a process, on Linux
FILES = Path("/proc/self/fd")
SPACING, SIZE = (1.2, 1.1, 2.0), (16, 16, 16)


@pytest.fixture
def case(tmp_path):
    """20 x 30 x 12 voxels of SPACING, with two labels."""
    write_case(tmp_path, "A", size=(20, 30, 12), labels=2)
    return find_cases(tmp_path)[0]


def test_a_whole_case_covers_its_image_and_the_network(case, tmp_path):
    (whole,), (centre,) = (Cache(tmp_path / "cache", SPACING, SIZE, kind).load([case]) for kind in (True, False))
    assert whole.ranks.shape == whole.mask.shape == (16, 30, 20)
    assert centre.ranks.shape == (16, 16, 16)
    assert whole.covering == centre.covering == (20, 30, 16)
    # the centre of the whole is that of the other, up to the normalisation; the image is 12 slices high
    np.testing.assert_array_equal(whole.mask[:, 7:23, 2:18], centre.mask)
    assert np.unique(whole.mask).tolist() == [0, 1, 2]
    assert whole.extent == ((2, 14), (0, 30), (0, 20))


def test_it_is_read_from_the_cache_as_it_was(case, tmp_path):
    cache = Cache(tmp_path / "cache", SPACING, SIZE, whole=True)
    (first,), (again,) = cache.load([case]), cache.load([case])
    for name in ("ranks", "table", "mask", "labels", "extent", "covering"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert Cache(tmp_path / "cache", SPACING, SIZE).key(case) != cache.key(case)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"covering": np.array([20, 30, 17], np.uint32)}, "not a whole entry"),
        ({"covering": np.array([2**31, 2**31, 2**31], np.uint32)}, "not a whole entry"),
        ({"covering": np.array([30, 20, 16], np.uint32)}, "not a whole entry"),
        ({"covering": np.array([20.0, 30.0, 16.0])}, "not a whole entry"),
        ({"ranks": np.zeros((16, 30, 9), np.uint16), "mask": np.zeros((16, 30, 9), np.uint8),
          "covering": np.array([9, 30, 16], np.uint32)}, "its whole size is smaller than the grid"),
    ],
    ids=["longer", "huge", "turned", "another type", "smaller"],
)  # fmt: skip
def test_an_entry_of_another_size_is_made_again(case, tmp_path, capsys, changed, reason):
    cache = Cache(tmp_path / "cache", SPACING, SIZE, whole=True)
    (first,) = cache.load([case])
    (entry,) = (tmp_path / "cache").iterdir()
    with np.load(entry) as stored:
        arrays = {name: stored[name] for name in stored}
    rewrite(entry, arrays, changed, right_digest=True)
    capsys.readouterr()
    (again,) = cache.load([case])
    np.testing.assert_array_equal(again.ranks, first.ranks)
    assert capsys.readouterr().out.startswith(f"{entry}: damaged ({reason}), prepared again")


def test_a_centre_that_claims_to_be_larger_than_its_image_is_made_again(case, tmp_path, capsys):
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    (first,) = cache.load([case])
    (entry,) = (tmp_path / "cache").iterdir()
    with np.load(entry) as stored:
        arrays = {name: stored[name] for name in stored}
    rewrite(entry, arrays, {"covering": np.array([15, 30, 16], np.uint32)}, right_digest=True)
    capsys.readouterr()
    assert cache.load([case])[0].covering == first.covering
    assert "its whole size is smaller than the grid" in capsys.readouterr().out


def test_volumes_that_are_larger_by_more_than_an_eighth(case, tmp_path):
    (prepared,) = Cache(tmp_path / "cache", SPACING, SIZE).load([case])
    assert exceed([prepared], (16, 30, 16))
    assert not exceed([prepared], (18, 27, 16))
    assert exceed([prepared], (18, 26, 16))


def test_a_volume_that_no_memory_holds_is_refused(case, tmp_path):
    message = r"A\.mhd: takes 24000 x 33000 x 24000 voxels on the network's grid\. .* --spacing"
    with pytest.raises(InputErrors, match=message):
        Cache(tmp_path / "cache", (0.001, 0.001, 0.001), SIZE, whole=True).load([case])


@pytest.mark.parametrize("channels", [1, 2])
def test_large_cases_stay_in_their_entries(tmp_path, monkeypatch, channels):
    """Made and read again, they are equal to those in memory; changing one changes no file."""
    monkeypatch.setattr("vnet_fast.data.cache.MAPPED", 1)
    write_channels(tmp_path, "A", channels)
    (case,) = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache", SPACING, SIZE, whole=True)
    made, again = cache.load([case])[0], cache.load([case])[0]
    (entry,) = (tmp_path / "cache").iterdir()
    content = entry.read_bytes()
    monkeypatch.setattr("vnet_fast.data.cache.MAPPED", 1 << 40)
    (expected,) = cache.load([case])
    for mapped in (made, again):
        for name in ("ranks", "mask"):
            array = getattr(mapped, name)
            np.testing.assert_array_equal(array, getattr(expected, name))
        np.testing.assert_array_equal(mapped.table, expected.table)
    if FILES.exists():
        assert str(entry) in Path("/proc/self/maps").read_text()
        # of which a process may have about a thousand
        assert str(entry) not in [os.readlink(file) for file in FILES.iterdir() if file.is_symlink()]
    made.mask[:] = 7
    assert entry.read_bytes() == content
    # what a run has mapped stays, whatever becomes of the entry
    entry.unlink()
    np.testing.assert_array_equal(again.ranks, expected.ranks)
