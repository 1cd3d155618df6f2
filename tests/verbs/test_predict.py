"""The masks that `predict` writes, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.io.dicom_slices import write_dicom
from tests.prediction.fake_graphs import graphs
from tests.volumes import make_image, write_case
from vnet_fast import Segmenter, VNet, evaluate, predict
from vnet_fast.errors import InputError
from vnet_fast.io import volumes
from vnet_fast.io.grid import Grid
from vnet_fast.prediction import networks, segmentation
from vnet_fast.prediction.plan import plan, volume_files
from vnet_fast.run import checkpoint

__all__ = ["graphs"]
OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)


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


def test_a_link_keeps_its_name(cases, tmp_path, run_verb, trained, monkeypatch):
    """Archives of data name what a link leads to by its content."""
    store = tmp_path / "store"
    store.mkdir()
    for index in (1, 2):
        content = sitk.ReadImage(str(cases / f"Case0{index}.mhd"))
        (store / str(index)).mkdir()
        sitk.WriteImage(content, str(store / str(index) / "MD5.nii.gz"))
        (tmp_path / f"scan{index}.nii.gz").symlink_to(store / str(index) / "MD5.nii.gz")
    monkeypatch.chdir(tmp_path)
    for source in ("scan1.nii.gz", tmp_path / "scan2.nii.gz"):
        code, _, err = run(run_verb, trained, source, tmp_path / "out")
        assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["scan1.nii.gz", "scan2.nii.gz"]


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 GiB"), RuntimeError("can't allocate memory")])
def test_short_memory_is_one_line_and_the_others_are_predicted(cases, tmp_path, run_verb, monkeypatch, error):
    checkpoint.save(tmp_path / "x.pt", VNet(base_channels=2), spacing=[1, 1, 1], volume=[16, 16, 16], validation=[])
    segment = Segmenter.segmentation_of

    def short(self, files):
        if "Case01" in str(files[0]):
            raise error
        return segment(self, files)

    monkeypatch.setattr(Segmenter, "segmentation_of", short)
    arguments = ["--checkpoint", tmp_path / "x.pt", "--input", cases, "--output", tmp_path / "out", "--device", "cpu"]
    code, _, err = run_verb(predict, *arguments)
    assert code == 2
    line = f"error: {cases / 'Case01.mhd'}: out of memory. Close other programs, or give it more memory"
    assert [text for text in err.splitlines() if text.startswith("error")] == [line]
    assert len(list((tmp_path / "out").glob("*.mhd"))) == 5


def test_the_channels_of_a_link(tmp_path):
    for number in range(2):
        (tmp_path / f"content{number}").write_bytes(b"x")
        (tmp_path / f"A_000{number}.nii.gz").symlink_to(tmp_path / f"content{number}")
    paths = [tmp_path / f"A_000{number}.nii.gz" for number in range(2)]
    assert list(volume_files(paths[0], several=True)) == paths


def test_a_first_channel_alone_is_named_as_in_a_folder(tmp_path):
    """A volume that is beside it without the ending keeps its name for itself."""
    for name in ("A_0000.nii.gz", "B_0000.nii.gz", "B.nrrd", "C_0001.nii.gz"):
        (tmp_path / name).write_bytes(b"x")
    for several in (False, True):
        for name, mask in (("A_0000", "A"), ("B_0000", "B_0000"), ("C_0001", "C_0001")):
            files = (tmp_path / f"{name}.nii.gz",)
            assert plan(files[0], tmp_path / "out", several=several) == [(files, tmp_path / "out" / f"{mask}.nii.gz")]


def test_a_mask_does_not_take_the_name_of_a_volume_in_its_folder(tmp_path, monkeypatch):
    """Where a second run would find it, and take it for a volume."""
    (tmp_path / "A_0000.nii.gz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"A_0000.nii.gz: would replace the volume itself"):
        plan(tmp_path / "A_0000.nii.gz", tmp_path)
    folder = write_dicom(tmp_path / "B_0000", [0, 3])
    monkeypatch.chdir(folder)
    assert plan(".", "../masks") == [((Path("."),), Path("../masks/B.nii.gz"))]


@pytest.mark.parametrize("name", ["masks_v1.0", "masks.final", "2024.01.02", "a.b/masks"])
def test_a_folder_with_a_dot_in_its_name(tmp_path, name):
    (tmp_path / "A.nrrd").write_bytes(b"x")
    assert plan(tmp_path / "A.nrrd", tmp_path / name) == [((tmp_path / "A.nrrd",), tmp_path / name / "A.nrrd")]


@pytest.mark.parametrize("name", ["m.png", "m.tif", "m.img", "m.hdr", "m.nii.bz2", "m.nifti", "m.nii.old", "m.1.gz"])
def test_what_looks_like_a_file_is_no_folder(tmp_path, name):
    (tmp_path / "A.nrrd").write_bytes(b"x")
    with pytest.raises(InputError, match=f"{name}: not a format that is written"):
        plan(tmp_path / "A.nrrd", tmp_path / name)


def test_a_volume_thinner_than_the_networks_voxels(tmp_path, run_verb, trained):
    array = np.random.default_rng(0).normal(100, 5, (1, 20, 20)).astype(np.float32)
    sitk.WriteImage(make_image(array, (1, 1, 0.3)), str(tmp_path / "thin.nii.gz"))
    code, _, err = run(run_verb, trained, tmp_path / "thin.nii.gz", tmp_path / "mask.nii.gz")
    assert code == 2
    assert err.startswith(f"error: {tmp_path / 'thin.nii.gz'}: is thinner than the network's voxels of ")


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


def test_masks_of_a_data_set_are_never_replaced(cases, run_verb, trained):
    (cases / "labelsTr").mkdir()
    reference = cases / "labelsTr" / "Case00.mha"
    reference.write_bytes(b"of an expert")
    code, out, err = run(run_verb, trained, cases / "Case00.mhd", reference)
    assert (code, out) == (2, "")
    assert f"{reference}: would replace a mask of the data set. Choose another --output" in err
    assert reference.read_bytes() == b"of an expert"


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


@pytest.mark.parametrize(("option", "captured"), [((), 1), (("--no-graph",), 0)], ids=["a graph", "none"])
def test_volumes_share_a_graph(cases, tmp_path, run_verb, trained, graphs, option, captured):
    assert run(run_verb, trained, cases, tmp_path / "out", *option)[0] == 0
    assert len(graphs) == captured


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
    assert "Case00.mhd: has 1 channel, and the network was trained on 2 channels. " in err


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
