"""What `Segmenter` takes, and that it does what the command does."""

import copy
import os
import pickle
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.interface.conftest import image_of, read
from tests.prediction.fake_graphs import graphs
from tests.volumes import write_case
from vnet_fast import InputError, Segmenter, predict
from vnet_fast.io.grid import Grid

__all__ = ["graphs"]
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


def test_the_same_mask_and_maps_as_the_command(case, tmp_path, run_verb, trained, segmenter):
    image, _ = case
    options = "--probabilities", "--entropy", "--device", "cpu"
    code, _, err = run_verb(
        predict, "--checkpoint", trained, "--input", image, "--output", tmp_path / "out" / "mask.nii.gz", *options
    )
    assert code == 0, err
    result = segmenter(image)
    mask, probability, entropy = (
        read(tmp_path / "out" / f"mask{end}.nii.gz") for end in ("", "_probability", "_entropy")
    )
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), result.labels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(probability), result.probabilities[1])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(entropy), result.entropy)
    assert result.labels.any()
    assert entropy.GetPixelID() == sitk.sitkFloat32
    assert Grid.of(result.mask) == Grid.of(read(image))


def test_a_file_an_image_and_an_array_give_the_same(case, segmenter):
    path, _ = case
    image = read(path)
    array = sitk.GetArrayFromImage(image)
    results = [
        segmenter(path),
        segmenter(str(path)),
        segmenter([path]),
        segmenter(image),
        segmenter(array, spacing=image.GetSpacing()),
        segmenter(torch.from_numpy(array)[None], spacing=image.GetSpacing()),
    ]
    for result in results[1:]:
        np.testing.assert_array_equal(result.labels, results[0].labels)
        np.testing.assert_array_equal(result.probabilities, results[0].probabilities)
    assert results[0].labels.any()


def test_a_tensor_of_monai_lies_where_its_file_does(case, tmp_path, segmenter):
    transforms = pytest.importorskip("monai.transforms", reason="MONAI is not installed")
    path = tmp_path / "oblique.nii.gz"
    array = sitk.GetArrayFromImage(read(case[0]))
    sitk.WriteImage(image_of(array, origin=(10, -20, 30), direction=OBLIQUE), str(path))
    expected = segmenter(path)
    for with_channel in (True, False):
        loaded = transforms.LoadImage(ensure_channel_first=with_channel)(path)
        found = segmenter(loaded)
        np.testing.assert_array_equal(found.labels, expected.labels)
        for name in ("size", "spacing", "origin", "direction"):
            of_mask, of_file = (getattr(Grid.of(result.mask), name) for result in (found, expected))
            np.testing.assert_allclose(of_mask, of_file, atol=1e-4)
    with pytest.raises(TypeError, match="spacing is for an array"):
        segmenter(loaded, spacing=(1, 1, 1))
    with pytest.raises(TypeError, match="real numbers"):
        segmenter(loaded.to(torch.complex64))
    loaded.affine = torch.diag(torch.tensor([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="must be finite and have three axes"):
        segmenter(loaded)
    assert expected.labels.any()


def test_the_result_has_the_grid_of_an_image(case, segmenter):
    path, _ = case
    oblique = image_of(sitk.GetArrayFromImage(read(path)), origin=(10, -20, 30), direction=OBLIQUE)
    mask = segmenter(oblique).mask
    assert Grid.of(mask) == Grid.of(oblique)
    assert mask.GetPixelID() == sitk.sitkUInt8


def test_a_series_of_dicom(real_data, segmenter):
    folder = real_data / "dicom" / "Prostate3T-03-0001"
    with pytest.warns(UserWarning, match="larger"):
        result = segmenter(folder)
    assert result.mask.GetSize()[2] == len(list(folder.glob("*.dcm")))


@pytest.mark.parametrize("form", ["files", "first file", "images", "vector", "4-D image", "array"])
def test_channels(form, tmp_path, random_network):
    """However the channels are given, it is the same volume; in another order it is another one."""
    generator = np.random.default_rng(0)
    array = generator.normal(100, 20, (2, 12, 14, 16)).astype(np.float32)
    # which float32, as files have it, holds exactly
    images = [image_of(channel, spacing=(1.25, 1.5, 2)) for channel in array]
    paths = [tmp_path / f"case_{number:04d}.nii.gz" for number in range(2)]
    for image, path in zip(images, paths, strict=True):
        sitk.WriteImage(image, str(path))
    segment = Segmenter.load(random_network(network={"in_channels": 2}), device="cpu")
    expected = segment(paths).probabilities
    found = {
        "files": lambda: segment(list(map(str, paths))),
        "first file": lambda: segment(paths[0]),
        "images": lambda: segment(images),
        "vector": lambda: segment(sitk.Compose(images)),
        "4-D image": lambda: segment(sitk.JoinSeries(images)),
        "array": lambda: segment(array, spacing=images[0].GetSpacing()),
    }[form]()
    np.testing.assert_array_equal(found.probabilities, expected)
    assert not np.array_equal(segment(paths[::-1]).probabilities, expected)


def test_threads_give_the_bits_of_one(tmp_path, random_network):
    paths = [write_case(tmp_path, f"case{index}", seed=index)[0] for index in range(6)]
    segment = Segmenter.load(random_network(), device="cpu", overlap=0.5, all_components=True)
    alone = [segment(path) for path in paths]
    barrier = threading.Barrier(len(paths))

    def together(path):
        barrier.wait(10)
        return segment(path)

    with ThreadPoolExecutor(len(paths)) as pool:
        results = list(pool.map(together, paths))
    for ours, theirs in zip(results, alone, strict=True):
        assert np.array_equal(ours.probabilities, theirs.probabilities)
        assert np.array_equal(ours.labels, theirs.labels)
        assert np.array_equal(ours.entropy, theirs.entropy)
    assert not np.array_equal(alone[0].probabilities, alone[1].probabilities)


def test_the_network_is_used_by_one_thread_at_a_time(case, segmenter, monkeypatch):
    """Which convolution is fast is found out once, and a network may move to another device."""
    from vnet_fast.interface import segmenter as module

    inside, most, original = [], [], module.segment_images

    def observed(*arguments, **options):
        inside.append(1)
        most.append(len(inside))
        result = original(*arguments, **options)
        inside.pop()
        return result

    monkeypatch.setattr(module, "segment_images", observed)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(segmenter, [case[0]] * 8))
    assert most == [1] * 8


def test_volumes_share_a_graph(tmp_path, random_network, graphs):
    paths = [write_case(tmp_path, f"case{index}", seed=index)[0] for index in range(5)]
    checkpoint = random_network(network={"norm": "batch"})
    eager, segment = (Segmenter.load(checkpoint, device="cpu", tta=True, graph=wanted) for wanted in (False, True))
    expected = [eager(path).probabilities for path in paths]
    assert graphs == []
    for path, probabilities in zip(paths, expected, strict=True):
        np.testing.assert_array_equal(segment(path).probabilities, probabilities)
    assert graphs.replays == [3]


def test_a_graph_that_can_not_be_captured_is_a_warning(case, trained, graphs):
    graphs.error = RuntimeError("operation not permitted")
    segment = Segmenter.load(trained, device="cpu")
    with pytest.warns(
        UserWarning, match=r"case.nii.gz: no CUDA graph of the network.*: operation not permitted"
    ) as found:
        results = [segment(case[0]) for _ in range(4)]
    assert len(found) == 1
    np.testing.assert_array_equal(results[2].probabilities, results[0].probabilities)


def test_nothing_is_printed(case, tmp_path, trained, capfd):
    other = shutil.copy(trained, tmp_path / "other.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Segmenter.load([trained, other], device="cpu", tta=True, overlap=0.5)(case[0]).show()
    assert capfd.readouterr() == ("", "")


def test_a_larger_volume_is_a_warning_unless_it_is_covered(tmp_path, trained):
    path, _ = write_case(tmp_path, "large", size=(40, 18, 16))
    with pytest.warns(UserWarning, match=r"large.mhd: larger than .* 24 x 24 x 32 mm: background beyond") as found:
        Segmenter.load(trained, device="cpu")(path)
    # the line that called it
    assert [warning.filename for warning in found] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Segmenter.load(trained, device="cpu", overlap=0)(path)


def test_short_memory_is_a_warning(case, segmenter, monkeypatch):
    from vnet_fast.prediction import inference

    attempts, original = [], inference._average

    def short(*arguments):
        attempts.append(1)
        if len(attempts) == 1:
            raise RuntimeError("[enforce fail] can't allocate memory")
        return original(*arguments)

    monkeypatch.setattr(inference, "_average", short)
    with pytest.raises(torch.OutOfMemoryError):
        segmenter(case[0])
    list_attempts = inference.list_attempts
    monkeypatch.setattr(inference, "list_attempts", lambda *arguments: 2 * list_attempts(*arguments))
    attempts.clear()
    with pytest.warns(UserWarning, match=r"case.nii.gz: out of memory on the CPU"):
        segmenter(case[0])


def test_checkpoints_that_are_averaged(case, random_network, trained):
    other = random_network()
    alone = [Segmenter.load(path, device="cpu")(case[0]).probabilities for path in (trained, other)]
    together = Segmenter.load([trained, other], device="cpu")(case[0]).probabilities
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)


def test_bad_volumes_are_errors_of_the_command(case, tmp_path, segmenter, run_verb, trained):
    (tmp_path / "x.nii.gz").write_bytes(case[0].read_bytes()[:-20])
    with pytest.raises(InputError) as found:
        segmenter(tmp_path / "x.nii.gz")
    error = found.value
    assert error.subject == str(tmp_path / "x.nii.gz")
    assert error.cause
    assert error.remedy
    arguments = "--checkpoint", trained, "--input", tmp_path / "x.nii.gz", "--output", tmp_path / "y", "--device", "cpu"
    code, _, err = run_verb(predict, *arguments)
    assert (code, err) == (2, f"error: {error}\n")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda path: {"volume": np.zeros((4, 4, 4))}, TypeError, "an array needs its spacing"),
        (lambda path: {"volume": np.zeros((4, 4, 4)), "spacing": "111"}, TypeError, "an array needs its spacing"),
        (lambda path: {"volume": np.zeros((4, 4)), "spacing": (1, 1, 1)}, ValueError, r"\(z, y, x\).*got \(4, 4\)"),
        (lambda path: {"volume": np.zeros((4, 4, 4)), "spacing": (1, 1)}, ValueError, "three numbers above 0"),
        (lambda path: {"volume": np.zeros((4, 4, 4)), "spacing": (1, 1, -1)}, ValueError, "three numbers above 0"),
        (lambda path: {"volume": np.zeros((4, 4, 4), complex), "spacing": (1, 1, 1)}, TypeError, "real numbers"),
        (lambda path: {"volume": path, "spacing": (1, 1, 1)}, TypeError, "spacing is for an array"),
        (lambda path: {"volume": [path, read(path)]}, TypeError, "paths or images, not some of each"),
        (lambda path: {"volume": None}, TypeError, "must be a path"),
        (lambda path: {"volume": sitk.Image(4, 4, sitk.sitkFloat32)}, ValueError, "must have 3 dimensions"),
        (lambda path: {"volume": sitk.Image(0, 4, 4, sitk.sitkFloat32)}, ValueError, "must have voxels"),
        (lambda path: {"volume": sitk.Image(4, 4, 4, sitk.sitkComplexFloat32)}, TypeError, "real numbers"),
        (lambda path: {"volume": np.full((4, 4, 4), np.nan), "spacing": (1, 1, 1)}, InputError, "the array: 64 voxels"),
        (lambda path: {"volume": np.zeros((4, 4, 4)), "spacing": (1, 1, 1)}, InputError, "the array: .*same value"),
        (lambda path: {"volume": np.zeros((4, 4, 4)), "spacing": (1, 1, 1e9)}, InputError, "the array: its spacing"),
        (lambda path: {"volume": np.zeros((2, 4, 4, 4)), "spacing": (1, 1, 1)}, InputError, "has 2 channels"),
        (lambda path: {"volume": path.with_name("nowhere.nii")}, InputError, "no such file"),
        (lambda path: {"volume": path.parent}, InputError, "without a DICOM series"),
    ],
)
def test_what_is_no_volume(case, segmenter, make, kind, message):
    with pytest.raises(kind, match=message):
        segmenter(**make(case[0]))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"amp": "half"}, ValueError, "amp must be one of"),
        ({"overlap": 1}, ValueError, "overlap must be a number, 0 or more and below 1"),
        ({"overlap": "0.5"}, ValueError, "overlap must be a number, 0 or more and below 1; got '0.5'"),
        ({"device": "tpu"}, InputError, "--device: is tpu"),
        ({"speed": 9}, TypeError, "speed"),
    ],
)
def test_wrong_arguments(trained, options, kind, message):
    with pytest.raises(kind, match=message):
        Segmenter.load(trained, **options)


def test_checkpoints_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Segmenter.load(tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"config.json: no such file. Name the folder of a run"):
        Segmenter.load(tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        Segmenter.load([])


def test_it_says_what_it_is(segmenter, trained):
    assert repr(segmenter) == "Segmenter(1 network, 16 x 16 x 16 voxels of 1.5 x 1.5 x 2 mm, cpu, float32)"
    assert os.fspath(trained)


def test_the_volume_is_not_replaced_from_another_folder(case, tmp_path, segmenter, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result, before = segmenter(case[0].name), case[0].read_bytes()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(InputError, match="would replace the volume itself"):
        result.save(case[0])
    assert case[0].read_bytes() == before
    (tmp_path / "other" / "bad.nii.gz").write_bytes(b"nonsense")
    with pytest.raises(InputError) as found:
        segmenter("bad.nii.gz")
    assert found.value.subject == "bad.nii.gz"


def test_a_result_keeps_its_image_when_the_program_changes_its_own(case, segmenter):
    image = sitk.Cast(sitk.ReadImage(str(case[0])), sitk.sitkFloat32)
    result = segmenter(image)
    before = sitk.GetArrayFromImage(image)
    image *= 0
    np.testing.assert_array_equal(sitk.GetArrayFromImage(result.image), before)


def test_an_image_of_vectors_with_one_component(case, segmenter):
    image = sitk.ReadImage(str(case[0]))
    mask = segmenter(sitk.Compose([image])).labels
    np.testing.assert_array_equal(mask, segmenter(image).labels)
    np.testing.assert_array_equal(segmenter(sitk.JoinSeries([sitk.Compose([image])])).labels, mask)


@pytest.mark.parametrize("size", [(4, 4, 4), (4, 4, 4, 2)])
def test_an_image_of_label_objects_has_no_intensities(size, segmenter):
    with pytest.raises(TypeError, match="the image must have real numbers; got label of 8-bit unsigned integer"):
        segmenter(sitk.Image(size, sitk.sitkLabelUInt8))


def test_another_default_type_of_pytorch(case, trained, segmenter):
    torch.set_default_dtype(torch.float64)
    try:
        mask = Segmenter.load(trained, device="cpu")(case[0]).labels
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(mask, segmenter(case[0]).labels)


def test_it_can_be_copied_and_sent_to_other_processes(case, segmenter):
    expected = segmenter(case[0]).labels
    for other in (copy.deepcopy(segmenter), pickle.loads(pickle.dumps(segmenter))):
        np.testing.assert_array_equal(other(case[0]).labels, expected)
        assert repr(other) == repr(segmenter)


def test_mixed_precision_of_the_program_changes_nothing(case, segmenter):
    expected = segmenter(case[0]).probabilities
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(segmenter(case[0]).probabilities, expected)


def test_a_device_of_pytorch(trained):
    assert Segmenter.load(trained, device=torch.device("cpu")).networks.device == torch.device("cpu")


def test_corrected_labels_are_drawn_measured_and_saved(case, tmp_path, segmenter):
    result = segmenter(case[0])
    volume = result.volumes_ml
    result.labels[:] = 0
    result.labels[3] = 1
    result.save(tmp_path / "corrected.nii.gz")
    for image in (read(tmp_path / "corrected.nii.gz"), result.mask):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), result.labels)
    corrected = result.volumes_ml
    assert corrected.keys() == volume.keys()
    assert list(corrected.values()) == [pytest.approx(20 * 18 * np.prod(result.spacing) / 1000)]


def test_tensors(case, segmenter):
    image = read(case[0])
    tensor = torch.from_numpy(sitk.GetArrayFromImage(image)).to(torch.bfloat16).requires_grad_()
    spacing = image.GetSpacing()
    found, expected = (segmenter(volume, spacing=spacing) for volume in (tensor, tensor.detach().float().numpy()))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
