"""Convolutions 2x2x2 of stride 2 on CPUs, and their transposes, as matrix products.

Formula, for fine channels c and coarse channels k, and the eight corners t of a coarse voxel v:

    gather:     coarse[v, k] = Σ_t Σ_c fine[2 v + t, c] · w[k, t, c] + bias_k
    scatter:    fine[2 v + t, c] = Σ_k coarse[v, k] · w[k, t, c] + bias_c

    and then PReLU as in `add_prelu.py`, if a slope is given

Derivative: the gradient of the input of each is the other without bias, and

    grad_w[k, t, c] = Σ_v coarse[v, k] · fine[2 v + t, c]    where one of the two is a gradient

Layout: channels-last volumes and weights, channels in multiples of 8, fine volumes of even lengths. PyTorch's weights
(K, C, 2, 2, 2) have the coarse channels first for a convolution and for a transposed one.

Bytes moved: each volume once. Chunks of 48 coarse voxels are products of matrices in the cache, in float32. The same
bits for the same number of threads. `cpu/strided.h` has the source.
"""

import ctypes

import torch

from vnet_fast.kernels.cpu_convolution import DTYPES, MEMORY_FORMAT, MULTIPLE, call, layer_of

LENGTH = 2


def supports(x, weight, transposed):
    """Whether the kernels can run a convolution.

    Args:
        x: (N, C, D, H, W), or (N, K, D, H, W) of a transposed convolution.
        weight: (K, C, d, h, w).
        transposed: whether it is a transposed convolution.
    """
    k, c, *taps = weight.shape
    return (
        x.device.type == weight.device.type == "cpu"
        and x.ndim == 5
        and x.shape[1] == (k if transposed else c)
        and x.dtype in DTYPES
        and weight.dtype == torch.float32
        and taps == [LENGTH] * 3
        and c % MULTIPLE == k % MULTIPLE == 0
        and x.numel() > 0
        and (transposed or all(length % LENGTH == 0 for length in x.shape[2:]))
    )


def gather(library, x, weight, bias=None, slope=None):
    """A convolution, or the gradient of a transposed one's input.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last.
        weight: (K, C, 2, 2, 2), float32, channels-last.
        bias, slope: None or (K,), float32.

    Returns:
        (N, K, D / 2, H / 2, W / 2), channels-last, the type of x.
    """
    shape = [length // LENGTH for length in x.shape[2:]]
    y = torch.empty((x.shape[0], len(weight), *shape), dtype=x.dtype, memory_format=MEMORY_FORMAT)
    _run(library, "gather", x, weight, bias, slope, y, y)
    return y


def scatter(library, x, weight, bias=None, slope=None):
    """A transposed convolution, or the gradient of a convolution's input.

    Args:
        library: of the kernels.
        x: (N, K, D, H, W), channels-last.
        weight: (K, C, 2, 2, 2), float32, channels-last.
        bias, slope: None or (C,), float32.

    Returns:
        (N, C, 2 D, 2 H, 2 W), channels-last, the type of x.
    """
    shape = [length * LENGTH for length in x.shape[2:]]
    y = torch.empty((x.shape[0], weight.shape[1], *shape), dtype=x.dtype, memory_format=MEMORY_FORMAT)
    _run(library, "scatter", x, weight, bias, slope, y, x)
    return y


def weight_gradient(library, fine, coarse):
    """The gradient of the weight, (K, C, 2, 2, 2), channels-last, float32.

    Args:
        library: of the kernels.
        fine: (N, C, 2 D, 2 H, 2 W), channels-last.
        coarse: (N, K, D, H, W), as fine. One of the two is the input, and one the gradient of the output.
    """
    n, k, *shape = coarse.shape
    grad = torch.empty((k, fine.shape[1], *[LENGTH] * 3), dtype=torch.float32, memory_format=MEMORY_FORMAT)
    layer = layer_of((fine, None, None, None, None, coarse, None, None), (n, *shape, fine.shape[1], k))
    half = fine.dtype == torch.bfloat16
    call(library, "strided_weight_gradient", ctypes.addressof(layer), grad.data_ptr(), half)
    return grad


def _run(library, name, x, weight, bias, slope, y, coarse):
    n, k, *shape = coarse.shape
    layer = layer_of((x, weight, bias, None, slope, y, None, None), (n, *shape, weight.shape[1], k))
    call(library, name, ctypes.addressof(layer), x.dtype == torch.bfloat16)
