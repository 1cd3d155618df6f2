import contextlib
import io
import os
import pickle

import numpy as np
import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint


def small(**arguments):
    return VNet(**{"base_channels": 2, **arguments})


@pytest.fixture
def saved(tmp_path):
    model = small(num_classes=3, topology="caffe")
    checkpoint.save(tmp_path / "x.pt", model, iteration=7, best={"dice": 0.5})
    return tmp_path / "x.pt", model


def test_round_trip(saved):
    path, model = saved
    content = checkpoint.load(path)
    assert content["iteration"] == 7
    loaded = checkpoint.build_model(content, path, torch.device("cpu"))
    assert loaded.topology == "caffe"
    x = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("norm", ["instance", "batch", "group"])
def test_norm_levels_and_kernel_size_are_stored(tmp_path, norm):
    path, model = tmp_path / "x.pt", small(norm=norm, levels=3, kernel_size=3)
    for buffer in model.buffers():
        buffer.uniform_(1, 2)
    checkpoint.save(path, model)
    loaded = checkpoint.build_model(checkpoint.load(path), path, torch.device("cpu"))
    assert (loaded.norm, loaded.levels, loaded.kernel_size) == (norm, 3, 3)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())


def test_a_negative_variance_is_refused(tmp_path):
    path, model = tmp_path / "x.pt", small(norm="batch", levels=2)
    model.down[0].norm.running_var[1] = -1
    checkpoint.save(path, model)
    with pytest.raises(InputError, match=r"x.pt: a running variance is negative"):
        checkpoint.build_model(checkpoint.load(path), path, torch.device("cpu"))


def test_a_failed_save_keeps_the_one_before(saved, monkeypatch):
    path, model = saved
    before = path.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"x.pt: can't be written \(No space left on device\)"):
        checkpoint.save(path, model)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_the_reason_whatever_pytorch_says_of_it(saved, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() > 5000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoint, "replacing", lambda *_: contextlib.nullcontext(Full()))
    with pytest.raises(InputError, match=r"x.pt: can't be written \(No space left on device\)"):
        checkpoint.save(*saved)


def test_a_checkpoint_is_replaced_not_written_over(saved):
    path, model = saved
    with open(path, "rb") as reader:
        before = path.read_bytes()
        checkpoint.save(path, model, iteration=8)
        assert reader.read() == before
    assert checkpoint.load(path)["iteration"] == 8
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    with pytest.raises(
        TypeError, match=r"state\['best'\]\['dice'\]\[1\] must be a tensor or of a plain type; got float64"
    ):
        checkpoint.save(tmp_path / "x.pt", small(), best={"dice": [0.5, np.float64(0.5)]})
    assert not list(tmp_path.iterdir())


def truncated(content):
    return content[: len(content) // 2]


def pickled_code(content):
    class Run:
        def __reduce__(self):
            return print, ("this ran",)

    buffer = io.BytesIO()
    torch.save(Run(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        lambda content: b"",
        lambda content: b"nonsense" * 50,
        pickled_code,
        lambda content: pickle.dumps(print),
    ],
    ids=["truncated", "empty", "text", "code", "pickle"],
)
def test_damaged_checkpoints(saved, damage, capsys):
    path, _ = saved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"x.pt: damaged, or not a checkpoint"):
        checkpoint.load(path)
    assert "this ran" not in capsys.readouterr().out


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        checkpoint.load(tmp_path / "x.pt")
    with pytest.raises(InputError, match="can't be read"):
        checkpoint.load(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="not a checkpoint of this program"):
        checkpoint.load(tmp_path / "other.pt")


def changed(path, **parts):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **parts}, path)
    return checkpoint.load(path)


def test_newer_format(saved):
    with pytest.raises(InputError, match="format 99, this program reads 1"):
        changed(saved[0], format=99)


def test_another_topology_names_what_differs(saved):
    path, _ = saved
    content = checkpoint.load(path)
    with pytest.raises(InputError, match="has num_classes 3, not 2; has topology caffe, not paper"):
        checkpoint.fill_model(small(), content, path)


def test_weights_that_do_not_fit(saved):
    path, model = saved
    weights = model.state_dict()
    weights["head.weight"] = torch.zeros(1)
    with pytest.raises(InputError, match=r"its weights do not fit its architecture \(size mismatch for head.weight"):
        checkpoint.build_model(changed(path, model=weights), path, torch.device("cpu"))


def test_weights_that_are_not_finite(saved):
    path, model = saved
    weights = model.state_dict()
    weights["head.bias"] = torch.full((3,), torch.nan)
    with pytest.raises(InputError, match="some of its weights are NaN or infinite"):
        checkpoint.build_model(changed(path, model=weights), path, torch.device("cpu"))


def test_unknown_architecture(saved):
    path, _ = saved
    with pytest.raises(InputError, match="not an architecture of this program"):
        checkpoint.build_model(changed(path, architecture={"depth": 3}), path, torch.device("cpu"))
