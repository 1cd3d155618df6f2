"""The rewrites of a convolution are exact, in all three passes and in the whole network."""

import pytest
import torch
import torch.nn.functional as F

from vnet_fast import DiceLoss, VNet
from vnet_fast.ops import convolution_choice, device_store
from vnet_fast.ops.convolution import REWRITES, forward, grad_input, grad_weight
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step

LAST = torch.channels_last_3d
# (channels, output channels, taps, volume): first layers, inner ones, heads, shapes smaller than the kernel
CASES = [
    (1, 3, (5, 5, 5), (4, 5, 16)),
    (4, 4, (5, 5, 5), (3, 2, 8)),
    (6, 2, (5, 5, 5), (7, 6, 24)),
    (6, 2, (1, 1, 1), (4, 5, 8)),
    (3, 5, (3, 3, 3), (6, 5, 8)),
    (2, 3, (3, 5, 7), (4, 7, 8)),
]


@pytest.mark.parametrize("name", REWRITES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_pass_is_exact(name, case):
    channels, out_channels, taps, shape = case
    rewrite = REWRITES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, *shape, generator=generator, dtype=torch.float64).contiguous(memory_format=LAST)
    weight = torch.randn(out_channels, channels, *taps, generator=generator, dtype=torch.float64)
    weight = weight.contiguous(memory_format=LAST)
    if not rewrite.fits(x, taps):
        assert (name, taps[0]) == ("zstack", 1)
        return
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = F.conv3d(*leaves, padding=[length // 2 for length in taps])
    grad_y = torch.randn(expected.shape, generator=generator, dtype=torch.float64).contiguous(memory_format=LAST)
    grad_x, grad_w = torch.autograd.grad(expected, leaves, grad_y)
    with torch.no_grad():
        torch.testing.assert_close(forward(rewrite, x, weight), expected)
        torch.testing.assert_close(grad_input(rewrite, grad_y, x, weight), grad_x)
        torch.testing.assert_close(grad_weight(rewrite, grad_y, x, weight), grad_w)
        # each weight of the rewritten kernel is one of the kernel, or zero
        assert set(rewrite.weight(weight).unique().tolist()) <= {0.0, *weight.unique().tolist()}


@pytest.mark.parametrize("voxels", [2, 4, 8])
def test_packing_copies_no_volume(voxels):
    rewrite = REWRITES[f"pack{voxels}"]
    x = torch.randn(2, 3, 4, 5, 16).contiguous(memory_format=LAST)
    packed = rewrite.input(x, (5, 5, 5))
    assert packed.data_ptr() == x.data_ptr()
    assert packed.shape == (2, 3 * voxels, 4, 5, 16 // voxels)
    assert packed.is_contiguous(memory_format=LAST)
    assert rewrite.output(packed).data_ptr() == x.data_ptr()
    assert not rewrite.fits(x[..., : 16 - voxels // 2], (5, 5, 5))


@pytest.fixture
def rewritten(monkeypatch):
    """Lets CPU tensors be rewritten, each pass by the next of its candidates; the names that ran."""
    names = []

    def compute(which, x, weight, run):
        layer = convolution_choice.Layer.of(which, x, weight)
        choices = convolution_choice.candidates(layer)
        names.append(choices[len(names) % len(choices)])
        return run(REWRITES[names[-1]])

    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    monkeypatch.setattr(convolution_choice, "can_rewrite", lambda x: True)
    monkeypatch.setattr(convolution_choice, "compute", compute)
    return names


@pytest.mark.parametrize("topology", ["paper", pytest.param("caffe", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_network_of_rewritten_convolutions_is_the_same(rewritten, monkeypatch, topology, dtype):
    torch.manual_seed(0)
    model = VNet(base_channels=4, topology=topology)
    image = torch.randn(1, 1, 32, 32, 32)
    probe = torch.randn(1, 2, 32, 32, 32)

    def run():
        model.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(image)
        (logits.float() * probe).sum().backward()
        return logits.detach().float(), {name: p.grad.clone() for name, p in model.named_parameters()}

    found, gradients = run()
    assert {"zstack", "pack2", "pack4", "pack8", "cudnn"} <= set(rewritten)
    monkeypatch.undo()
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    assert not convolution_choice.can_rewrite(image)
    expected, wanted = run()
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert (found - expected).norm() <= tolerance * expected.norm()
    for name, gradient in gradients.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error <= 10 * tolerance, f"{name}: {error:.2g}"
        # so that neither autograd nor the optimiser copies it
        assert gradient.ndim != 5 or gradient.is_contiguous(memory_format=LAST), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("channels", "out_channels", "taps"), [(1, 16, 5), (32, 32, 5), (128, 128, 5), (32, 2, 1)])
def test_every_pass_on_a_gpu(dtype, channels, out_channels, taps):
    """cuDNN may have a kernel that is wrong for a rewritten shape; a training run would not take it."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, channels, 16, 32, 32), (out_channels, channels, taps, taps, taps), (2, out_channels, 16, 32, 32)
    x, weight, grad_y = (
        torch.randn(shape, generator=generator).to("cuda", dtype).contiguous(memory_format=LAST) for shape in shapes
    )
    leaves = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv3d(*leaves, padding=taps // 2)
    exact = expected, *torch.autograd.grad(expected, leaves, grad_y.double())
    tolerance = convolution_choice.TOLERANCE[dtype]
    for name in convolution_choice.candidates(convolution_choice.Layer.of("forward", x, weight)):
        rewrite = REWRITES[name]
        found = (
            forward(rewrite, x, weight),
            grad_input(rewrite, grad_y, x, weight),
            grad_weight(rewrite, grad_y, x, weight),
        )
        for which, result, wanted in zip(("forward", "grad_input", "grad_weight"), found, exact, strict=True):
            error = (result.double() - wanted).norm() / wanted.norm()
            assert error <= tolerance, f"{name}, {which}: {error:.2g}"


@pytest.mark.gpu
def test_a_step_on_a_gpu_chooses_before_it_is_captured(monkeypatch, tmp_path):
    """Each pass is timed once, in the iterations before the capture, and the graph holds the choice."""
    monkeypatch.setattr(device_store, "FOLDER", tmp_path)
    monkeypatch.setattr(convolution_choice, "_chosen", {})
    model = VNet(base_channels=8).to("cuda")
    optimizer = make_optimizer(model, "sgd", 1e-3, 0.9, 0.0)
    step = Step(model, DiceLoss.paper(), optimizer, torch.float16, graph=True)
    image = torch.randn(1, 1, 32, 32, 32, device="cuda")
    target = (image > 0).to(torch.uint8)
    step(image, target)
    chosen = convolution_choice.chosen(torch.device("cuda", 0))
    passes = {layer.split()[0] for layer, _ in chosen}
    assert passes == {"forward", "grad_input", "grad_weight"}
    for _ in range(5):
        step(image, target)
    assert step.captured
    assert convolution_choice.chosen(torch.device("cuda", 0)) == chosen
