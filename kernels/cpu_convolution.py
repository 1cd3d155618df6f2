"""Convolutions 5x5x5 and 3x3x3 on CPUs with few multiplications, with bias, residual and PReLU in the same pass.

Those of up to four channels to many, as of the image, are direct sums; of small volumes see `cpu_direct.py`.

Formula, of stride 1 with zeros beyond the volume, for C channels to K:

    y[v, k] = Σ_t Σ_c x[v + t, c] · w[k, t, c] + bias_k + residual[v, k]       t: taps, -2 to 2 or -1 to 1 along an axis

    and then PReLU as in `add_prelu.py`

Derivative:

    grad_x[v, c] = Σ_t Σ_k g[v - t, k] · w[k, t, c]                            the same with the taps mirrored
    grad_w[k, t, c] = Σ_v x[v + t, c] · g[v, k]

Minimal filtering (Toom, Cook, Winograd), nested along the axes: tiles of 4x4 outputs along H and W, 6x6 of 3x3x3
taps, need 8x8 products for each pair of channels where the sum above needs 400, or 324. Along the depth, `depth`
outputs of a tile need depth + taps - 1:

    taps    depth    multiplications, of the sum's      transformed weight, of the weight's size
    5       1        1 / 6.25   (depth as in the sum)   2.6
    5       2        1 / 10.4                           3.1
    5       4        1 / 15.6                           4.1
    3       1        1 / 5.06                           7.1
    3       2        1 / 7.59                           9.5
    3       4        1 / 10.1                           14.2

The slices of a block of tiles are transformed along H and W. Then for each point the rest happens in the cache: the
transform along the depth, the products with the transformed weight, and the way back along the depth. `cpu_blocks.py`
chooses the blocks. `cpu/` has the source: `toom_cook.h` the transforms, `transforms.h` the tiles, `depth.h` the way
along the depth, `products.h` the products, `weights.h` the weights, `first_layer.h` the direct sums.

Precision: arithmetic is float32, whatever the memory. For normally distributed values the error is 4, 5 and 10 times
that of a direct sum with a depth of 1, 2 and 4: 5e-6 to 1e-5 of the result. A common offset does no harm. A single
value R times as large as the others does: up to 7 voxels from it, beyond the reach of the sum, the error is 2e-7 R of
the others' results, or up to 6e-7 R with 3 taps, depending on where in a tile it lies. `convolve` therefore returns R,
the largest absolute value of x over the mean of all.

Layout: channels-last volumes and weights; channels in multiples of 8, or up to four to multiples of 8.

Bytes moved: x is read about 5 times, up to 8 where many threads need small blocks, mostly from the cache; y and the
residual once; the transformed weight once for each block.

The same bits for the same number of threads.

Source:
    Lavin, Gray 2016, arXiv 1509.09308, for two axes and 3x3 taps.
"""

import ctypes
import functools

import torch

from vnet_fast.kernels.cpu_blocks import block_of, weight_size

# of channels
MULTIPLE = 8
MAX_FEW_CHANNELS = 4
DEPTHS = (1, 2, 4)
# along each axis
TAPS = (3, 5)
MEMORY_FORMAT = torch.channels_last_3d
DTYPES = (torch.float32, torch.bfloat16)


class _Layer(ctypes.Structure):
    """`Layer` of cpu/blocks.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "slope", "y", "negative", "extent")),
        *((name, ctypes.c_int64) for name in ("n", "d", "h", "w", "c", "k", "residual_channels")),
        *((name, ctypes.c_int64) for name in ("block_d", "block_h", "block_w", "shared", "threads")),
    )


@functools.cache
def _function(library, name):
    pointer, number, flag = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    function = getattr(library, f"vnet_fast_{name}")
    function.argtypes = {
        "transform_weight": (pointer, pointer, number, number, number, number, flag, number),
        "fingerprint": (pointer, number, number, pointer),
        "convolve": (pointer, number, number, flag),
        "weight_gradient": (pointer, pointer, number, number, flag),
        "first_layer": (pointer, number, flag),
        "first_layer_gradient": (pointer, pointer, number, flag),
        "direct": (pointer, number, flag, flag),
        "direct_weight_gradient": (pointer, pointer, number, flag),
        "gather": (pointer, flag),
        "scatter": (pointer, flag),
        "strided_weight_gradient": (pointer, pointer, flag),
    }[name]
    return function


def supports(x, weight):
    """Whether the kernels can run a convolution.

    Args:
        x: (N, C, D, H, W).
        weight: (K, C, d, h, w).
    """
    k, c, *taps = weight.shape
    return (
        x.device.type == weight.device.type == "cpu"
        and x.ndim == 5
        and x.shape[1] == c
        and x.dtype in DTYPES
        and weight.dtype == torch.float32
        and taps in [[length] * 3 for length in TAPS]
        and k % MULTIPLE == 0
        and (c % MULTIPLE == 0 or has_few_channels(weight))
        and x.numel() > 0
    )


def has_few_channels(weight):
    """Whether a convolution with a weight (K, C, d, h, w) is a direct sum."""
    return weight.shape[1] <= MAX_FEW_CHANNELS


def transform_weight(library, weight, depth, mirrored=False, out=None):
    """A weight as the products read it.

    Args:
        library: of the kernels.
        weight: (K, C, t, t, t), t of TAPS, float32, channels-last.
        depth: of DEPTHS.
        mirrored: for the gradient of the input.
        out: None, or memory of that size.

    Returns:
        a flat tensor, float32.
    """
    k, c, taps = weight.shape[:3]
    out = torch.empty(weight_size(c, k, taps, depth), dtype=torch.float32) if out is None else out
    call(library, "transform_weight", weight.data_ptr(), out.data_ptr(), c, k, taps, depth, mirrored, _threads())
    return out


def fingerprint(library, values):
    """A number of 64 bits that changes with the values of a dense float32 tensor, or with their order in memory."""
    out = ctypes.c_uint64()
    call(library, "fingerprint", values.data_ptr(), values.numel(), _threads(), ctypes.addressof(out))
    return out.value


def convolve(library, x, weight, channels, taps, depth, bias=None, residual=None, slope=None, negative=None):
    """A convolution, or the gradient of its input.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last, of a type that `supports` accepts.
        weight: of `transform_weight`, for C to `channels`.
        channels: K.
        taps, depth: of TAPS and DEPTHS.
        bias: None or (K,), float32.
        residual: None, (N, K, D, H, W) or (N, 1, D, H, W), as x.
        slope: None or (K,), float32: applies PReLU.
        negative: None or uint8 (N D H W K / 8), for the bits of values that are not positive.

    Returns:
        (N, K, D, H, W), channels-last, the type of x; and how many times the mean absolute value of x its largest is.
    """
    n, c, *shape = x.shape
    y = torch.empty((n, channels, *shape), dtype=x.dtype, memory_format=MEMORY_FORMAT)
    extent = torch.zeros((_threads(), 2), dtype=torch.float64)
    operands = (x, weight, bias, residual, slope, y, negative, extent)
    layer = layer_of(operands, (n, *shape, c, channels), block_of(c, channels, n, shape, taps, depth, _threads()))
    call(library, "convolve", ctypes.addressof(layer), taps, depth, x.dtype == torch.bfloat16)
    largest = max(float(most) for most, _ in extent.tolist())
    mean = sum(float(total) for _, total in extent.tolist()) / x.numel()
    return y, largest / mean if mean > 0 else 0.0


def weight_gradient(library, x, grad_y, taps, depth):
    """The gradient of the weight.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last.
        grad_y: (N, K, D, H, W), as x.
        taps, depth: of TAPS and DEPTHS.

    Returns:
        (K, C, taps, taps, taps), channels-last, float32.
    """
    n, c, *shape = x.shape
    k = grad_y.shape[1]
    grad = torch.empty((k, c, taps, taps, taps), dtype=torch.float32, memory_format=MEMORY_FORMAT)
    block = block_of(c, k, n, shape, taps, depth, _threads(), gradient=True)
    layer = layer_of((x, None, None, None, None, grad_y, None, None), (n, *shape, c, k), block)
    call(library, "weight_gradient", ctypes.addressof(layer), grad.data_ptr(), taps, depth, x.dtype == torch.bfloat16)
    return grad


def first_layer(library, x, weight, bias=None, residual=None, slope=None, negative=None):
    """A convolution of few channels.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last, of a type that `supports` accepts.
        weight: (K, C, t, t, t), t of TAPS, float32, channels-last.
        bias, residual, slope, negative: as for `convolve`.

    Returns:
        (N, K, D, H, W), channels-last, the type of x.
    """
    n, c, *shape = x.shape
    y = torch.empty((n, len(weight), *shape), dtype=x.dtype, memory_format=MEMORY_FORMAT)
    operands = (x, weight, bias, residual, slope, y, negative, None)
    layer = layer_of(operands, (n, *shape, c, len(weight)))
    call(library, "first_layer", ctypes.addressof(layer), weight.shape[2], x.dtype == torch.bfloat16)
    return y


def first_layer_gradient(library, x, grad_y, taps, name="first_layer_gradient"):
    """The gradient of the weight of a convolution of few channels.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last.
        grad_y: (N, K, D, H, W), as x.
        taps: of TAPS.
        name: of the library's function; that of small volumes takes the same.

    Returns:
        (K, C, taps, taps, taps), channels-last, float32.
    """
    n, c, *shape = x.shape
    grad = torch.empty((grad_y.shape[1], c, taps, taps, taps), dtype=torch.float32, memory_format=MEMORY_FORMAT)
    operands = (x, None, None, None, None, grad_y, None, None)
    layer = layer_of(operands, (n, *shape, c, grad_y.shape[1]))
    call(library, name, ctypes.addressof(layer), grad.data_ptr(), taps, x.dtype == torch.bfloat16)
    return grad


def layer_of(operands, lengths, block=(0, 0, 0, False)):
    """The `Layer` of a call.

    Args:
        operands: x, weight, bias, residual, slope, y, negative and extent; tensors that live as long as the call, or
            None.
        lengths: n, d, h, w, c and k.
        block: of `block_of`, where blocks are used.
    """
    pointers = (None if tensor is None else tensor.data_ptr() for tensor in operands)
    residual = operands[3]
    return _Layer(*pointers, *lengths, 0 if residual is None else residual.shape[1], *block, _threads())


def _threads():
    return torch.get_num_threads()


def call(library, name, *arguments):
    """Calls a function of the library.

    Raises:
        torch.OutOfMemoryError: if it has no memory.
    """
    if _function(library, name)(*arguments):
        raise torch.OutOfMemoryError("no memory for the transform of a convolution")
