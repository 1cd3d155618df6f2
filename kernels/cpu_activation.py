"""PReLU of normalised or shifted x + residual on CPUs, its gradients, and the statistics of a normalisation.

Formula, for each volume n and channel c, with all but the slope optional:

    z = (x - mean_nc) · scale_nc + shift_nc + residual
    y = z               if z > 0
        slope_c · z     otherwise

Derivative, where z = 0 takes the slope, as in PyTorch:

    grad_z = grad_y · (1 if z > 0 else slope_c)     also the gradient of the residual
    and the sums over voxels of grad_z, of grad_z · (x - mean_nc), and of grad_y · z over z <= 0

from which the gradients of all numbers follow, and by `combine` that of x through a normalisation.

Layout: channels-last volumes with channels in multiples of 8; y and grad_y may be channels of wider ones.

Accuracy: arithmetic is float32, whatever the memory. Sums are of chunks of 512 voxels, which are added in float64 in a
fixed order, so that they are the same bits for any number of threads. A chunk's squares are of the differences from
its own mean.

Bytes moved per element of b bytes: forward 2 b, and b with a full residual; backward 3 b, and b with a full residual;
statistics b; combine 3 b. `cpu/activation.h` has the source.

Source:
    As for `add_prelu.py` and `norm_prelu.py`.
"""

import ctypes
import functools

import torch

MULTIPLE = 8
MEMORY_FORMAT = torch.channels_last_3d
_DTYPES = (torch.float32, torch.bfloat16)
_FUNCTIONS = ("activate", "activate_backward", "statistics", "combine")
_POINTERS = ("x", "residual", "grad_y", "mean", "scale", "shift", "factor", "slope", "y", "grad_z", "sums")
_NUMBERS = ("n", "voxels", "c", "residual_channels", "y_stride", "threads")


class _Activation(ctypes.Structure):
    """`Activation` of cpu/activation.h."""

    _fields_ = (*((name, ctypes.c_void_p) for name in _POINTERS), *((name, ctypes.c_int64) for name in _NUMBERS))


def supports(x):
    """Whether the kernels can take a volume (N, C, D, H, W)."""
    return (
        x.device.type == "cpu"
        and x.ndim == 5
        and x.dtype in _DTYPES
        and x.shape[1] % MULTIPLE == 0
        and x.numel() > 0
        and x.is_contiguous(memory_format=MEMORY_FORMAT)
    )


def activate(library, x, slope, mean=None, scale=None, shift=None, residual=None, out=None):
    """The activation of a volume.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W) that `supports` accepts.
        slope: (C,), float32.
        mean, scale, shift: None or (N, C), float32.
        residual: None, (N, C, D, H, W) or (N, 1, D, H, W), channels-last, the type of x.
        out: None, or memory for y that `row_stride` accepts.

    Returns:
        (N, C, D, H, W), the type of x.
    """
    y = torch.empty_like(x) if out is None else out
    numbers = {"mean": mean, "scale": scale, "shift": shift, "slope": slope}
    _call(library, "activate", row_stride(y), x=x, residual=residual, y=y, **numbers)
    return y


def activate_backward(library, grad_y, x, slope, mean=None, scale=None, shift=None, residual=None):
    """The gradient before the activation, and sums over the voxels.

    Args:
        library: of the kernels.
        grad_y: (N, C, D, H, W) that `row_stride` accepts, the type of x.
        x, slope, mean, scale, shift, residual: as for `activate`.

    Returns:
        grad_z: (N, C, D, H, W), the type of x.
        (N, 3, C) float64: the sums of grad_z, of grad_z · (x - mean), and of grad_y · z over z <= 0.
    """
    grad_z = torch.empty_like(x)
    sums = torch.empty((x.shape[0], 3, x.shape[1]), dtype=torch.float64)
    numbers = {"mean": mean, "scale": scale, "shift": shift, "slope": slope}
    operands = {"x": x, "residual": residual, "grad_y": grad_y, "grad_z": grad_z, "sums": sums}
    _call(library, "activate_backward", row_stride(grad_y), **operands, **numbers)
    return grad_z, sums


def statistics(library, x):
    """Mean, and sum of squared differences from it, of each volume and channel.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W) that `supports` accepts.

    Returns:
        two of (N, C), float64.
    """
    sums = torch.empty((x.shape[0], 2, x.shape[1]), dtype=torch.float64)
    _call(library, "statistics", x.shape[1], x=x, sums=sums)
    return sums[:, 0], sums[:, 1]


def combine(library, grad_z, x, scale, factor, mean, shift):
    """grad_z · scale + (x - mean) · factor + shift, with (N, C) float32 numbers: (N, C, D, H, W), the type of x."""
    y = torch.empty_like(x)
    numbers = {"scale": scale, "factor": factor, "mean": mean, "shift": shift}
    _call(library, "combine", x.shape[1], x=x, grad_z=grad_z, y=y, **numbers)
    return y


def row_stride(volume):
    """The stride from voxel to voxel, if it is constant and channels are adjacent; else None."""
    n, c, *shape = volume.shape
    by_sample, by_channel, *by_axis = volume.stride()
    # that of an axis of length 1 says nothing
    strides = [found for length, found in zip(shape, by_axis, strict=True) if length > 1]
    stride = strides[-1] if strides else by_sample if n > 1 else c
    expected = (shape[1] * shape[2] * stride, shape[2] * stride, stride)
    dense = all(length == 1 or found == wanted for length, found, wanted in zip(shape, by_axis, expected, strict=True))
    samples = n == 1 or by_sample == shape[0] * expected[0]
    return stride if dense and samples and by_channel == 1 and stride >= c else None


@functools.cache
def _function(library, name):
    function = getattr(library, f"vnet_fast_{name}")
    function.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return function


def _call(library, name, y_stride, **operands):
    x = operands["x"]
    n, c, *shape = x.shape
    residual = operands.get("residual")
    channels = 0 if residual is None else residual.shape[1]
    addresses = {key: tensor.data_ptr() for key, tensor in operands.items() if tensor is not None}
    layer = _Activation(
        **addresses, n=n, voxels=shape[0] * shape[1] * shape[2], c=c, residual_channels=channels, y_stride=y_stride,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    if _function(library, name)(ctypes.addressof(layer), x.dtype == torch.bfloat16):
        raise torch.OutOfMemoryError("no memory for the sums of an activation")
