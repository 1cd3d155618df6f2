import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from vnet_fast import VNet, export
from vnet_fast.deployment import network_file, program
from vnet_fast.deployment.network_file import export as to_file
from vnet_fast.deployment.network_file import run_onnx, run_pt2
from vnet_fast.nn.folding import folded
from vnet_fast.prediction.task import Task
from vnet_fast.run import checkpoint

TOPOLOGIES = ("paper", "caffe")
# x y z; x is not a multiple of 16, so that the graph pads
SIZE = (20, 16, 16)


def needs_onnx():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")


def network(topology, norm=None, levels=5, halvings=None):
    """A network whose every weight makes a difference, slopes and biases too."""
    torch.manual_seed(1)
    model = VNet(base_channels=2, num_classes=3, topology=topology, norm=norm, levels=levels, halvings=halvings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(
                    torch.rand(weight.shape) if name.endswith("activation.weight") else torch.randn_like(weight)
                )
    return model


def volumes(count):
    return torch.randn(count, 1, *SIZE[::-1], generator=torch.Generator().manual_seed(count))


@pytest.fixture
def trained(tmp_path):
    """Writes a checkpoint: from a topology to (path, network)."""

    def write(topology="paper"):
        model, path = network(topology), tmp_path / f"{topology}.pt"
        checkpoint.save(path, model, spacing=[1.0, 1.0, 1.5], volume=list(SIZE), validation=[])
        return path, model

    return write


LOAD_ELSEWHERE = """
    import sys

    sys.modules["vnet_fast"] = None  # no import of it succeeds
    import torch

    folder = sys.argv[1]
    for topology in ("paper", "caffe"):
        extra = {"vnet_fast.json": ""}
        network = torch.export.load(f"{folder}/{topology}.pt2", extra_files=extra).module()
        volumes = torch.load(f"{folder}/volumes.pt")
        logits = [network(volume) for volume in volumes]
        torch.save({"logits": logits, "about": extra["vnet_fast.json"]}, f"{folder}/{topology}.out")
    assert not hasattr(torch.ops.vnet_fast, "add_prelu")
"""


@pytest.mark.exhaustive
def test_pt2_runs_without_vnet_fast(tmp_path, trained, run_verb, monkeypatch):
    inputs = [volumes(1), volumes(3)]
    torch.save(inputs, tmp_path / "volumes.pt")
    models = {}
    for topology in TOPOLOGIES:
        path, models[topology] = trained(topology)
        output = tmp_path / f"{topology}.pt2"
        code, out, err = run_verb(export, "--checkpoint", path, "--output", output)
        assert code == 0, err
        assert out.startswith(f"{output}: input (N, 1, 16, 16, 20) float32, logits ")
        assert err == ""
    subprocess.run([sys.executable, "-I", "-c", textwrap.dedent(LOAD_ELSEWHERE), tmp_path], check=True)
    # the program has PyTorch's convolutions
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    for topology, model in models.items():
        result = torch.load(tmp_path / f"{topology}.out")
        for ours, x in zip(result["logits"], inputs, strict=True):
            with torch.no_grad():
                torch.testing.assert_close(ours, model(x), rtol=1e-5, atol=1e-5)
        facts = json.loads(result["about"])
        assert (facts["spacing"], facts["volume"], facts["classes"]) == ("1 1 1.5", "20 16 16", "3")
        assert facts["topology"] == topology
        assert "percentiles 0.5 and 99.5" in facts["normalisation"]


@pytest.mark.parametrize("given", [str, Path, lambda path: [path]], ids=["text", "a path", "a list of paths"])
def test_checkpoints_in_python(tmp_path, trained, monkeypatch, given):
    path, _ = trained()
    monkeypatch.setattr(network_file, "export", lambda model, task, output: output.write_text(f"{task.size}"))
    assert export.main({"checkpoint": given(path), "output": tmp_path / "x.pt2"}) == 0
    assert (tmp_path / "x.pt2").read_text() == f"{SIZE}"


@pytest.mark.parametrize("topology", ["paper", pytest.param("caffe", marks=pytest.mark.exhaustive)])
def test_onnx_gives_the_networks_logits(tmp_path, trained, run_verb, topology):
    needs_onnx()
    import onnx
    import onnxruntime

    path, model = trained(topology)
    output = tmp_path / "out" / "model.onnx"
    code, out, err = run_verb(export, "--checkpoint", path, "--output", output)
    assert code == 0, err
    assert out.startswith(f"{output}: input (N, 1, 16, 16, 20) float32, logits ")
    assert err == ""
    assert [file.name for file in output.parent.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(output, full_check=True)
    # nothing of this machine
    assert str(Path(export.__file__).parent).encode() not in output.read_bytes()
    session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 16, 16, 20]
    for x in (volumes(1), volumes(3)):
        (logits,) = session.run(["logits"], {"image": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), model(x), rtol=1e-4, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["spacing"], facts["volume"], facts["classes"]) == ("1 1 1.5", "20 16 16", "3")
    assert "percentiles 0.5 and 99.5" in facts["normalisation"]


@pytest.mark.parametrize(
    ("norm", "suffix"),
    [
        ("instance", ".pt2"),
        pytest.param("batch", ".onnx", marks=pytest.mark.exhaustive),
        pytest.param("group", ".onnx", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.exhaustive
def test_networks_with_norm(tmp_path, norm, suffix):
    if suffix == ".onnx":
        needs_onnx()
    # of which not every step halves every axis
    model = network("paper", norm, levels=3, halvings=(1, 2, 2))
    for name, value in model.named_buffers():
        value.uniform_(0.5, 2) if name.endswith("var") else value.normal_()
    model.requires_grad_(False)
    result = to_file(folded(model), Task((1.0, 1.0, 1.0), SIZE), tmp_path / f"x{suffix}")
    assert result.startswith("input (N, 1, 16, 16, 20) float32, logits ")
    run = run_pt2 if suffix == ".pt2" else run_onnx
    for x in (volumes(1), volumes(3)):
        logits = run({suffix: (tmp_path / f"x{suffix}").read_bytes()}, x)
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
def test_openvino_gives_the_networks_logits(tmp_path, trained, run_verb):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    path, model = trained("caffe")
    output = tmp_path / "out" / "model.xml"
    for _ in range(2):
        # it replaces what it has written
        code, out, err = run_verb(export, "--checkpoint", path, "--output", output)
        assert code == 0, err
    assert out.startswith(f"{output}: input (N, 1, 16, 16, 20) float32, logits ")
    assert sorted(file.name for file in output.parent.iterdir()) == ["model.bin", "model.xml"]
    assert str(Path(export.__file__).parent).encode() not in output.read_bytes()
    read = openvino.Core().read_model(output)
    assert str(read.input("image").partial_shape) == "[?,1,16,16,20]"
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for x in (volumes(1), volumes(3)):
        with torch.no_grad():
            logits = torch.from_numpy(compiled({"image": x.numpy()})["logits"])
            torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-4)
    facts = {name: read.get_rt_info(["vnet_fast", name]).value for name in ("spacing", "volume", "normalisation")}
    assert (facts["spacing"], facts["volume"]) == ("1 1 1.5", "20 16 16")
    assert "percentiles 0.5 and 99.5" in facts["normalisation"]


def test_weights_of_something_else_are_kept(tmp_path, trained, run_verb):
    path, _ = trained()
    (tmp_path / "model.bin").write_text("mine")
    message = f"{tmp_path / 'model.bin'}: would be replaced, and is of no model.xml. Choose another --output"
    assert_refused(run_verb, path, tmp_path / "model.xml", message)
    assert (tmp_path / "model.bin").read_text() == "mine"


def assert_refused(run_verb, path, output, message):
    """One line, exit code 2, and nothing written."""
    before = sorted(output.parent.iterdir())
    code, out, err = run_verb(export, "--checkpoint", path, "--output", output)
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"
    assert sorted(output.parent.iterdir()) == before


def test_other_formats(tmp_path, trained, run_verb):
    path, _ = trained()
    for name in ("model", "model.pt", "model.pth"):
        output = tmp_path / name
        cause = "does not end in .pt2, .onnx or .xml (OpenVINO)"
        message = f"{output}: {cause}. Choose one of them as the end of the name, or a folder's --format"
        assert_refused(run_verb, path, output, message)


def test_bad_checkpoints(tmp_path, run_verb):
    output, path = tmp_path / "model.pt2", tmp_path / "missing.pt"
    assert_refused(run_verb, path, output, f"{path}: no such file. Check the path")
    path = tmp_path / "bare.pt"
    checkpoint.save(path, network("paper"))
    message = f"{path}: does not say its spacing and size. {checkpoint.ANOTHER}"
    assert_refused(run_verb, path, output, message)


@pytest.mark.exhaustive
def test_output_in_an_impossible_place(tmp_path, trained, run_verb):
    path, _ = trained()
    folder = tmp_path / "folder.pt2"
    folder.mkdir()
    assert_refused(run_verb, path, folder, f"{folder}: is a folder. Name a file")
    output = path / "model.pt2"
    code, _, err = run_verb(export, "--checkpoint", path, "--output", output)
    assert code == 2
    assert err.startswith(f"error: {path}: can't be made (")
    assert err.count("\n") == 1
    link = tmp_path / "link.pt2"
    link.symlink_to(path)
    assert_refused(run_verb, path, link, f"{link}: would replace the checkpoint itself. Choose another --output")


@pytest.mark.parametrize("name", ["onnx", "onnxscript"])
def test_without_the_packages_of_onnx(tmp_path, trained, run_verb, monkeypatch, name):
    monkeypatch.setattr(network_file, "is_installed", lambda each: each != name)
    path, _ = trained()
    output = tmp_path / "model.onnx"
    message = f"{output}: {name} is not installed. pip install 'vnet_fast[onnx]'"
    assert_refused(run_verb, path, output, message)


def test_without_openvino(tmp_path, trained, run_verb, monkeypatch):
    monkeypatch.setattr(network_file, "is_installed", lambda each: each != "openvino")
    path, _ = trained()
    output = tmp_path / "model.xml"
    message = f"{output}: openvino is not installed. pip install 'vnet_fast[openvino]'"
    assert_refused(run_verb, path, output, message)


def test_what_is_installed():
    assert network_file.is_installed("torch")
    assert not network_file.is_installed("no_such_package")


@pytest.mark.exhaustive
def test_onnx_is_written_unchecked_without_onnxruntime(tmp_path, trained, run_verb, monkeypatch):
    monkeypatch.setattr(network_file, "is_installed", lambda each: each != "onnxruntime")
    monkeypatch.setattr(network_file, "onnx_bytes", lambda program, facts: b"content")
    path, _ = trained()
    output = tmp_path / "model.onnx"
    code, out, _ = run_verb(export, "--checkpoint", path, "--output", output)
    assert code == 0
    assert "not checked: onnxruntime is not installed (pip install 'vnet_fast[onnx]')" in out
    assert output.read_bytes() == b"content"


def test_onnx_that_is_too_large(tmp_path, trained, run_verb, monkeypatch):
    monkeypatch.setattr(network_file, "is_installed", lambda name: True)
    monkeypatch.setattr(network_file, "MAX_ONNX_BYTES", 1000)
    path, _ = trained()
    output = tmp_path / "model.onnx"
    message = f"{output}: the weights take 0.0 GB, an ONNX file 2.1 GB. Write a .pt2 instead"
    assert_refused(run_verb, path, output, message)


def test_file_that_differs_is_not_written(tmp_path, trained, run_verb, monkeypatch):
    path, _ = trained()
    output = tmp_path / "model.pt2"
    output.write_text("the one before")
    monkeypatch.setattr(program, "_plain_add_prelu", lambda x, slope, bias, residual: (2 * x, x.new_empty(0)))
    code, out, err = run_verb(export, "--checkpoint", path, "--output", output)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {output}: not written, its logits would be ")
    assert output.read_text() == "the one before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.pt2", "paper.pt"]


def test_help_says_which_sizes(run_verb):
    code, out, _ = run_verb(export, "--help")
    assert code == 0
    assert "N is any number; z, y and x are" in out
