from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import parts
from vnet_fast import DiceLoss, VNet
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step


@pytest.mark.parametrize(
    ("part", "name", "operations"),
    [
        ("convolutions, forward", "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", ()),
        ("convolutions, backward", "cutlass_tensorop_bf16_s16816dgrad_optimized", ()),
        ("convolutions, backward", "sm90_xmma_fprop_implicit_gemm", ("aten::convolution_backward",)),
        ("convolutions, forward", "sm90_xmma_dgrad_implicit_gemm", ("aten::cudnn_convolution_transpose",)),
        ("copies and layout", "void cudnn::ops::nchwToNhwcKernel<float>", ("aten::cudnn_convolution",)),
        ("copies and layout", "vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda>", ()),
        ("activations and elementwise", "_add_prelu_backward_kernel", ()),
        ("activations and elementwise", "_sum_partials_kernel", ()),
        ("activations and elementwise", "cudnn::bn_fw_tr_1C11_kernel_NCHW", ("aten::cudnn_batch_norm",)),
        ("activations and elementwise", "triton_poi_fused__prelu_kernel_convolution_0", ("CompiledFunction",)),
        ("loss", "_dice_forward_kernel", ()),
        ("loss", "vectorized_elementwise_kernel", ("aten::mul", "DiceLoss")),
        ("optimiser", "void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", ()),
        (
            "convolutions, backward",
            "aten::convolution_backward",
            ("aten::convolution_backward", "CompiledFunctionBackward"),
        ),
        ("other", "unheard_of", ()),
    ],
)
def test_part_of(part, name, operations):
    assert parts.part_of(name, operations) == part


def step_of(model):
    optimizer = make_optimizer(model, "sgd", 1e-4, 0.99, 5e-4)
    return Step(model, DiceLoss.paper(), optimizer)


@pytest.mark.exhaustive
def test_parts_of_our_step_on_a_cpu():
    torch.manual_seed(0)
    step = step_of(VNet(base_channels=4))
    image, target = torch.randn(1, 1, 32, 64, 64), (torch.rand(1, 1, 32, 64, 64) > 0.9).to(torch.uint8)
    step(image, target)
    seconds = parts.step_by_parts(lambda: step(image, target), wall=1e3)
    assert sum(seconds.values()) == pytest.approx(1e3)
    busy = 1e3 - seconds.pop("idle")
    # one of them alone may come second where other processes take the time
    convolutions = seconds.pop("convolutions, forward") + seconds.pop("convolutions, backward")
    assert convolutions > max(seconds.values())
    assert all(seconds[part] > 0 for part in ("activations and elementwise", "loss", "optimiser"))
    assert seconds["other"] < 0.1 * busy


def test_parts_are_no_longer_than_the_step():
    seconds = parts.step_by_parts(lambda: torch.ones(1000) + 1, wall=1e-9)
    assert sum(seconds.values()) == pytest.approx(1e-9)
    assert seconds["idle"] == 0


def event(name, kernels=(), parent=None, microseconds=0, annotation=False):
    """What the profiler says of an operation, or with `microseconds` of a kernel on the GPU."""
    return SimpleNamespace(
        name=name,
        kernels=[SimpleNamespace(name=kernel, duration=duration) for kernel, duration in kernels],
        cpu_parent=parent,
        sequence_nr=-1,
        device_type=DeviceType.CUDA if microseconds else DeviceType.CPU,
        time_range=SimpleNamespace(elapsed_us=lambda: microseconds),
        is_user_annotation=annotation,
    )


def test_kernels_count_for_what_launched_them_and_in_a_graph_by_name():
    loss, fprop = event("loss", annotation=True), "sm90_xmma_fprop"
    launched = [event("aten::convolution_backward", [(fprop, 10)]), loss, event("aten::mul", [("mul", 3)], parent=loss)]
    on_gpu = [
        event(fprop, microseconds=10),
        event("mul", microseconds=3),
        event("loss", microseconds=9, annotation=True),
    ]
    replayed = [event(fprop, microseconds=5), event("_dice_forward_kernel", microseconds=2)]
    seconds = parts._by_kernels(launched + on_gpu + replayed)
    expected = {"convolutions, backward": 10e-6, "convolutions, forward": 5e-6, "loss": 5e-6}
    assert {part: value for part, value in seconds.items() if value > 1e-12} == pytest.approx(expected)
