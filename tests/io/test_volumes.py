import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.dicom_slices import write_dicom
from tests.volumes import make_image, write_case
from vnet_fast.errors import InputError
from vnet_fast.io import volumes
from vnet_fast.io.formats import SUFFIXES
from vnet_fast.io.grid import Grid, covered_share, image_on_grid, mask_on_grid, probabilities_on_image, working_grid
from vnet_fast.prediction import segmentation

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
# rotated by 0.3 about x, then by 0.2 about y
TILTED = tuple(
    (
        np.array([[np.cos(0.2), 0, np.sin(0.2)], [0, 1, 0], [-np.sin(0.2), 0, np.cos(0.2)]])
        @ np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]])
    ).ravel()
)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, 1, 0)
FLIPPED = (-1, 0, 0, 0, -1, 0, 0, 0, 1)


def ramp(size=(11, 9, 7)):
    return np.arange(np.prod(size), dtype=np.float32).reshape(size[::-1])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64])
def test_every_format_reads_back(tmp_path, suffix, dtype):
    path = tmp_path / f"a volume é{suffix}"
    array = (ramp() % 200).astype(dtype)
    image = make_image(array, (0.5, 0.6, 3.0), (10, -20, 30), OBLIQUE)
    sitk.WriteImage(image, str(path), useCompression=suffix != ".nii")
    read = volumes.read_image(path)
    assert read.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), array)
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(read), name), getattr(Grid.of(image), name), atol=1e-5)


def test_a_fourth_axis_of_one_is_dropped(tmp_path):
    path = tmp_path / "x.nii.gz"
    sitk.WriteImage(sitk.JoinSeries([make_image(ramp())]), str(path))
    assert volumes.read_image(path).GetSize() == (11, 9, 7)


@pytest.mark.parametrize("kind", ["2-D", "4-D", "vector", "complex"])
def test_not_a_volume_of_scalars(tmp_path, kind):
    path = tmp_path / ("x.nii" if kind == "complex" else "x.mha")
    image = make_image(ramp())
    wrong = {
        "2-D": lambda: image[:, :, 0],
        "4-D": lambda: sitk.JoinSeries([image, image]),
        "vector": lambda: sitk.Compose(image, image),
        "complex": lambda: sitk.RealAndImaginaryToComplex(image, image),
    }[kind]()
    sitk.WriteImage(wrong, str(path))
    with pytest.raises(InputError, match="not a volume of scalars but"):
        volumes.read_image(path)


def test_voxels_that_are_not_finite(tmp_path):
    array = ramp()
    array[1, 2, 3] = np.nan
    array[2, 2, 2:4] = np.inf
    sitk.WriteImage(make_image(array), str(tmp_path / "x.mha"))
    with pytest.raises(InputError, match="1 voxels are NaN and 2 infinite"):
        volumes.read_image(tmp_path / "x.mha")


@pytest.mark.parametrize("label", [-1, 0.5, 256, np.nan])
def test_labels_out_of_range(tmp_path, label):
    array = np.zeros((4, 4, 4), dtype=np.float32)
    array[1, 1, 1] = label
    sitk.WriteImage(make_image(array), str(tmp_path / "x.mha"))
    with pytest.raises(InputError, match="1 voxels have labels that are no whole number from 0 to 255, such as"):
        volumes.read_mask(tmp_path / "x.mha")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"size": 3}, "its size is 4 4 3, that of image.mha is 4 4 4"),
        ({"spacing": (1, 1, 2)}, "its spacing is 1 1 2, that of image.mha is 1 1 1"),
        ({"origin": (0, 0.5, 0)}, "its origin is 0 0.5 0, that of image.mha is 0 0 0"),
        ({"direction": FLIPPED}, "its direction is -1 0 0 0 -1 0 0 0 1, that of image.mha is 1 0 0 0 1 0 0 0 1"),
    ],
    ids=["size", "spacing", "origin", "direction"],
)
def test_mask_of_another_place(tmp_path, changed, words):
    changed = dict(changed)
    array = np.zeros((changed.pop("size", 4), 4, 4), dtype=np.uint8)
    sitk.WriteImage(make_image(array, **changed), str(tmp_path / "mask.mha"))
    with pytest.raises(InputError, match=words):
        volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")


def test_mask_beyond_the_tolerance(tmp_path):
    sitk.WriteImage(make_image(np.ones((4, 4, 4), np.uint8), origin=(0, 2e-3, 0)), str(tmp_path / "mask.mha"))
    with pytest.raises(InputError, match=r"its origin is 0 0\.002 0"):
        volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")


def test_mask_within_the_tolerance(tmp_path):
    sitk.WriteImage(make_image(np.ones((4, 4, 4), np.uint8), origin=(0, 5e-4, 0)), str(tmp_path / "mask.mha"))
    mask = volumes.read_mask(tmp_path / "mask.mha", make_image(np.zeros((4, 4, 4))), tmp_path / "image.mha")
    assert sitk.GetArrayViewFromImage(mask).all()


@pytest.mark.parametrize("size", [(8, 6, 4), (14, 12, 10), (5, 9, 20)], ids=str)
def test_same_spacing_only_crops_and_pads(size):
    array = ramp() + 1
    image = make_image(array, (2, 2, 3), (5, 6, 7), OBLIQUE)
    on_grid = image_on_grid(image, working_grid(image, (2, 2, 3), size))
    inside = ~np.isnan(on_grid)
    assert inside.sum() == np.prod([min(a, b) for a, b in zip(size, image.GetSize(), strict=True)])
    np.testing.assert_allclose(np.unique(on_grid[inside]), np.unique(on_grid[inside].round()), atol=1e-3)
    # the voxels that are kept are neighbours, whole slabs of the file
    corner = np.argwhere(inside)[0]
    first = np.argwhere(np.isclose(array, on_grid[tuple(corner)]))[0]
    lengths = [min(n, m) for n, m in zip(array.shape, size[::-1], strict=True)]
    kept = array[tuple(slice(f, f + length) for f, length in zip(first, lengths, strict=True))]
    np.testing.assert_allclose(on_grid[inside], kept.ravel(), atol=1e-3)
    for f, length, n in zip(first, lengths, array.shape, strict=True):
        assert abs((n - length) / 2 - f) <= 0.5


@pytest.mark.parametrize("direction", [(1, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE, TILTED, SAGITTAL, FLIPPED], ids=str)
def test_working_grid_is_centred_and_upright(direction):
    image = make_image(ramp((20, 30, 10)), (0.5, 0.6, 3), (10, -20, 30), direction)
    grid = working_grid(image, (1, 1, 1.5), (16, 16, 16))

    def centre(of):
        axes = np.array(of.direction).reshape(3, 3)
        return np.array(of.origin) + axes @ ((np.array(of.size) - 1) / 2 * of.spacing)

    np.testing.assert_allclose(centre(grid), centre(Grid.of(image)), atol=1e-6)
    # each axis is nearest to left, posterior, superior
    axes = np.array(grid.direction).reshape(3, 3)
    assert (axes.diagonal() > 0.7).all()


def test_linear_interpolation_of_a_linear_image():
    """A linear function of space survives any linear resampling."""
    image = make_image(ramp((24, 22, 18)), (0.8, 1.1, 2.0), (3, 4, 5), TILTED)
    points = np.array(
        [image.TransformIndexToPhysicalPoint((i, j, k)) for k in range(18) for j in range(22) for i in range(24)]
    )
    coefficients = np.array([1.5, -0.7, 0.3])
    image = Grid.of(image).image_from((points @ coefficients).reshape(18, 22, 24).astype(np.float32))
    grid = working_grid(image, (1, 1, 1.5), (16, 16, 16))
    on_grid = sitk.GetImageFromArray(image_on_grid(image, grid))
    reference = grid.image_from(np.zeros(grid.size[::-1]))
    for index in ((0, 0, 0), (15, 0, 7), (8, 8, 8), (15, 15, 15)):
        expected = coefficients @ np.array(reference.TransformIndexToPhysicalPoint(index))
        assert on_grid[index] == pytest.approx(expected, abs=1e-3)


def shapes(size, spacing):
    """Masks of shapes larger than four voxels: an ellipsoid, a box, and two structures that touch."""
    z, y, x = (
        (np.arange(n) - (n - 1) / 2).reshape([-1 if a == axis else 1 for a in range(3)]) * s
        for axis, (n, s) in enumerate(zip(size[::-1], spacing[::-1], strict=True))
    )
    extent = np.array(size) * spacing
    ellipsoid = (x / (0.3 * extent[0])) ** 2 + (y / (0.25 * extent[1])) ** 2 + (z / (0.3 * extent[2])) ** 2 < 1
    box = (abs(x) < 0.25 * extent[0]) & (abs(y) < 0.2 * extent[1]) & (abs(z) < 0.25 * extent[2])
    return {
        "ellipsoid": ellipsoid.astype(np.uint8),
        "box": box.astype(np.uint8),
        "two": (ellipsoid * np.where(x > 0, 2, 1)).astype(np.uint8),
    }


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


GRIDS = {
    "3mm": ((96, 96, 24), (1.0, 1.0, 3.0)),
    "3.6mm": ((160, 150, 20), (0.5, 0.5, 3.6)),
    "isotropic": ((40, 44, 48), (1.5, 1.5, 1.5)),
    "fine": ((70, 60, 64), (0.9, 1.3, 0.7)),
}
DIRECTIONS = {"oblique": OBLIQUE, "tilted": TILTED, "sagittal": SAGITTAL, "flipped": FLIPPED}


def there_and_back(image, probabilities_on):
    """The mask after a way to the network's grid, as probabilities of three classes, and back."""
    grid = working_grid(image, (1, 1, 1.5), (128, 128, 64))
    on_image = probabilities_on_image(probabilities_on(grid), grid, image)
    np.testing.assert_allclose(on_image.sum(0), 1, atol=1e-5)
    return on_image.argmax(0)


def assert_kept(back, mask):
    for label in np.unique(mask[mask > 0]):
        assert dice(back == label, mask == label) >= 0.97


@pytest.mark.parametrize("shape", ["ellipsoid", "box", "two"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", GRIDS)
def test_masks_go_there_and_back(kind, direction, shape):
    size, spacing = GRIDS[kind]
    mask = shapes(size, spacing)[shape]
    image = make_image(mask, spacing, (12, -34, 56), DIRECTIONS[direction])

    def shares(grid):
        each = [image_on_grid(sitk.Cast(image == k, sitk.sitkFloat32), grid) for k in range(3)]
        return np.stack([np.nan_to_num(share, nan=float(k == 0)) for k, share in enumerate(each)])

    assert_kept(there_and_back(image, shares), mask)


@pytest.mark.parametrize("shape", ["ellipsoid", "box", "two"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", [kind for kind in GRIDS if kind != "fine"])
def test_labels_go_there_and_back(kind, direction, shape):
    """As a perfect prediction would: labels on the network's grid, where the file's is no finer."""
    size, spacing = GRIDS[kind]
    mask = shapes(size, spacing)[shape]
    image = make_image(mask, spacing, (12, -34, 56), DIRECTIONS[direction])

    def labels(grid):
        there = mask_on_grid(image, grid)
        assert set(np.unique(there)) == set(np.unique(mask))
        return np.stack([(there == k).astype(np.float32) for k in range(3)])

    assert_kept(there_and_back(image, labels), mask)


def test_thin_structures_survive():
    """A plate of one voxel is kept on a grid that is as fine, though it lies between its voxels."""
    mask = np.zeros((20, 20, 20), np.uint8)
    mask[10] = 1
    image = make_image(mask, (1, 1, 1.5))
    on_grid = mask_on_grid(image, working_grid(image, (1, 1, 1.4), (20, 20, 20)))
    assert (on_grid.any(0)).all()


def test_outside_of_the_network_is_background():
    image = make_image(np.ones((30, 30, 30), np.float32))
    grid = working_grid(image, (1, 1, 1), (16, 16, 16))
    probabilities = np.stack([np.zeros((16, 16, 16)), np.ones((16, 16, 16))]).astype(np.float32)
    on_image = probabilities_on_image(probabilities, grid, image)
    assert (on_image.argmax(0) == 1).sum() == 16**3
    assert covered_share(image, grid) == pytest.approx((16 / 30,) * 3)


def test_largest_components():
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[8:10, 8:10, 8:10] = 1
    mask[0, 11, 11] = 2
    mask[4, 4, 4] = 1  # touches the first by a corner
    kept = segmentation.largest_components(mask)
    assert (kept == 1).sum() == 28
    assert (kept == 2).sum() == 1
    assert not kept[8:10, 8:10, 8:10].any()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_write_keeps_the_grid_and_leaves_nothing_else(tmp_path, suffix):
    image = make_image(ramp(), (0.5, 0.6, 3.0), (10, -20, 30), OBLIQUE)
    mask = (ramp() % 3).astype(np.uint8)
    path = tmp_path / f"mask{suffix}"
    for array in (np.zeros_like(mask), mask):
        volumes.write(array, image, path)
    read = volumes.read_mask(path, image, "image")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), mask)
    assert len(list(tmp_path.iterdir())) == (2 if suffix in (".mhd", ".nhdr") else 1)


@pytest.mark.parametrize("name", ["MASK.NII.GZ", "Mask.Mhd"])
def test_write_to_a_suffix_in_upper_case(tmp_path, name):
    image, mask = make_image(ramp()), (ramp() % 3).astype(np.uint8)
    volumes.write(mask, image, tmp_path / name)
    assert name in {path.name for path in tmp_path.iterdir()}
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_mask(tmp_path / name)), mask)


def test_a_failed_write_keeps_the_file_before(tmp_path, monkeypatch):
    image, path = make_image(ramp()), tmp_path / "mask.nii.gz"
    path.write_bytes(b"the one before")

    def fail(image, name, useCompression):  # noqa: N803 - SimpleITK's name
        with open(name, "wb") as file:
            file.write(b"half")
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(InputError, match=r"mask.nii.gz: can't be written \(No space left on device\)"):
        volumes.write(ramp().astype(np.uint8), image, path)
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_reading_in_threads_leaves_the_encoding_of_text(tmp_path):
    """ITK sets the locale of the process while it reads; Python then takes text for ASCII."""
    import locale
    from concurrent.futures import ThreadPoolExecutor

    before = locale.setlocale(locale.LC_CTYPE)
    paths = [write_case(tmp_path, f"Case{i}", seed=i, size=(40, 40, 40))[0] for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(volumes.read_image, paths * 20))
    assert locale.setlocale(locale.LC_CTYPE) == before
    # and reading a series, of which each slice is looked at, and writing
    write_dicom(tmp_path / "series", [0, 3, 6])
    locale.setlocale(locale.LC_CTYPE, before)
    volumes.write(np.zeros((3, 6, 8), np.uint8), volumes.read_image(tmp_path / "series"), tmp_path / "mask.mhd")
    assert locale.setlocale(locale.LC_CTYPE) == before
