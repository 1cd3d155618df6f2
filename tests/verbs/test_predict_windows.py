"""Volumes larger than the input of the network."""

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.verbs.test_predict import OBLIQUE, run
from tests.volumes import make_image, probabilities_on_image
from vnet_fast import VNet
from vnet_fast.data.intensity import normalise
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, working_grid
from vnet_fast.prediction import segmentation
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.task import Task
from vnet_fast.run import checkpoint


def write_large(path, size=(40, 30, 21), spacing=(1.5, 1.5, 2.0)):
    """Writes noise with bright spots in all corners; returns what the network of the fixture finds
    in it, normalised by its central 16 voxels.
    """
    array = np.random.default_rng(0).normal(100, 5, size[::-1]).astype(np.float32)
    for corner in itertools.product(*((slice(0, 3), slice(-3, None)) for _ in size)):
        array[corner] = 300
    sitk.WriteImage(make_image(array, spacing, (5, -7, 11)), str(path))
    # the working grid begins at the lower of two middle voxels
    first = [(n - 16) // 2 for n in array.shape]
    centre = array[tuple(slice(start, start + 16) for start in first)]
    return normalise(array, centre) > 1.2


def test_a_larger_volume_is_predicted_in_windows(tmp_path, run_verb, trained):
    expected = write_large(tmp_path / "x.nrrd")
    more = ["--overlap", "0.5", "--all-components"]
    code, out, err = run(run_verb, trained, tmp_path / "x.nrrd", tmp_path / "y.nrrd", *more)
    assert code == 0, err
    assert "1 of 1 volumes are larger than the network's 24 x 24 x 32 mm: in windows, overlap 0.5" in out
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "y.nrrd")))
    assert all(expected[corner] for corner in itertools.product((0, -1), repeat=3))
    np.testing.assert_array_equal(found == 1, expected)


def test_of_a_larger_volume_the_centre_alone(tmp_path, run_verb, trained):
    expected = write_large(tmp_path / "x.nrrd")
    _, out, _ = run(run_verb, trained, tmp_path / "x.nrrd", tmp_path / "y.nrrd", "--all-components")
    assert "1 of 1 volumes are larger than the network's 24 x 24 x 32 mm: background beyond, unless" in out
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "y.nrrd")))
    # the centre alone decides how intensities are normalised, so that windows change nothing there
    centre = (slice(2, 18), slice(7, 23), slice(12, 28))
    np.testing.assert_array_equal(found[centre] == 1, expected[centre])
    assert expected[centre].any()
    found[centre] = 0
    assert not found.any()


@pytest.mark.parametrize("overlap", [None, 0.5])
@pytest.mark.parametrize("size", [(16, 16, 16), (12, 16, 9)], ids=str)
def test_a_volume_that_fits_is_one_forward_pass(tmp_path, trained, size, overlap):
    write_large(tmp_path / "x.nrrd", size)
    model = checkpoint.build_model(checkpoint.load(trained), trained, torch.device("cpu")).eval()
    seen = []
    model.register_forward_hook(lambda module, arguments, logits: seen.append(arguments[0]))
    result = segmentation.segment(model, tmp_path / "x.nrrd", Task((1.5, 1.5, 2.0), (16, 16, 16)), None, overlap)
    image = volumes.read_image(tmp_path / "x.nrrd")
    grid = working_grid(image, (1.5, 1.5, 2.0), (16, 16, 16))
    values = torch.from_numpy(normalise(image_on_grid(image, grid)))[None, None]
    assert not result.is_larger
    assert len(seen) == 1
    assert torch.equal(seen[0], values)
    with torch.no_grad():
        expected = torch.softmax(model(values)[0], 0).numpy()
    on_image = probabilities_on_image(expected, grid, image)
    for label in range(2):
        np.testing.assert_array_equal(result.probability(label), on_image[label])
    np.testing.assert_array_equal(result.labels(all_components=True), on_image.argmax(0))


@pytest.mark.parametrize(
    ("size", "spacing", "covering"),
    [
        ((16, 16, 16), (1, 1, 1), (16, 16, 16)),
        ((17, 5, 100), (1, 1, 1), (17, 16, 100)),
        ((20, 16, 16), (0.8, 1.0009, 1.002), (16, 16, 17)),
        ((10, 10, 10), (2.5, 1.61, 3.33), (25, 17, 34)),
    ],
    ids=str,
)
def test_covering_grid(size, spacing, covering):
    image = make_image(np.zeros(size[::-1], np.float32), spacing, (1, 2, 3), OBLIQUE)
    assert covering_size(image, working_grid(image, (1, 1, 1), (16, 16, 16))) == covering
    on_grid = image_on_grid(image, working_grid(image, (1, 1, 1), covering))
    assert np.isfinite(on_grid[tuple(slice(1, -1) if n > 16 else slice(None) for n in covering[::-1])]).any()
    back = probabilities_on_image(
        np.ones((2, *covering[::-1]), np.float32), working_grid(image, (1, 1, 1), covering), image
    )
    # beyond the grid foreground would be 0
    assert (back[1] == 1).all()


def test_overlap_and_mirrors_reach_the_network(tmp_path, run_verb, trained, monkeypatch):
    write_large(tmp_path / "x.nrrd", (24, 16, 16))
    seen, original = [], VNet.forward
    monkeypatch.setattr(VNet, "forward", lambda model, x: (seen.append(x), original(model, x))[1])
    counts = []
    for message in (["--overlap", "0.75"], ["--overlap", "0"], [], ["--tta"]):
        seen.clear()
        assert run(run_verb, trained, tmp_path / "x.nrrd", tmp_path / "y.nrrd", *message)[0] == 0
        counts.append(len(seen))
    assert counts == [3, 2, 1, 2]
    assert torch.equal(seen[1], seen[0].flip(4))


@pytest.mark.parametrize("value", ["1", "-0.1", "nan", "half"])
def test_overlap_outside_of_its_range_is_one_line(cases, tmp_path, run_verb, trained, value):
    code, _, err = run(run_verb, trained, cases, tmp_path / "out", f"--overlap={value}")
    assert code == 2
    assert err.count("\n") == 1
    assert f"--overlap: must be a number from 0 to below 1; got '{value}'" in err


def test_out_of_memory_names_the_volume_and_goes_on(tmp_path, run_verb, trained, monkeypatch):
    expected = write_large(tmp_path / "x.nrrd", (80, 30, 21))
    content = checkpoint.load(trained)
    model = checkpoint.build_model(content, trained, torch.device("cpu"))
    checkpoint.save(tmp_path / "wide.pt", model, spacing=[1.5, 1.5, 2.0], volume=[96, 32, 16], validation=[])
    original = VNet.forward

    def forward(model, x):
        if x.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, x)

    monkeypatch.setattr(VNet, "forward", forward)
    more = ["--overlap", "0.5", "--all-components"]
    code, out, err = run(run_verb, tmp_path / "wide.pt", tmp_path / "x.nrrd", tmp_path / "y.nrrd", *more)
    assert code == 0, err
    said = [line for line in out.splitlines() if "out of memory" in line]
    assert said == [
        f"{tmp_path / 'x.nrrd'}: out of memory on the CPU, windows are 48 x 32 x 16 voxels, which is less accurate"
    ]
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "y.nrrd")))
    corners = tuple(np.ix_(*([0, 1, 2, n - 3, n - 2, n - 1] for n in found.shape)))
    np.testing.assert_array_equal(found[corners] == 1, expected[corners])


def test_a_volume_with_an_absurd_grid_is_one_line(tmp_path, run_verb, trained):
    write_large(tmp_path / "x.nrrd", spacing=(150, 150, 200))
    code, _, err = run(run_verb, trained, tmp_path / "x.nrrd", tmp_path / "y.nrrd", "--overlap", "0.5")
    assert code == 2
    assert "x.nrrd: takes 4000 x 3000 x 2100 voxels on the network's grid" in err
    assert err.count("\n") == 1
    assert run(run_verb, trained, tmp_path / "x.nrrd", tmp_path / "y.nrrd")[0] == 0


def test_a_real_volume_in_windows(real_data, tmp_path, run_verb):
    path = real_data / "promise12" / "Case00.mhd"
    torch.manual_seed(0)
    model = VNet(base_channels=2)
    checkpoint.save(tmp_path / "x.pt", model, spacing=[1.1, 1.1, 2.25], volume=[80, 96, 32], validation=[])
    code, out, err = run(run_verb, tmp_path / "x.pt", path, tmp_path / "y.mhd", "--probabilities", "--overlap", "0.25")
    assert code == 0, err
    assert "1 of 1 volumes are larger than the network's 88 x 105.6 x 72 mm: in windows, overlap 0.25" in out
    image, mask = volumes.read_image(path), sitk.ReadImage(str(tmp_path / "y.mhd"))
    for quantity in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(mask), quantity), getattr(Grid.of(image), quantity), atol=1e-5)
    # the working grid is the file's own: what the windows gave is what is written
    array = sitk.GetArrayFromImage(image)
    values = normalise(array, array[:, 16:112, 24:104])
    expected = predict_probabilities(model, values, window=(32, 96, 80), overlap=0.25)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "y_probability.mhd")))
    np.testing.assert_allclose(found, expected[1], rtol=0, atol=1e-5)
