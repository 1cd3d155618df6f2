import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.volumes import make_image, probabilities_on_image, write_case
from vnet_fast import VNet, evaluate, predict
from vnet_fast.data.intensity import normalise
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid, covering_size, image_on_grid, working_grid
from vnet_fast.prediction import networks, segmentation
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.prediction.networks import load_networks
from vnet_fast.run import checkpoint

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def trained(tmp_path):
    """A checkpoint of a network that calls what is 1.2 standard deviations brighter than the mean."""
    model = VNet(base_channels=2, num_classes=2)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        # the residuals carry the input through the first stage and over the last skip
        for module in model.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.fill_(1)
        model.head.weight[1, 2:] = 1
        model.head.bias[1] = -2 * 1.2
    path = tmp_path / "bright.pt"
    checkpoint.save(path, model, spacing=[1.5, 1.5, 2.0], volume=[16, 16, 16], validation=["Case01", "Case04"])
    return path


def run(run_verb, trained, source, target, *more):
    return run_verb(predict, "--checkpoint", trained, "--input", source, "--output", target, "--device", "cpu", *more)


def test_network_of_the_fixture_finds_what_is_bright(trained):
    model = checkpoint.build_model(checkpoint.load(trained), trained, torch.device("cpu"))
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(model(x).argmax(1, keepdim=True) == 1, x > 1.2)


@pytest.mark.parametrize("suffix", [".mhd", ".nii.gz", ".nrrd", ".mha", ".nii"])
def test_one_file_in_its_own_format_and_grid(tmp_path, run_verb, trained, suffix):
    generator = np.random.default_rng(0)
    array = generator.normal(100, 5, (14, 17, 19)).astype(np.int16)
    array[4:10, 5:12, 6:13] += 200
    image = make_image(array, (1.1, 1.2, 2.5), (10, -20, 30), OBLIQUE)
    sitk.WriteImage(image, str(tmp_path / f"scan{suffix}"))
    target = tmp_path / "out" / f"mask{suffix}"
    code, out, err = run(run_verb, trained, tmp_path / f"scan{suffix}", target)
    assert code == 0, err
    mask = sitk.ReadImage(str(target))
    assert mask.GetPixelID() == sitk.sitkUInt8
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(mask), name), getattr(Grid.of(image), name), atol=1e-4)
    found, truth = sitk.GetArrayFromImage(mask) == 1, array > 200
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    assert "1 of 1 volumes segmented" in out


def test_a_folder(cases, tmp_path, run_verb, trained):
    code, out, err = run(run_verb, trained, cases, tmp_path / "out")
    assert code == 0, err
    names = sorted(path.name for path in (tmp_path / "out").glob("*.mhd"))
    assert names == [f"Case{i:02d}.mhd" for i in range(6)]
    assert "6 of 6 volumes segmented" in out
    # the fixture's balls are bright: the masks are theirs
    code, out, _ = run_verb(evaluate, "--predictions", tmp_path / "out", "--labels", cases)
    assert code == 0
    assert float(out.splitlines()[-1].split()[4]) > 0.9, out


def test_validation_cases_only(cases, tmp_path, run_verb, trained):
    assert run(run_verb, trained, cases, tmp_path / "out", "--validation-only")[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mhd")) == ["Case01.mhd", "Case04.mhd"]
    other = tmp_path / "other"
    other.mkdir()
    write_case(other, "Unknown")
    code, _, err = run(run_verb, trained, other, tmp_path / "out", "--validation-only")
    assert code == 2
    assert "none of the run's validation cases" in err


def test_probabilities_and_components(tmp_path, run_verb, trained):
    array = np.full((16, 16, 16), 100, np.int16)
    array[2:6, 2:6, 2:6], array[10:15, 10:15, 10:15] = 200, 200
    sitk.WriteImage(make_image(array, (1.5, 1.5, 2.0)), str(tmp_path / "x.mha"))
    assert run(run_verb, trained, tmp_path / "x.mha", tmp_path / "one.mha")[0] == 0
    assert (
        run(run_verb, trained, tmp_path / "x.mha", tmp_path / "all.mha", "--all-components", "--probabilities")[0] == 0
    )
    one, both = (sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"{n}.mha"))) for n in ("one", "all"))
    np.testing.assert_array_equal(both == 1, array == 200)
    assert one.sum() == 125
    probability = sitk.ReadImage(str(tmp_path / "all_probability.mha"))
    assert probability.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(probability) > 0.5, both == 1)


def test_one_probability_for_each_class(tmp_path, run_verb):
    checkpoint.save(
        tmp_path / "x.pt", VNet(base_channels=2, num_classes=3), spacing=[1, 1, 1], volume=[16, 16, 16], validation=[]
    )
    array = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    sitk.WriteImage(make_image(array), str(tmp_path / "x.nrrd"))
    assert run(run_verb, tmp_path / "x.pt", tmp_path / "x.nrrd", tmp_path / "y.nrrd", "--probabilities")[0] == 0
    assert {path.name for path in tmp_path.glob("y*")} == {"y.nrrd", "y_probability_1.nrrd", "y_probability_2.nrrd"}


def save_network(path, seed, validation=("Case01", "Case04"), spacing=(1.5, 1.5, 2.0), volume=(16, 16, 16), **settings):
    torch.manual_seed(seed)
    model = VNet(**{"base_channels": 2, "num_classes": 3, **settings})
    with torch.no_grad():
        # as it is made, its probabilities hardly depend on the weights
        model.head.weight.mul_(20)
    state = {"spacing": list(spacing), "volume": list(volume), "validation": list(validation)}
    checkpoint.save(path, model, **state)
    return path


def test_batch_norm_is_folded_for_prediction(tmp_path):
    path = save_network(tmp_path / "x.pt", 0, norm="batch", levels=3)
    assert load_networks([str(path)], torch.device("cpu")).model.norm is None


def ensemble_of(run_verb, paths, source, target, *more):
    arguments = ["--input", source, "--output", target, "--device", "cpu", *more]
    return run_verb(predict, "--checkpoint", *paths, *arguments)


def test_of_several_checkpoints_the_probabilities_are_averaged(cases, tmp_path, run_verb):
    paths = [
        save_network(tmp_path / "a.pt", 0),
        save_network(tmp_path / "b.pt", 1, topology="caffe"),
        save_network(tmp_path / "c.pt", 2, base_channels=1),
    ]
    folders = [tmp_path / name for name in ("a", "b", "c", "all")]
    for chosen, folder in zip([*([path] for path in paths), paths], folders, strict=True):
        code, out, err = ensemble_of(run_verb, chosen, cases / "Case00.mhd", folder, "--probabilities")
        assert code == 0, err
        assert ("3 networks averaged" in out) == (chosen is paths)
    for label in (1, 2):
        name = f"Case00_probability_{label}.mhd"
        *each, found = (sitk.GetArrayFromImage(sitk.ReadImage(str(folder / name))) for folder in folders)
        np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=0, atol=1e-6)
        assert min(np.abs(found - one).max() for one in each) > 1e-3


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"num_classes": 2}, "b.pt: its number of classes is 2, that of"),
        ({"spacing": (1.5, 1.5, 2.5)}, "b.pt: its spacing is 1.5 1.5 2.5, that of"),
        ({"volume": (16, 16, 32)}, "b.pt: its volume is 16 16 32, that of"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_checkpoints_that_do_not_go_together(cases, tmp_path, run_verb, difference, message):
    paths = [save_network(tmp_path / "a.pt", 0), save_network(tmp_path / "b.pt", 1, **difference)]
    code, _, err = ensemble_of(run_verb, paths, cases, tmp_path / "out")
    assert code == 2
    assert message in err
    assert "a.pt is" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_validation_cases_of_several_are_those_that_none_trained_on(cases, tmp_path, run_verb):
    paths = [
        save_network(tmp_path / "a.pt", 0, ["Case01", "Case04"]),
        save_network(tmp_path / "b.pt", 1, ["Case02", "Case04"]),
    ]
    assert ensemble_of(run_verb, paths, cases, tmp_path / "out", "--validation-only")[0] == 0
    assert [path.name for path in (tmp_path / "out").glob("*.mhd")] == ["Case04.mhd"]
    paths.append(save_network(tmp_path / "c.pt", 2, ["Case03"]))
    code, _, err = ensemble_of(run_verb, paths, cases, tmp_path / "other", "--validation-only")
    assert code == 2
    assert "--validation-only: no case was held out by every run. Give one checkpoint" in err


def test_where_memory_is_short_for_one_all_networks_run_on_the_cpu(tmp_path, monkeypatch):
    paths = [save_network(tmp_path / f"{seed}.pt", seed) for seed in range(3)]
    build, tried, moved = checkpoint.build_model, [], []

    def build_model(content, path, device):
        tried.append((path.stem, device.type))
        if device.type == "meta" and path.stem == "1":
            raise torch.OutOfMemoryError
        return build(content, path, torch.device("cpu"))

    monkeypatch.setattr(checkpoint, "build_model", build_model)
    monkeypatch.setattr(torch.nn.ModuleList, "to", lambda models, device: (moved.append(device.type), models)[1])
    loaded = networks.load_networks(paths, torch.device("meta"))
    assert tried == [("0", "meta"), ("1", "meta"), ("1", "cpu"), ("2", "cpu")]
    assert (len(loaded.model), loaded.device.type, moved) == (3, "cpu", ["cpu"])


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
    result = segmentation.segment(model, tmp_path / "x.nrrd", (1.5, 1.5, 2.0), [16, 16, 16], None, overlap)
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
        f"{tmp_path / 'x.nrrd'}: out of memory on the GPU, windows are 48 x 32 x 16 voxels, which is less accurate"
    ]
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "y.nrrd")))
    corners = tuple(np.ix_(*([0, 1, 2, n - 3, n - 2, n - 1] for n in found.shape)))
    np.testing.assert_array_equal(found[corners] == 1, expected[corners])


def test_a_network_that_the_gpu_cannot_hold(trained, monkeypatch, capsys):
    original = checkpoint.build_model

    def build_model(content, path, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(content, path, device)

    monkeypatch.setattr(checkpoint, "build_model", build_model)
    model, device = networks.build_network(checkpoint.load(trained), trained, torch.device("cuda"))
    assert device == next(model.parameters()).device == torch.device("cpu")
    assert "bright.pt: out of memory on the GPU, the network runs on the CPU" in capsys.readouterr().out


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


def test_bad_volumes_are_named_and_the_others_predicted(cases, tmp_path, run_verb, trained):
    (cases / "Case01.zraw").unlink()
    (cases / "Case03.zraw").write_bytes(b"nonsense")
    code, out, err = run(run_verb, trained, cases, tmp_path / "out")
    assert code == 2
    assert err.count("\n") == 2
    assert "Case01.mhd: its data file Case01.zraw is missing" in err
    assert "4 of 6 volumes segmented" in out
    assert sorted(path.stem for path in (tmp_path / "out").glob("*.mhd")) == ["Case00", "Case02", "Case04", "Case05"]


def test_its_voxels_in_another_file_are_never_replaced(cases, run_verb, trained):
    header = cases / "Case00.mhd"
    header.write_text(header.read_text().replace("Case00.zraw", "voxels.zraw"))
    (cases / "Case00.zraw").rename(cases / "voxels.zraw")
    before = (cases / "voxels.zraw").read_bytes()
    code, _, err = run(run_verb, trained, header, cases / "voxels.mhd")
    assert code == 2
    assert "voxels.zraw: would replace the volume itself" in err
    assert (cases / "voxels.zraw").read_bytes() == before


def test_a_single_file_must_be_one_of_the_validation_cases(cases, tmp_path, run_verb, trained):
    code, _, err = run(run_verb, trained, cases / "Case00.mhd", tmp_path / "out", "--validation-only")
    assert code == 2
    assert "Case00.mhd: none of the run's validation cases" in err
    assert run(run_verb, trained, cases / "Case01.mhd", tmp_path / "out", "--validation-only")[0] == 0


def test_the_current_folder_has_a_name(real_data, tmp_path, run_verb, trained, monkeypatch):
    monkeypatch.chdir(real_data / "dicom" / "Prostate3T-03-0001")
    assert run(run_verb, trained, ".", tmp_path / "out")[0] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Prostate3T-03-0001.nii.gz"]


@pytest.mark.parametrize(("message", "dtype"), [([], None), (["--amp", "bf16"], torch.bfloat16)], ids=str)
def test_amp_reaches_the_network(cases, tmp_path, run_verb, trained, monkeypatch, message, dtype):
    seen, original = [], segmentation.predict_probabilities
    monkeypatch.setattr(
        segmentation,
        "predict_probabilities",
        lambda *arguments, **how: (seen.append(arguments[2]), original(*arguments, **how))[1],
    )
    assert run(run_verb, trained, cases / "Case00.mhd", tmp_path / "out", *message)[0] == 0
    assert seen == [dtype]


@pytest.mark.parametrize(
    "state",
    [
        {"spacing": ["a", "b", "c"]},
        {"spacing": [1.0, 1.0]},
        {"volume": [16, 16, 16.5]},
        {"volume": 16},
        {"validation": None},
    ],
    ids=str,
)
def test_checkpoint_with_an_odd_grid(cases, tmp_path, run_verb, state):
    sound = {"spacing": [1.0, 1.0, 1.0], "volume": [16, 16, 16], "validation": []}
    checkpoint.save(tmp_path / "x.pt", VNet(base_channels=2), **{**sound, **state})
    code, _, err = run(run_verb, tmp_path / "x.pt", cases, tmp_path / "out")
    assert code == 2
    assert "x.pt: does not say its spacing and size" in err


def test_checkpoint_of_several_channels(cases, tmp_path, run_verb):
    sound = {"spacing": [1.0, 1.0, 1.0], "volume": [16, 16, 16], "validation": []}
    checkpoint.save(tmp_path / "x.pt", VNet(in_channels=2, base_channels=2), **sound)
    code, _, err = run(run_verb, tmp_path / "x.pt", cases, tmp_path / "out")
    assert code == 2
    assert "is of a network for several input channels" in err


def test_the_volume_itself_is_never_replaced(cases, run_verb, trained):
    before = (cases / "Case00.mhd").read_bytes()
    code, _, err = run(run_verb, trained, cases, cases)
    assert code == 2
    assert "Case00.mhd: would replace the volume itself" in err
    assert run(run_verb, trained, cases / "Case00.mhd", cases / "Case00.mhd")[0] == 2
    assert (cases / "Case00.mhd").read_bytes() == before


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("nowhere.nii", "out", "nowhere.nii: no such file"),
        ("empty", "out", "empty: no volumes"),
        ("cases", "mask.nii.gz", "mask.nii.gz: one file for 6 volumes. Name a folder"),
        ("cases", "bright.pt/out", "can't be made"),
        ("cases/Case00.mhd", "mask.txt", "mask.txt: not a format that is written"),
    ],
)
def test_wrong_paths_are_one_line(cases, tmp_path, run_verb, trained, source, target, message):
    (tmp_path / "empty").mkdir()
    code, _, err = run(run_verb, trained, tmp_path / source, tmp_path / target)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(cases, tmp_path, run_verb, trained, monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    code, _, err = run(run_verb, trained, cases / "Case00.mhd", tmp_path / "out")
    assert code == 2
    assert "can't be written (No space left on device)" in err
    assert not list((tmp_path / "out").iterdir())


def test_checkpoint_that_is_none(cases, tmp_path, run_verb):
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    code, _, err = run(run_verb, tmp_path / "x.pt", cases, tmp_path / "out")
    assert code == 2
    assert "x.pt: damaged, or not a checkpoint" in err
    checkpoint.save(tmp_path / "x.pt", VNet(base_channels=2))
    code, _, err = run(run_verb, tmp_path / "x.pt", cases, tmp_path / "out")
    assert code == 2
    assert "x.pt: does not say its spacing and size" in err


@pytest.mark.parametrize("name", ["dicom/Prostate3T-03-0001", "native/Prostate3T-03-0002.nii.gz"])
def test_real_oblique_volumes(real_data, tmp_path, run_verb, trained, name):
    code, _, err = run(run_verb, trained, real_data / name, tmp_path / "out", "--overlap", "0")
    assert code == 0, err
    (mask,) = (tmp_path / "out").glob("*.nii.gz")
    image, mask = volumes.read_image(real_data / name), sitk.ReadImage(str(mask))
    for quantity in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(
            getattr(Grid.of(mask), quantity), getattr(Grid.of(image), quantity), rtol=1e-5, atol=1e-4
        )
    assert sitk.GetArrayViewFromImage(mask).any()
