"""The fused bias + residual + PReLU kernels: the layouts and slices that they take, and the tensors they refuse."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.kernels import DEVICE, MARKS, TYPES
from tests.ops.test_kernel_add_prelu import channels_last, check, make_inputs, several_gradients
from vnet_fast.kernels import add_prelu

pytestmark = MARKS


@pytest.mark.parametrize("which", [0, 1])
def test_a_gradient_of_another_layout_among_several(which):
    inputs = make_inputs((2, 16, 3, 5, 7), torch.float32)[:4]
    grads = several_gradients((2, 16, 3, 5, 7), torch.float32, 2)
    grads[which] = grads[which].contiguous()
    check((*inputs, *grads))


@pytest.mark.parametrize("dtype", TYPES)
def test_two_dimensional_images(dtype):
    check(make_inputs((2, 16, 9, 11), dtype))


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_channel_slice_of_a_wider_tensor(dtype, channels):
    x, slope, bias, residual, grad_y = make_inputs((2, channels, 3, 5, 7), dtype)
    y, negative = add_prelu.add_prelu(x, slope, bias, residual)
    expected = add_prelu.add_prelu_backward([grad_y], y, negative, slope)

    def widened(value):
        wide = channels_last(torch.full((2, 2 * channels, 3, 5, 7), value, dtype=dtype, device=DEVICE))
        return wide, wide[:, channels:]

    wide, out = widened(7)
    assert add_prelu.supports(x, slope, bias, residual, out)
    in_place, bits = add_prelu.add_prelu(x, slope, bias, residual, out=out)
    assert in_place is out
    assert torch.equal(out, y)
    assert torch.equal(bits, negative)
    assert (wide[:, :channels] == 7).all()

    wide_grad, grad_slice = widened(torch.nan)
    grad_slice.copy_(grad_y)
    results = add_prelu.add_prelu_backward([grad_slice], out, bits, slope)
    assert results[0].is_contiguous(memory_format=torch.channels_last_3d)
    assert wide_grad[:, :channels].isnan().all()
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", TYPES)
def test_y_may_overwrite_x(dtype):
    x, slope, bias, residual, _ = make_inputs((2, 16, 3, 5, 7), dtype)
    expected, bits = add_prelu.add_prelu(x.clone(), slope, bias, residual)
    y, negative = add_prelu.add_prelu(x, slope, bias, residual, out=x)
    assert y is x
    assert torch.equal(y, expected)
    assert torch.equal(negative, bits)


@pytest.mark.parametrize("layout", ["expanded", "contiguous", "cropped"])
def test_gradients_of_any_stride(layout):
    x, slope, bias, residual, grad_y = make_inputs((2, 16, 3, 5, 7), torch.float32)
    if layout == "expanded":
        grad_y = torch.ones((), device=DEVICE).expand(x.shape)
    elif layout == "contiguous":
        grad_y = grad_y.contiguous()
    else:
        grad_y = F.pad(grad_y, (1, 1)).contiguous(memory_format=torch.channels_last_3d)[..., 1:-1]
    check((x, slope, bias, residual, grad_y))


def test_a_saved_y_may_have_lost_its_layout():
    x, slope, bias, residual, grad_y = make_inputs((2, 16, 3, 5, 7), torch.float32)
    y, negative = add_prelu.add_prelu(x, slope, bias, residual)
    expected = add_prelu.add_prelu_backward([grad_y], y, negative, slope)
    for ours, theirs in zip(
        add_prelu.add_prelu_backward([grad_y], y.contiguous(), negative, slope), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def wide_slice(channels=8):
    return channels_last(torch.zeros(2, 2 * channels, 3, 4, 5, device=DEVICE))[:, :channels]


def supports_cases():
    x = channels_last(torch.zeros(2, 8, 3, 4, 5, device=DEVICE))
    half, slope = x.bfloat16(), torch.zeros(8, device=DEVICE)
    one = torch.zeros(2, 1, 3, 4, 5, device=DEVICE)
    yes = {
        "channels_last": (x, slope),
        "two_dimensional": (x[..., 0].contiguous(memory_format=torch.channels_last), slope),
        "one_voxel_contiguous": (torch.zeros(2, 8, 1, 1, 1, device=DEVICE), slope),
        "one_channel": (torch.zeros(2, 1, 3, 4, 5, device=DEVICE), slope[:1]),
        "wider_than_a_tile": (
            channels_last(torch.zeros(1, 513, 1, 2, 2, device=DEVICE)),
            torch.zeros(513, device=DEVICE),
        ),
        "parameters_in_half": (half, slope.bfloat16(), slope.bfloat16()),
        "residual": (x, slope, None, x),
        "residual_of_one_channel": (x, slope, slope, one),
        "residual_of_one_channel_in_half": (half, slope, None, one.bfloat16()),
        "residual_of_one_channel_in_float32": (half, slope, None, one),
        "out": (x, slope, None, None, torch.empty_like(x)),
        "out_is_x": (x, slope, None, None, x),
        "out_is_a_slice": (x, slope, None, None, wide_slice()),
    }
    no = {
        "float64": (x.double(), slope),
        "contiguous": (torch.zeros(2, 8, 3, 4, 5, device=DEVICE), slope),
        "empty": (x[:0], slope),
        "no_channels": (x[:, :0], slope[:0]),
        "three_dimensions": (x[..., 0, 0], slope),
        "x_is_a_slice": (wide_slice(), slope),
        "expanded": (one.expand(2, 8, 3, 4, 5), slope),
        "one_slope_for_all": (x, slope[:1]),
        "slope_in_float64": (x, slope.double()),
        "slope_in_half_of_float32": (x, slope.half()),
        "strided_slope": (x, torch.zeros(16, device=DEVICE)[::2]),
        "bias_of_another_length": (x, slope, slope[:4]),
        "residual_of_another_type": (half, slope, None, x),
        "residual_contiguous": (x, slope, None, x.contiguous()),
        "residual_a_slice": (x, slope, None, wide_slice()),
        "residual_for_every_batch": (x, slope, None, one[:1]),
        "residual_of_one_channel_strided": (x, slope, None, wide_slice()[:, :1]),
        "residual_of_one_channel_in_float64": (x, slope, None, one.double()),
        "out_of_another_type": (x, slope, None, None, half),
        "out_of_another_shape": (x, slope, None, None, x[:1]),
        "out_expanded": (x, slope, None, None, x[:1, :, :1, :1, :1].expand(x.shape)),
        "out_contiguous": (x, slope, None, None, x.contiguous()),
        "out_cropped": (x[..., 1:].contiguous(memory_format=torch.channels_last_3d), slope, None, None, x[..., 1:]),
    }
    return [pytest.param(case, True, id=name) for name, case in yes.items()] + [
        pytest.param(case, False, id=name) for name, case in no.items()
    ]


@pytest.mark.parametrize(("case", "expected"), supports_cases())
def test_supports(case, expected):
    assert add_prelu.supports(*case) is expected
