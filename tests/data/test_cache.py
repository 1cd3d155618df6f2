import hashlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.volumes import write_case
from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import find_cases
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.io import volumes
from vnet_fast.io.grid import image_on_grid, mask_on_grid, working_grid

SPACING, SIZE = (1.5, 1.5, 2.0), (16, 16, 16)


def assert_equal(a, b):
    for name in ("name", "ranks", "table", "mask", "labels", "extent"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_prepared_case_is_the_volume_on_the_grid(tmp_path):
    write_case(tmp_path, "A", labels=2)
    case = find_cases(tmp_path)[0]
    prepared = Cache(tmp_path / "cache", SPACING, SIZE).load([case])[0]
    image = volumes.read_image(case.image)
    grid = working_grid(image, SPACING, SIZE)
    values = image_on_grid(image, grid)
    inside = ~np.isnan(values)
    assert prepared.image.shape == prepared.mask.shape == SIZE[::-1]
    assert np.corrcoef(prepared.image[inside], values[inside])[0, 1] > 0.99
    np.testing.assert_array_equal(prepared.mask, mask_on_grid(volumes.read_mask(case.mask), grid))
    assert prepared.labels == (0, 1, 2)


def test_second_load_reads_no_volume(cases, tmp_path, monkeypatch):
    first = Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(cases))
    monkeypatch.setattr(volumes, "read_image", lambda path: pytest.fail("read a volume"))
    second = Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(cases))
    for a, b in zip(first, second, strict=True):
        assert_equal(a, b)


def test_reading_the_cache_imports_no_image_library(cases, tmp_path):
    Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(cases))
    code = (
        "import sys; from vnet_fast.data.cache import Cache; from vnet_fast.data.cases import find_cases; "
        f"c = Cache({str(tmp_path / 'cache')!r}, {SPACING}, {SIZE}); "
        f"assert len(c.load(find_cases({str(cases)!r}))) == 6; assert 'SimpleITK' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=str(Path(__file__).resolve().parents[2]))


def test_key_follows_content_and_settings(tmp_path):
    write_case(tmp_path, "A")
    case = find_cases(tmp_path)[0]
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    keys = [
        cache.key(case),
        Cache(tmp_path / "cache", (1, 1, 2), SIZE).key(case),
        Cache(tmp_path / "cache", SPACING, (16, 16, 32)).key(case),
    ]
    write_case(tmp_path, "A", seed=1)
    keys.append(cache.key(case))
    assert len(set(keys)) == 4
    write_case(tmp_path, "A")
    assert cache.key(case) == keys[0]


def test_entries_of_earlier_versions_are_found(tmp_path):
    """Keys, digests, and names and types of arrays must not change without a new CACHE_FORMAT."""
    (tmp_path / "A.nii").write_bytes(b"image")
    (tmp_path / "A_segmentation.nii").write_bytes(b"mask")
    case = find_cases(tmp_path)[0]
    cache = Cache(tmp_path / "cache", (1, 1, 1.5), (4, 3, 2))
    key = "e81bc86f032f105465da257413137409"
    assert cache.key(case) == key
    generator = np.random.default_rng(0)
    ranks = generator.integers(0, 65536, (2, 3, 4), dtype=np.uint16)
    table = np.linspace(-1, 1, 65536, dtype=np.float32)
    mask = generator.integers(0, 2, (2, 3, 4), dtype=np.uint8)
    labels, extent = np.array([0, 1], np.uint8), np.array([[0, 2], [1, 3], [0, 3]], np.uint32)
    covering = np.array([9, 3, 2], np.uint32)
    digest = hashlib.sha256(key.encode())
    channels = np.array([1], np.uint32)
    for description, array in (
        ("channels <u4 (1,)", channels),
        ("labels |u1 (2,)", labels),
        ("extent <u4 (3, 2)", extent),
        ("covering <u4 (3,)", covering),
        ("ranks <u2 (2, 3, 4)", ranks),
        ("table <f4 (65536,)", table),
        ("mask |u1 (2, 3, 4)", mask),
    ):
        digest.update(description.encode() + array.tobytes())
    digest = np.frombuffer(digest.digest(), np.uint8)
    np.savez(
        tmp_path / "cache" / f"{key}.npz",
        digest=digest,
        channels=channels,
        labels=labels,
        extent=extent,
        covering=covering,
        ranks=ranks,
        table=table,
        mask=mask,
    )
    # the files hold no volumes, so only the entry can be read
    assert_equal(
        cache.load([case])[0], PreparedCase("A", ranks, table, mask, (0, 1), ((0, 2), (1, 3), (0, 3)), (9, 3, 2))
    )


def test_key_sees_the_data_file_of_a_header(tmp_path):
    write_case(tmp_path, "A", seed=0)
    case = find_cases(tmp_path)[0]
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    before = cache.key(case)
    data = tmp_path / "A.zraw"
    data.write_bytes(data.read_bytes()[:-1])
    assert cache.key(case) != before


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_damaged_entries_are_made_again(cases, tmp_path, damage, capsys):
    listed = find_cases(cases)
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    first = cache.load(listed)
    for entry in (tmp_path / "cache").iterdir():
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 0xFF
        entry.write_bytes(
            {
                "truncated": bytes(content[: len(content) // 2]),
                "flipped": bytes(content),
                "empty": b"",
                "other": b"PK nonsense",
            }[damage]
        )
    for a, b in zip(first, cache.load(listed), strict=True):
        assert_equal(a, b)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(listed)
    assert all(line.endswith("), prepared again") and ".npz: damaged (" in line for line in lines)
    for a, b in zip(first, cache.load(listed), strict=True):
        assert_equal(a, b)
    assert not capsys.readouterr().out


def test_two_runs_at_once_leave_whole_entries(cases, tmp_path):
    listed, results = find_cases(cases), []
    threads = [
        threading.Thread(target=lambda: results.append(Cache(tmp_path / "cache", SPACING, SIZE).load(listed)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert_equal(a, b)
    assert len(list((tmp_path / "cache").iterdir())) == len(listed)


def test_an_entry_is_replaced_and_not_overwritten(cases, tmp_path):
    """A reader that has opened the old entry can read it to its end."""
    cache = Cache(tmp_path / "cache", SPACING, SIZE)
    case = find_cases(cases)[0]
    cache.load([case])
    (entry,) = (tmp_path / "cache").iterdir()
    entry.write_bytes(b"damaged")
    with open(entry, "rb") as reader:
        cache.load([case])
        assert reader.read() == b"damaged"
    assert entry.read_bytes() != b"damaged"


@pytest.mark.exhaustive
def test_two_processes_at_once(cases, tmp_path):
    code = (
        "from vnet_fast.data.cache import Cache; from vnet_fast.data.cases import find_cases; "
        f"assert len(Cache({str(tmp_path / 'cache')!r}, {SPACING}, {SIZE}).load(find_cases({str(cases)!r}))) == 6"
    )
    root = str(Path(__file__).resolve().parents[2])
    running = [subprocess.Popen([sys.executable, "-c", code], cwd=root) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_all_bad_cases_are_named_at_once(cases, tmp_path):
    for name in ("Case01", "Case03"):
        data = cases / f"{name}.zraw"
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(InputErrors) as raised:
        Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(cases))
    lines = str(raised.value).splitlines()
    assert len(lines) == 2
    assert all("truncated" in line for line in lines)


def test_a_failed_write_leaves_no_part(cases, tmp_path, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(InputErrors, match=r"^[^\n]*can't be written \(No space left on device\)[^\n]*$"):
        Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(cases))
    assert not list((tmp_path / "cache").iterdir())


def test_constant_volume_is_named(tmp_path):
    import SimpleITK as sitk

    image, _ = write_case(tmp_path, "A")
    sitk.WriteImage(sitk.ReadImage(str(image)) * 0, str(image), useCompression=True)
    with pytest.raises(InputErrors, match=r"A.mhd: all voxels have the same value on the network's grid"):
        Cache(tmp_path / "cache", SPACING, SIZE).load(find_cases(tmp_path))


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't be made"):
        Cache(tmp_path / "file" / "cache", SPACING, SIZE)
