import os

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.bad_makers import MASK, SIZE, write_mask, write_sound_case
from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image, probabilities_on_image, write_case
from vnet_fast import train
from vnet_fast.io import volumes
from vnet_fast.io.grid import mask_on_grid, working_grid

TINY = ["--volume", 16, 16, 16, "--spacing", 1, 1, 2, "--base-channels", 2, "--device", "cpu", "--folds", 2]
# checking and training must report the same
BOTH = pytest.mark.parametrize("command", ["--check", "training"])


@pytest.fixture
def read_cases(tmp_path, run_verb):
    """Checks a folder, or trains on it for one iteration; returns (exit code, stdout, lines of stderr)."""

    def run(command, folder, *more):
        options = {"--check": ["--check"], "training": ["--iterations", 1, "--output", tmp_path / "run"]}[command]
        code, out, err = run_verb(train, "--data", folder, *TINY, *options, *more)
        return code, out, err.splitlines()

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder of three sound cases."""
    folder = tmp_path / "cases"
    folder.mkdir()
    for number, name in enumerate("ABC"):
        write_sound_case(folder, name, np.random.default_rng(number))
    return folder


def test_a_sound_folder(folder, tmp_path, read_cases):
    before = sorted(tmp_path.rglob("*"))
    code, out, lines = read_cases("--check", folder)
    assert (code, lines) == (0, [])
    assert sorted(tmp_path.rglob("*")) == before
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["case", "size", "spacing", "mm", "intensities", "labels"]
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "A.mha")))
    assert rows[1] == f"A 8 x 7 x 6 1 x 1 x 2 {values.min()} to {values.max()} 0 1".split()
    assert out.splitlines()[-1].endswith("cases: 3 of 3 cases can be read, 0 warnings")


def test_two_folders(folder, tmp_path, read_cases):
    masks = tmp_path / "masks"
    masks.mkdir()
    for mask in folder.glob(f"*{MASK}"):
        mask.rename(masks / mask.name)
    code, out, lines = read_cases("--check", folder, "--labels", masks)
    assert (code, lines) == (0, [])
    assert "3 of 3" in out
    (masks / f"B{MASK}").unlink()
    code, out, lines = read_cases("--check", folder, "--labels", masks)
    assert code == 2
    assert [line for line in lines if "B.mha: no mask for this image" in line] == lines


def test_without_data(run_verb):
    code, _, err = run_verb(train, "--check")
    assert code == 2
    assert err == "error: --check: given without --data. Name the folder of the volumes too\n"


@BOTH
def test_an_empty_mask_is_a_warning(folder, read_cases, command):
    write_mask(folder, "B", np.zeros(SIZE[::-1], np.uint8))
    code, _, lines = read_cases(command, folder)
    assert code == 0
    assert lines == [f"warning: {folder}/B{MASK}: the mask is empty. Check that there is nothing to segment"]


@BOTH
def test_all_masks_are_empty(folder, read_cases, command):
    for name in "ABC":
        write_mask(folder, name, np.zeros(SIZE[::-1], np.uint8))
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert lines[-1] == f"error: {folder}: all masks are empty. Name a folder with labelled masks"


@BOTH
def test_a_label_that_is_lost(folder, read_cases, command):
    array = np.zeros((6, 7, 60), np.uint8)
    array[2:4, 2:5, 28:32] = 1
    array[3, 3, 0] = 2
    image = np.random.default_rng(5).integers(0, 99, array.shape, dtype=np.int16)
    sitk.WriteImage(make_image(image, (1, 1, 2)), str(folder / "B.mha"))
    write_mask(folder, "B", array)
    code, _, lines = read_cases(command, folder)
    assert code == 0
    assert len(lines) == 1
    assert lines[0].startswith(f"warning: {folder}/B{MASK}: label 2 is lost on the network's grid. Enlarge --volume")
    # the fast recipe takes patches of such a volume, which lose nothing
    code, _, lines = read_cases(command, folder, "--recipe", "fast", "--output", folder.with_name("patches"))
    assert (code, lines) == (0, [])


@BOTH
def test_masks_of_0_and_255(folder, read_cases, command):
    array = np.zeros(SIZE[::-1], np.uint8)
    array[2:4, 3:5, 3:5] = 255
    for name in "ABC":
        write_mask(folder, name, array)
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert len(lines) == 1
    assert (
        f"{MASK}: has only the labels 0 and 255, like all masks that are not empty. Give --binary to treat 255 as"
        in lines[0]
    )
    assert read_cases(command, folder, "--binary")[::2] == (0, [])


def test_a_mask_of_0_and_255_among_others_beside_another_error(folder, read_cases):
    """One check names all that is to be mended, but a gap in the labels, which the unread case may fill."""
    array = np.zeros(SIZE[::-1], np.uint8)
    array[2:4, 3:5, 3:5] = 255
    write_mask(folder, "B", array)
    (folder / "C.mha").write_bytes(b"")
    code, _, lines = read_cases("--check", folder)
    assert code == 2
    assert [line.split(":")[1].rsplit("/")[-1] for line in lines] == ["C.mha", f"B{MASK}"]
    assert "has label 255, but no mask has 2, 3, 4, 5, 6, …. Number the labels" in lines[1]
    assert len(read_cases("--check", folder, "--binary")[2]) == 1
    array[2:4, 3:5, 3:5] = 3
    write_mask(folder, "B", array)
    assert len(read_cases("--check", folder)[2]) == 1


@BOTH
def test_a_gap_in_the_labels(folder, read_cases, command):
    array = np.zeros(SIZE[::-1], np.uint8)
    array[2:4, 3:5, 3:5] = 7
    write_mask(folder, "B", array)
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert [f"B{MASK}: has label 7, but no mask has 2, 3, 4, 5, 6. Number the labels" in line for line in lines] == [
        True
    ]


@BOTH
@pytest.mark.parametrize("suffix", [".mha", ".nii.gz", ".nhdr"])
def test_the_same_volume_under_two_names(folder, read_cases, command, suffix):
    """A copy is found in another format and with another mask, too."""
    sitk.WriteImage(sitk.ReadImage(str(folder / "A.mha")), str(folder / f"D{suffix}"))
    write_mask(folder, "D", np.ones(SIZE[::-1], np.uint8))
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert lines == [
        f"error: {folder}/D{suffix}: the same volume as A.mha. "
        "Keep one of the two: a duplicate would falsify the validation"
    ]


@BOTH
def test_the_same_name_twice(folder, read_cases, command):
    sitk.WriteImage(sitk.ReadImage(str(folder / "A.mha")), str(folder / "A.nii"))
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert lines == [f"error: {folder}/A.nii: the same case as A.mha. Keep one of the two"]


@BOTH
def test_fewer_cases_than_folds(folder, read_cases, command):
    code, _, lines = read_cases(command, folder, "--folds", 5)
    assert code == 2
    assert lines == [f"error: {folder}: 3 cases for 5 folds. Give --folds 3 or less, or add cases"]


@BOTH
def test_dicom_slices_among_the_cases(folder, read_cases, command):
    write_dicom(folder, (0, 3, 6))
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert lines == [
        f"error: {folder}: holds DICOM slices itself (1.2.3.4-0.dcm). Give each series a folder of its own"
    ]


@pytest.mark.parametrize("size", [(9, 8, 1), (2, 2, 2), (1, 8, 8)], ids=str)
@BOTH
def test_very_small_volumes_are_read(folder, read_cases, command, size):
    """They can be trained on, and their masks survive resampling and return."""
    array = np.random.default_rng(3).integers(0, 999, size[::-1], dtype=np.int16)
    sitk.WriteImage(make_image(array, (1, 1, 2)), str(folder / "B.mha"))
    write_mask(folder, "B", np.ones(size[::-1], np.uint8))
    code, _, lines = read_cases(command, folder)
    assert code == 0
    expected = f"warning: {folder}/B.mha: only {' x '.join(map(str, size))} voxels. Check that the volume is whole"
    assert lines == ([expected] if command == "--check" else [])

    image = volumes.read_image(folder / "B.mha")
    grid = working_grid(image, (1, 1, 2), (16, 16, 16))
    on_grid = mask_on_grid(volumes.read_mask(folder / f"B{MASK}"), grid)
    assert on_grid.any()
    shares = np.stack([on_grid == 0, on_grid == 1]).astype(np.float32)
    np.testing.assert_array_equal(probabilities_on_image(shares, grid, image).argmax(0), np.ones(size[::-1]))


@BOTH
def test_one_voxel(folder, read_cases, command):
    sitk.WriteImage(make_image(np.full((1, 1, 1), 5, np.int16)), str(folder / "B.mha"))
    write_mask(folder, "B", np.ones((1, 1, 1), np.uint8), spacing=(1, 1, 1))
    code, _, lines = read_cases(command, folder)
    assert code == 2
    assert [f"{folder}/B.mha: has no voxels on the network's grid" in line for line in lines] == [True]


def test_masks_of_floating_point_numbers_are_read(folder, read_cases):
    array = np.zeros(SIZE[::-1], np.float64)
    array[2:4, 3:5, 3:5] = 1
    write_mask(folder, "A", array)
    assert read_cases("--check", folder)[::2] == (0, [])


def test_real_data_is_sound(real_data, read_cases):
    code, out, lines = read_cases("--check", real_data / "promise12")
    assert code == 0
    assert "40 of 40 cases can be read" in out
    assert all("is lost on the network's grid" in line for line in lines)


def test_nothing_is_written_by_a_check(tmp_path, run_verb, monkeypatch):
    """Nothing is written to the default folders of runs and of the cache, either."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    folder = tmp_path / "cases"
    folder.mkdir()
    for number in range(2):
        write_case(folder, f"x{number}", number)
    code, _, err = run_verb(train, "--data", folder, "--check", "--folds", 2)
    assert (code, err) == (0, "")
    assert os.listdir(home) == []
