"""Pipeline folders and MONAI bundles: what they hold, that their masks are those of `predict`, and what is refused."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.io.dicom_slices import write_dicom
from tests.verbs.test_export import needs_onnx
from tests.volumes import make_image
from vnet_fast import VNet, export, predict
from vnet_fast.deployment import bundle, network_file
from vnet_fast.deployment.folder import new_folder
from vnet_fast.errors import InputError
from vnet_fast.evaluation.metrics import dice
from vnet_fast.run import checkpoint

SPACING, SIZE = (1.2, 1.1, 2.0), (16, 16, 16)
# their names belong to labels in the other order
REGIONS = [{"name": "right", "labels": [2]}, {"name": "ball", "labels": [1, 2]}]
# what a machine has that only a pipeline's requirements are installed on
RUN_ALONE = """
    import sys

    class Forbidden:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "vnet_fast", "scipy", "monai"):
                raise ImportError(name)

    sys.meta_path.insert(0, Forbidden())
    import os, runpy
    program = sys.argv.pop(1)
    sys.path[0] = os.path.dirname(program)
    sys.argv[0] = program
    runpy.run_path(program, run_name="__main__")
"""


def run_pipeline(folder, *arguments):
    """Runs `predict.py` where neither PyTorch nor this package can be imported."""
    command = [sys.executable, "-c", textwrap.dedent(RUN_ALONE), folder / "predict.py", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=120
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def write_checkpoint(path, channels=1, regions=(), patches=False, classes=3, seed=3):
    """A network whose weights are random."""
    torch.manual_seed(seed)
    model = VNet(channels, len(regions) or classes, 8, levels=2, kernel_size=3, norm="batch").eval()
    with torch.no_grad():
        for name, weight in model.named_buffers():
            if name.endswith("var"):
                weight.uniform_(0.5, 2)
    state = {"channels": [{"name": name, "scaling": None} for name in ("FLAIR", "T1c")[:channels]]}
    if regions:
        state |= {"regions": list(regions)}
    names = ["left", "right"] if not regions else [region["name"] for region in regions]
    checkpoint.save(
        path, model, spacing=list(SPACING), volume=list(SIZE), validation=[], patches=patches, classes=names, **state
    )
    return path


def write_volumes(folder, channels):
    """Two volumes, one of them larger than the network's grid and oblique."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("small", (13, 18, 14)), ("large", (30, 20, 23))):
        image = make_image(
            generator.normal(100, 20, size[::-1]).astype(np.int16), (1.3, 1.1, 1.9), (5, 6, 7),
            (0.96, -0.28, 0, 0.28, 0.96, 0, 0, 0, 1),
        )  # fmt: skip
        if channels == 1:
            sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
        elif name == "small":
            sitk.WriteImage(sitk.JoinSeries([image, image * 2 + image]), str(folder / f"{name}.nii.gz"))
        else:
            for number in range(2):
                part = sitk.GetImageFromArray(generator.permuted(sitk.GetArrayFromImage(image)))
                part.CopyInformation(image)
                sitk.WriteImage(part, str(folder / f"{name}_{number:04d}.nii.gz"))
    return folder


def assert_same_masks(ours, theirs):
    """All masks have the grid of ours and a Dice of at least 0.999 for every label; labels are not trivial."""
    # beside them, predict writes the colours of the labels for ITK-SNAP
    names = sorted(path.name for path in ours.glob("*.nii.gz"))
    assert names == sorted(path.name for path in theirs.glob("*.nii.gz"))
    found = set()
    for name in names:
        a, b = (sitk.ReadImage(str(folder / name)) for folder in (ours, theirs))
        for question in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(a, question)(), getattr(b, question)(), rtol=0, atol=1e-4)
        a, b = sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b)
        for label in set(np.unique(a)) | set(np.unique(b)):
            assert dice(a == label, b == label) >= 0.999, (name, label)
        found |= set(np.unique(a))
    assert len(found) > 1, found


KINDS = [
    pytest.param(1, (), False, id="centres"),
    pytest.param(2, REGIONS, True, id="channels, regions and patches"),
]


@pytest.mark.parametrize(
    ("channels", "regions", "patches"),
    [pytest.param(*KINDS[0].values, id=KINDS[0].id, marks=pytest.mark.exhaustive), KINDS[1]],
)
def test_a_pipeline_writes_the_masks_of_predict(tmp_path, run_verb, channels, regions, patches):
    needs_onnx()
    path = write_checkpoint(tmp_path / "x.pt", channels, regions, patches)
    images, folder = write_volumes(tmp_path / "images", channels), tmp_path / "pipeline"
    code, out, err = run_verb(export, "--checkpoint", path, "--output", folder, "--format", "pipeline")
    assert code == 0, err
    assert out.startswith(f"{folder}: run {folder / 'predict.py'} with numpy, SimpleITK and onnxruntime; logits ")
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md", "network.onnx", "network.py", "pipeline.json", "predict.py", "requirements.txt", "volumes.py",
    ]  # fmt: skip
    assert len((folder / "predict.py").read_text().splitlines()) < 200
    assert "vnet_fast." not in "".join((folder / name).read_text() for name in ("predict.py", "network.py"))
    for options in ([], ["--overlap", 0.3, "--all-components"]):
        ours, theirs = tmp_path / f"ours{len(options)}", tmp_path / f"theirs{len(options)}"
        arguments = ["--input", images, *options]
        assert run_verb(predict, "--checkpoint", path, *arguments, "--output", ours, "--device", "cpu")[0] == 0
        code, out, err = run_pipeline(folder, *arguments, "--output", theirs)
        assert (code, err) == (0, "")
        assert out.count(" ml") == 4
        if regions:
            mask = sitk.ReadImage(str(theirs / "small.nii.gz"))
            voxels = np.isin(sitk.GetArrayFromImage(mask), [1, 2]).sum()
            (printed,) = re.findall(r"small.nii.gz: right \S+ ml, ball (\S+) ml", out)
            assert float(printed) == pytest.approx(voxels * math.prod(mask.GetSpacing()) / 1000, rel=6e-3)
        assert_same_masks(ours, theirs)


@pytest.mark.exhaustive
def test_a_pipeline_averages_networks_and_mirrored_volumes(tmp_path, run_verb):
    needs_onnx()
    paths = [write_checkpoint(tmp_path / f"{seed}.pt", 2, REGIONS, patches=True, seed=seed) for seed in (3, 4, 5)]
    images, folder = write_volumes(tmp_path / "images", 2), tmp_path / "pipeline"
    code, out, err = run_verb(export, "--checkpoint", *paths, "--output", folder, "--format", "pipeline", "--tta")
    assert code == 0, err
    names = [f"network_{number}.onnx" for number in range(3)]
    assert sorted(file.name for file in folder.glob("*.onnx")) == names
    assert all(f"{name}: logits " in out for name in names)
    masks = {}
    for name, chosen, ours, theirs in (
        ("mirrored", paths, ["--tta"], []),
        ("plain", paths, [], ["--no-tta"]),
        ("first", paths[:1], [], None),
    ):
        arguments = ["--checkpoint", *chosen, "--input", images, "--output", tmp_path / name, *ours, "--device", "cpu"]
        code, _, err = run_verb(predict, *arguments)
        assert code == 0, err
        masks[name] = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / name / "large.nii.gz")))
        if theirs is not None:
            output = tmp_path / f"{name} of the pipeline"
            code, _, err = run_pipeline(folder, "--input", images, "--output", output, *theirs)
            assert (code, err) == (0, "")
            assert_same_masks(tmp_path / name, output)
    # each way has masks of its own
    assert not np.array_equal(masks["mirrored"], masks["plain"])
    assert not np.array_equal(masks["plain"], masks["first"])
    (folder / names[1]).unlink()
    code, _, err = run_pipeline(folder, "--input", images, "--output", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{names[1]}: can't be loaded" in err


@pytest.mark.exhaustive
def test_the_messages_of_a_pipeline(tmp_path, run_verb):
    """Bad input is one line each, and the other volumes are segmented."""
    needs_onnx()
    path, folder = write_checkpoint(tmp_path / "x.pt"), tmp_path / "pipeline"
    assert run_verb(export, "--checkpoint", path, "--output", folder, "--format", "pipeline")[0] == 0
    images = write_volumes(tmp_path / "images", 1)
    sitk.WriteImage(make_image(np.ones((9, 9, 9), np.int16)), str(images / "constant.nii.gz"))
    (images / "broken.nii.gz").write_bytes((images / "large.nii.gz").read_bytes()[:5000])
    code, out, err = run_pipeline(folder, "--input", images, "--output", tmp_path / "out")
    assert code == 2
    same = "all voxels have the same value on the network's grid. Check that it is a scan"
    assert err.splitlines() == [
        f"error: {images / 'broken.nii.gz'}: truncated or damaged. Copy it again",
        f"error: {images / 'constant.nii.gz'}: {same}",
    ]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["large.nii.gz", "small.nii.gz"]
    for arguments, message in (
        (["--input", images, "--output", images], "would replace the volume itself. Choose another --output"),
        (["--input", images, "--output", tmp_path / "x.nii.gz"], "one file for 4 volumes. Name a folder"),
        (["--input", tmp_path / "no", "--output", tmp_path], "no such file or folder. Check the path"),
        (["--input", images], "the following arguments are required: --output. See predict.py --help"),
        (
            ["--input", images, "--output", tmp_path, "--overlap", "1"],
            "share value: '1'. See predict.py --help",
        ),
    ):
        code, out, err = run_pipeline(folder, *arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.endswith(f"{message}\n")
        assert err.count("\n") == 1
    (folder / "network.onnx").write_bytes(b"no network")
    code, _, err = run_pipeline(folder, "--input", images, "--output", tmp_path / "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "can't be loaded" in err


def export_bundle(tmp_path, run_verb, channels, regions, patches):
    path, folder = write_checkpoint(tmp_path / "x.pt", channels, regions, patches), tmp_path / "bundle"
    code, out, err = run_verb(export, "--checkpoint", path, "--output", folder, "--format", "monai")
    assert code == 0, err
    assert out.startswith(f"{folder}: MONAI bundle, logits ")
    return path, folder


@pytest.mark.parametrize(("channels", "regions", "patches"), KINDS)
def test_what_a_bundle_says(tmp_path, run_verb, channels, regions, patches):
    _, folder = export_bundle(tmp_path, run_verb, channels, regions, patches)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [
        "LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/model.pt",
        *(f"scripts/{name}.py" for name in ("__init__", "cases", "inferer", "transforms", "vnet", "writer")),
    ]  # fmt: skip
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    # the keys that the specification of bundles requires
    assert metadata.keys() >= {
        "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format",
    }  # fmt: skip
    (image,) = metadata["network_data_format"]["inputs"].values()
    (pred,) = metadata["network_data_format"]["outputs"].values()
    for tensor in (image, pred):
        assert tensor.keys() == {
            "type", "format", "modality", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data",
            "channel_def",
        }  # fmt: skip
        assert list(tensor["channel_def"]) == [str(number) for number in range(tensor["num_channels"])]
    assert image["channel_def"]["0"] == "FLAIR"
    assert list(pred["channel_def"].values()) == (["ball", "right"] if regions else ["background", "left", "right"])
    page = (folder / "docs" / "README.md").read_text()
    assert f"| labels of a mask | {'1: ball, 2: right' if regions else '1: left, 2: right'} |" in page


@pytest.mark.exhaustive
@pytest.mark.parametrize(("channels", "regions", "patches"), KINDS[:1])
def test_the_network_of_a_bundle(tmp_path, run_verb, channels, regions, patches):
    """MONAI builds it, loads its weights, and finds the shapes that `metadata.json` says, without this package."""
    pytest.importorskip("monai", reason="monai is not installed")
    path, folder = export_bundle(tmp_path, run_verb, channels, regions, patches)
    code = """
        import sys
        sys.modules["vnet_fast"] = None
        import torch
        from monai.bundle import ConfigParser, verify_net_in_out
        verify_net_in_out("network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")
        parser = ConfigParser()
        parser.read_config("configs/inference.json")
        network = parser.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load("models/model.pt", weights_only=True))
        torch.save(network(torch.load(sys.argv[1])), sys.argv[2])
    """
    x = torch.randn(2, channels, 16, 16, 16)
    torch.save(x, tmp_path / "x.tensor")
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "x.tensor", tmp_path / "y.tensor"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    content = checkpoint.load(path)
    model = checkpoint.build_model(content, path, torch.device("cpu")).eval()
    with torch.no_grad():
        # the outputs are in the order of the labels
        expected = model(x)[:, [1, 0]] if regions else model(x)
    torch.testing.assert_close(torch.load(tmp_path / "y.tensor"), expected, rtol=1e-4, atol=1e-4)


def run_bundle(folder, images, output):
    """Runs `monai.bundle run` where this package can't be imported."""
    code = "import sys, runpy; sys.modules['vnet_fast'] = None; runpy.run_module('monai.bundle', run_name='__main__')"
    command = [sys.executable, "-c", code, "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(images), "--output_dir", str(output)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def needs(*packages):
    for name in packages:
        pytest.importorskip(name, reason=f"{name} is not installed")


OF_MONAI = ("monai", "nibabel", "ignite", "skimage", "fire")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("channels", "regions", "patches"), KINDS)
def test_monai_writes_the_masks_of_predict(tmp_path, run_verb, channels, regions, patches):
    needs(*OF_MONAI)
    path, folder = export_bundle(tmp_path, run_verb, channels, regions, patches)
    images, ours = write_volumes(tmp_path / "images", channels), tmp_path / "ours"
    slices = [sitk.ReadImage(str(file))[:, :, 9:10] for file in sorted(images.glob("large*"))]
    for number, image in enumerate(slices):
        # so thick that the network's grid has voxels in it
        image.SetSpacing((1.3, 1.1, 5.0))
        sitk.WriteImage(image, str(images / f"slice_{number:04d}.nii.gz"))
    arguments = ["--checkpoint", path, "--input", images, "--output", ours, "--device", "cpu"]
    code, _, err = run_verb(predict, *arguments)
    assert code == 0, err
    run_bundle(folder, images, tmp_path / "theirs")
    assert_same_masks(ours, tmp_path / "theirs")


@pytest.mark.exhaustive
def test_monai_reads_other_formats(tmp_path, run_verb):
    needs(*OF_MONAI, "itk")
    path, folder = export_bundle(tmp_path, run_verb, 1, (), False)
    images, same, ours = write_volumes(tmp_path / "images", 1), tmp_path / "same", tmp_path / "ours"
    same.mkdir()
    for number, suffix in enumerate((".nrrd", ".nhdr", ".mha", ".mhd")):
        image = sitk.ReadImage(str(images / "large.nii.gz"))[number:]
        for file in (images / f"{number}.nii.gz", same / f"{number}{suffix}"):
            sitk.WriteImage(image, str(file), useCompression=True)
    shutil.copy(images / "small.nii.gz", same / "small.nii.gz")
    (images / "large.nii.gz").unlink()
    for parent in (images, same):
        write_dicom(parent / "series", [3.0 * number for number in range(9)], size=(24, 20), seed=0)
    code, _, err = run_verb(predict, "--checkpoint", path, "--input", images, "--output", ours, "--device", "cpu")
    assert code == 0, err
    run_bundle(folder, same, tmp_path / "theirs")
    assert_same_masks(ours, tmp_path / "theirs")
    assert len(list(ours.glob("*.nii.gz"))) == 6
    # a folder that is a series itself
    run_bundle(folder, same / "series", tmp_path / "one")
    assert [file.name for file in (tmp_path / "one").iterdir()] == ["series.nii.gz"]


# what the bundle app of MONAI Label does with a request
RUN_MONAI_LABEL = """
    import json, shutil, sys
    sys.modules["vnet_fast"] = None
    from monailabel.tasks.infer.bundle import BundleInferTask
    bundle, output, *images = sys.argv[1:]
    task = BundleInferTask(bundle, {})
    assert task.is_valid()
    for image in images:
        mask, result = task({"image": image, "device": "cpu", "result_dtype": "uint8"})
        shutil.move(mask, output)
    print(json.dumps(result["label_names"]))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize(("channels", "regions", "patches"), KINDS)
def test_monai_label_finds_the_masks_of_predict(tmp_path, run_verb, channels, regions, patches):
    needs(*OF_MONAI, "monailabel", "torchvision", "itk", "nrrd")
    path, folder = export_bundle(tmp_path, run_verb, channels, regions, patches)
    images, ours, theirs = write_volumes(tmp_path / "images", channels), tmp_path / "ours", tmp_path / "theirs"
    # it takes one file of a volume
    for file in images.glob("large_*"):
        file.unlink()
    code, _, err = run_verb(predict, "--checkpoint", path, "--input", images, "--output", ours, "--device", "cpu")
    assert code == 0, err
    theirs.mkdir()
    for image in images.iterdir():
        code = textwrap.dedent(RUN_MONAI_LABEL)
        command = [sys.executable, "-c", code, folder, theirs / image.name, image]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        names = json.loads(done.stdout.splitlines()[-1])
    # it gives them to the labels 1, 2 and so on in this order
    assert sorted(names, key=names.get) == (["ball", "right"] if regions else ["left", "right"])
    assert_same_masks(ours, theirs)


def test_the_licence_and_the_versions_are_those_of_the_project():
    from tests.test_package import ROOT

    templates = ROOT / "vnet_fast" / "deployment" / "templates"
    assert (templates / "LICENSE.txt").read_text() == (ROOT / "LICENSE").read_text()
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert pinned["monai"] == bundle.MONAI_VERSION
    named = bundle.REQUIRED | bundle.OPTIONAL
    assert {name: pinned[name] for name in named} == named


@pytest.mark.parametrize("kind", [pytest.param("pipeline", marks=pytest.mark.exhaustive), "monai"])
def test_existing_things_are_kept(tmp_path, run_verb, kind):
    path = write_checkpoint(tmp_path / "x.pt")
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    for output, message in (
        (full, "a folder that is not empty. Choose another --output"),
        (file, "is a file, and this --format is a folder. Choose another --output"),
        (tmp_path / "x.onnx", "named like a file, and this --format is a folder. Name a folder, or leave --format out"),
    ):
        code, out, err = run_verb(export, "--checkpoint", path, "--output", output, "--format", kind)
        assert (code, out, err) == (2, "", f"error: {output}: {message}\n")
    assert ((full / "mine.txt").read_text(), file.read_text()) == ("mine", "mine")
    code, _, err = run_verb(export, "--checkpoint", path, "--output", file / "new", "--format", kind)
    assert (code, err.count("\n")) == (2, 1)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "full", "x.pt"]
    code, _, err = run_verb(export, "--checkpoint", tmp_path / "no.pt", "--output", tmp_path / "new", "--format", kind)
    assert (code, err) == (2, f"error: {tmp_path / 'no.pt'}: no such file. Check the path\n")


@pytest.mark.parametrize(("kind", "output"), [("file", "new.pt2"), ("monai", "new")], ids=["a file", "a bundle"])
def test_only_a_pipeline_averages(tmp_path, run_verb, kind, output):
    paths = [write_checkpoint(tmp_path / name) for name in ("a.pt", "b.pt")]
    common = ["--output", tmp_path / output, "--format", kind]
    for arguments, message in (
        (["--checkpoint", *paths], "--checkpoint: names 2 networks, and this --format has one. Name one, or give "
                                   "--format pipeline"),
        (["--checkpoint", paths[0], "--tta"], "--tta: given without --format pipeline. Leave it out"),
    ):  # fmt: skip
        code, out, err = run_verb(export, *arguments, *common)
        assert (code, out, err) == (2, "", f"error: {message}\n")
    assert not (tmp_path / output).exists()


def test_networks_that_differ_are_not_averaged(tmp_path, run_verb):
    needs_onnx()
    paths = [write_checkpoint(tmp_path / "a.pt"), write_checkpoint(tmp_path / "b.pt", channels=2)]
    arguments = ["--checkpoint", *paths, "--output", tmp_path / "new", "--format", "pipeline"]
    code, out, err = run_verb(export, *arguments)
    assert (code, out) == (2, "")
    cause = f"its number of channels is 2, that of {paths[0]} is 1. Name checkpoints that agree in it"
    assert err == f"error: {paths[1]}: {cause}\n"
    assert not (tmp_path / "new").exists()


def test_a_pipeline_needs_the_packages_of_onnx(tmp_path, run_verb, monkeypatch):
    monkeypatch.setattr(network_file, "is_installed", lambda name: name != "onnxscript")
    path, output = write_checkpoint(tmp_path / "x.pt"), tmp_path / "new"
    code, _, err = run_verb(export, "--checkpoint", path, "--output", output, "--format", "pipeline")
    assert (code, err) == (2, f"error: {output}: onnxscript is not installed. pip install 'vnet_fast[onnx]'\n")


def test_a_bundle_that_differs_is_not_written(tmp_path, run_verb, monkeypatch):
    path, output = write_checkpoint(tmp_path / "x.pt"), tmp_path / "new"
    monkeypatch.setattr(bundle.vnet.Stage, "forward", lambda self, x, residual: self.layers[0](x))
    code, out, err = run_verb(export, "--checkpoint", path, "--output", output, "--format", "monai")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {output}: not written, its logits would be ")
    assert not output.exists()


def test_an_empty_folder_is_used(tmp_path, run_verb):
    path, output = write_checkpoint(tmp_path / "x.pt"), tmp_path / "new"
    output.mkdir()
    assert run_verb(export, "--checkpoint", path, "--output", output, "--format", "monai")[0] == 0
    assert (output / "LICENSE").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new", "x.pt"]


@pytest.mark.parametrize("kind", [pytest.param("pipeline", marks=pytest.mark.exhaustive), "monai"])
def test_the_current_folder_and_links_are_used(tmp_path, run_verb, monkeypatch, kind):
    """Each has the name that the user sees, and stays the same folder."""
    if kind == "pipeline":
        needs_onnx()
    path, here, target, link = write_checkpoint(tmp_path / "x.pt"), *(tmp_path / name for name in ("a", "b", "c"))
    here.mkdir()
    target.mkdir()
    link.symlink_to(target)
    before = here.stat().st_ino
    monkeypatch.chdir(here)
    for output, name in ((".", "a"), (link, "c")):
        code, _, err = run_verb(export, "--checkpoint", path, "--output", output, "--format", kind)
        assert code == 0, err
        page = tmp_path / name / ("README.md" if kind == "pipeline" else "docs/README.md")
        assert page.read_text().startswith(f"# {name}\n")
    if kind == "monai":
        assert json.loads((here / "configs" / "metadata.json").read_text())["name"] == "a"
    assert (here.stat().st_ino, link.is_symlink()) == (before, True)
    names = sorted(entry.name for entry in here.iterdir())
    assert names == sorted(entry.name for entry in target.iterdir())
    assert not any(name.startswith(".") for name in names)


def test_a_folder_that_is_filled_meanwhile_is_kept(tmp_path):
    output = tmp_path / "new"
    output.mkdir()

    def fill():
        with new_folder(output) as folder:
            (folder / "x.txt").write_text("theirs")
            (output / "x.txt").write_text("mine")

    with pytest.raises(InputError, match="a folder that is not empty"):
        fill()
    assert [(entry.name, entry.read_text()) for entry in output.iterdir()] == [("x.txt", "mine")]


def test_a_folder_that_can_not_be_filled_stays_empty(tmp_path, monkeypatch):
    output, rename = tmp_path / "new", Path.rename
    output.mkdir()

    def refuse(path, target):
        if path.name == "b":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    def fill():
        with new_folder(output) as folder:
            for name in ("a", "b"):
                (folder / name).mkdir()

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(InputError, match=r"can't be written \(No space left on device\)"):
        fill()
    assert list(output.iterdir()) == []
