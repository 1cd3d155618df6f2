"""Prediction with weights that overflow, after kills, of large volumes, and without a terminal."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from tests.volumes import make_image, write_case
from vnet_fast import predict, progress
from vnet_fast.io import writing
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction import segmentation
from vnet_fast.prediction.task import Task
from vnet_fast.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]
SPACING, SIZE = [1.5, 1.5, 2.0], [16, 16, 16]
NO_PROCESS = 2**22 + 1


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "network.pt"
    checkpoint.save(path, VNet(base_channels=1), spacing=SPACING, volume=SIZE, validation=[])
    return path


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_weights_that_overflow(network, tmp_path, run_verb, amp):
    """They are finite, but what they compute is not."""
    content = torch.load(network, weights_only=True)
    model = VNet(base_channels=1)
    model.load_state_dict({name: torch.full_like(w, 3e38) for name, w in content["model"].items()})
    checkpoint.save(network, model, spacing=SPACING, volume=SIZE, validation=[])
    image, _ = write_case(tmp_path, "a")
    out = tmp_path / "out"
    code, _, err = run_verb(
        predict, "--checkpoint", network, "--input", image, "--output", out, "--device", "cpu", "--amp", amp,
        "--probabilities",
    )  # fmt: skip
    assert code == 2
    assert err == f"error: {image}: the network's output is not finite. Use another checkpoint, or --amp off\n"
    assert not list(out.iterdir())


def test_a_logit_that_is_minus_infinity_is_found():
    """Its probability would be 0, as if nothing were wrong."""

    class Overflowing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            logits = torch.zeros(1, 2, *x.shape[2:])
            logits[0, 0, 3, 3, 3] = -torch.inf
            return logits

    with pytest.raises(segmentation.InputError, match="the network's output: is not finite"):
        segmentation.predict_probabilities(Overflowing(), np.zeros((8, 8, 8), np.float32))


def test_what_a_killed_process_left_is_swept(network, tmp_path, run_verb):
    image, _ = write_case(tmp_path, "a")
    out = tmp_path / "out"
    kept = [f"{platform.node()}-{os.getppid()}-x", f"elsewhere-{NO_PROCESS}-x"]
    left = [f"{platform.node()}-{NO_PROCESS}-x", "elsewhere-7-old", "abcdefgh", f"{platform.node()}-{os.getpid()}-x"]
    for name in (*kept, *left):
        (out / f".writing-{name}").mkdir(parents=True)
        (out / f".writing-{name}" / "a.mhd").write_text("half")
    for name in left[1:3]:
        os.utime(out / f".writing-{name}", (0, 0))
    assert run_verb(predict, "--checkpoint", network, "--input", image, "--output", out, "--device", "cpu")[0] == 0
    assert {path.name for path in out.iterdir()} == {"a.mhd", "a.zraw", *(f".writing-{name}" for name in kept)}


def test_where_processes_cant_be_asked_what_was_left_is_swept_when_it_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "CAN_ASK", False)
    monkeypatch.setattr(os, "kill", None)
    folders = [tmp_path / f".writing-{platform.node()}-{NO_PROCESS}-{name}" for name in ("new", "old")]
    for folder in folders:
        folder.mkdir()
    os.utime(folders[1], (0, 0))
    writing.sweep_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == folders[:1]


@pytest.mark.exhaustive
def test_a_kill_while_writing_leaves_a_folder_that_is_swept(tmp_path):
    code = (
        "import os, signal, sys\nimport numpy as np\nimport SimpleITK as sitk\nfrom vnet_fast.io import writing\n"
        "from vnet_fast.io.grid import Grid\nwrite = sitk.WriteImage\n"
        "def killed(*arguments, **more):\n    write(*arguments, **more)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "sitk.WriteImage = killed\n"
        "writing.write(np.zeros((2, 3, 4), np.uint8), Grid.of(sitk.Image(4, 3, 2, sitk.sitkUInt8)), sys.argv[1])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.mhd")], cwd=ROOT, timeout=60)
    assert done.returncode < 0
    assert [path.name.startswith(".writing-") for path in tmp_path.iterdir()] == [True]
    writing.sweep_unfinished(tmp_path)
    assert not list(tmp_path.iterdir())


def test_progress_without_a_terminal(network, tmp_path, run_verb, monkeypatch):
    """Windows that take long are counted, every ten seconds."""
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    sitk.WriteImage(
        make_image(np.random.default_rng(0).normal(size=(20, 40, 40)).astype(np.float32)), str(tmp_path / "x.nii.gz")
    )
    code, out, err = run_verb(
        predict, "--checkpoint", network, "--input", tmp_path / "x.nii.gz", "--output", tmp_path / "y.nii.gz",
        "--device", "cpu", "--overlap", "0.5", "--tta",
    )  # fmt: skip
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("predicting: 0 of 1 volumes, ")]
    assert lines
    assert len(lines) == len(err.splitlines())
    assert any(" windows, 0:0" in line for line in lines)
    assert out.splitlines()[1] == str(tmp_path / "y.nii.gz")


def test_labels_made_in_slabs_are_those_of_the_whole(network, tmp_path, monkeypatch):
    image, _ = write_case(tmp_path, "a", size=(30, 28, 26))
    model = checkpoint.build_model(checkpoint.load(network), network, torch.device("cpu"))
    result = segmentation.segment(model, image, Task(tuple(SPACING), tuple(SIZE)))
    whole = result.labels(all_components=True)
    expected = np.stack([result.probability(0), result.probability(1)]).argmax(0)
    np.testing.assert_array_equal(whole, expected)
    assert 0 < whole.mean() < 1
    for voxels in (1, 5 * 30 * 28):
        monkeypatch.setattr(segmentation, "SLAB_VOXELS", voxels)
        np.testing.assert_array_equal(result.labels(all_components=True), whole)


@pytest.mark.exhaustive
def test_the_memory_of_a_large_volume(network, tmp_path):
    """At most five bytes a voxel beside what any prediction needs, although a file of it is small."""
    n = 512
    array = np.zeros((n, n, n), np.uint8)
    array[n // 2 - 8 : n // 2 + 8, n // 2 - 8 : n // 2 + 8, n // 2 - 8 : n // 2 + 8] = 100
    array[n // 2, n // 2, n // 2] = 200
    paths = write_case(tmp_path, "small")[0], tmp_path / "large.nii.gz"
    sitk.WriteImage(make_image(array), str(paths[1]), useCompression=True)
    del array
    peaks = []
    for path in paths:
        subprocess.run(
            [sys.executable, "-m", "tests.peak_memory", tmp_path / "peak", "vnet_fast.predict", "--checkpoint", network,
             "--input", path, "--output", tmp_path / "out.nii.gz", "--device", "cpu"],
            cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        peaks.append(int((tmp_path / "peak").read_text()))
    assert peaks[1] - peaks[0] < 5 * n**3
