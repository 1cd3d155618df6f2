"""The devices of Apple and Intel, as far as a machine without them can show."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vnet_fast import VNet, accelerators, devices, predict, train
from vnet_fast.data.preparation import prepare
from vnet_fast.data.training_data import Data
from vnet_fast.devices import HOST, choose_precision, device_name, find_device, is_out_of_memory
from vnet_fast.distributed import Processes
from vnet_fast.ops import norm_prelu_definition
from vnet_fast.ops.dispatch import can_run_kernels
from vnet_fast.ops.norm_prelu_definition import Sets, statistics
from vnet_fast.run import memory
from vnet_fast.run.configuration import Config
from vnet_fast.training import planned
from vnet_fast.training.batches import make_sampler, make_source
from vnet_fast.training.sources import Sent

MPS, XPU = torch.device("mps"), torch.device("xpu")
# stands for a device that is neither a CPU nor one of CUDA
ELSEWHERE = torch.device("meta")
KINDS = pytest.mark.parametrize("kind", ["mps", "xpu"])


@KINDS
def test_a_device_that_is_not_there_is_one_line(kind, cases, tmp_path, run_verb, monkeypatch):
    monkeypatch.setattr(devices, "accelerator_is_available", lambda kind: False)
    line = f"error: --device: no {kind.upper()} device, which is a GPU of {accelerators.ACCELERATORS[kind]}, is "
    line += "available. Use --device cpu\n"
    code, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", "--device", kind)
    assert (code, err) == (2, line)
    assert not (tmp_path / "run").exists()
    arguments = "--checkpoint", tmp_path / "x.pt", "--input", cases, "--output", tmp_path / "out", "--device", kind
    assert run_verb(predict, *arguments)[::2] == (2, line)


@KINDS
def test_a_device_that_is_there(kind, monkeypatch):
    monkeypatch.setattr(devices, "accelerator_is_available", lambda kind: True)
    device = find_device(kind)
    assert device == torch.device(kind)
    # kernels and graphs are for CUDA
    assert find_device("auto").type in ("cpu", "cuda")
    assert choose_precision(None, device) == (None, "float32")
    assert choose_precision("auto", device)[0] is None
    assert choose_precision("bf16", device)[0] is torch.bfloat16


def test_their_names(monkeypatch):
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Arc")
    assert (device_name(MPS), device_name(XPU)) == ("Apple GPU (MPS)", "Arc (XPU)")


def test_short_memory_of_an_apple_gpu():
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)"))


def test_float64(monkeypatch):
    assert accelerators.has_float64(HOST)
    assert not accelerators.has_float64(MPS)
    for has in (0, 1):
        accelerators.has_float64.cache_clear()
        properties = type("Properties", (), {"has_fp64": has})
        monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device, found=properties: found)
        assert accelerators.has_float64(XPU) == bool(has)
    accelerators.has_float64.cache_clear()


def test_memory_and_windows_are_known(monkeypatch):
    assert memory.memory_of(MPS) == memory.memory_of(HOST)
    load = memory.Load(MPS, 2, 16, half=False, phantoms=False)
    assert load.fits((32, 32, 32))
    assert not load.fits((1 << 20, 1 << 20, 64))
    monkeypatch.setattr(planned, "VOXELS", {**planned.VOXELS, "cpu": 12345})
    assert planned._voxels({}, MPS) == 12345


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="several processes can't train on mps"):
        Processes().start(MPS)


class Wide(TorchDispatchMode):
    """Notes the operators that give float64 elsewhere than on the host."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64 and tensor.device != HOST:
                self.found.append(str(function))
        return result


@pytest.mark.parametrize("wide", [False, True])
def test_statistics_need_no_float64(monkeypatch, wide):
    monkeypatch.setattr(norm_prelu_definition, "has_float64", lambda device: wide)
    with Wide() as mode:
        statistics(torch.empty(2, 3, 4, 5, 6, device=ELSEWHERE), Sets(3, True, 1e-5))
    assert bool(mode.found) == wide
    x = torch.randn(2, 4, 40, 50, 60, generator=torch.Generator().manual_seed(0)) * 3 + 5
    monkeypatch.setattr(norm_prelu_definition, "PIECE", 1 << 12)
    mean, variance = statistics(x, Sets(4, True, 1e-5))
    exact = x.double().transpose(0, 1).flatten(1)
    np.testing.assert_allclose(mean[0], exact.mean(1), rtol=1e-6)
    np.testing.assert_allclose(variance[0], exact.var(1, correction=0), rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"rotation": (1.0, 15.0, 15.0), "noise": (1.0, 0.1)}], ids=["paper", "fast"])
def test_batches_are_made_on_the_host(options):
    """With all that augmentation needs, float64 among it, and the same as a CPU's."""
    generator = np.random.default_rng(0)
    prepared = [
        prepare(f"case{i}", generator.normal(100, 20, (16, 16, 16)).astype(np.float32),
                (generator.random((16, 16, 16)) > 0.5).astype(np.uint8), (0, 1))
        for i in range(3)
    ]  # fmt: skip
    data = Data(prepared, [], 2)
    config = Config(volume=(16, 16, 16), **options)
    sampler = make_sampler(config, data, Processes())
    with Wide() as mode:
        source = make_source(data, sampler, ELSEWHERE, torch.float32, range(3))
        assert isinstance(source, Sent)
        image, mask = source.inputs(0)
    assert {tensor.device for tensor in (image, mask)} == {ELSEWHERE}
    assert image.shape == mask.shape == (2, 1, 16, 16, 16)
    assert mode.found == []
    here = make_source(data, sampler, HOST, torch.float32, range(3))
    expected = here.prepare(*here.inputs(0))
    sent = Sent(make_source(data, sampler, HOST, torch.float32, range(3)), HOST)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(sent.inputs(0), expected, strict=True))
    source.close()


def test_definitions_run_there():
    assert not can_run_kernels(torch.empty(1, device=ELSEWHERE))
    with torch.device("meta"):
        logits = VNet(base_channels=2, norm="batch")(torch.empty(1, 1, 16, 16, 16))
    assert logits.device == ELSEWHERE
