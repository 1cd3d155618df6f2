"""Convolutions 5x5x5 and 3x3x3 of small volumes on CPUs, as direct sums.

Formula and derivatives are those of `cpu_convolution.py`. At the coarsest resolutions a volume is smaller than a tile
of minimal filtering, and most taps of its voxels lie beyond it: of 4 x 4 x 2 voxels a fifth of the products is left, of
8 x 8 x 4 a half. Each tap is a matrix product of the voxels that have it, in float32.

Layout: channels-last volumes and weights, channels in multiples of 8.

Bytes moved: the weight once, or for the gradient of the weight its gradient; volumes stay in the cache.

The same bits for any number of threads. `cpu/direct.h` has the source.
"""

import ctypes

import torch

from vnet_fast.kernels.cpu_convolution import MEMORY_FORMAT, call, first_layer_gradient, layer_of


def convolve(library, x, weight, bias=None, residual=None, slope=None, negative=None, mirrored=False):
    """A convolution, or the gradient of its input.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last, of a type that `cpu_convolution.supports` accepts; C in multiples of 8.
        weight: (K, C, t, t, t), t of TAPS, float32, channels-last.
        bias, residual, slope, negative: as for `cpu_convolution.convolve`.
        mirrored: gives the gradient of the input: x is that of the output, (N, K, D, H, W).

    Returns:
        (N, K, D, H, W), or (N, C, D, H, W) if mirrored, channels-last, the type of x.
    """
    n, c, *shape = x.shape
    outputs = weight.shape[1 if mirrored else 0]
    y = torch.empty((n, outputs, *shape), dtype=x.dtype, memory_format=MEMORY_FORMAT)
    layer = layer_of((x, weight, bias, residual, slope, y, negative, None), (n, *shape, c, outputs))
    call(library, "direct", ctypes.addressof(layer), weight.shape[2], mirrored, x.dtype == torch.bfloat16)
    return y


def weight_gradient(library, x, grad_y, taps):
    """The gradient of the weight.

    Args:
        library: of the kernels.
        x: (N, C, D, H, W), channels-last.
        grad_y: (N, K, D, H, W), as x.
        taps: of TAPS.

    Returns:
        (K, C, taps, taps, taps), channels-last, float32.
    """
    return first_layer_gradient(library, x, grad_y, taps, "direct_weight_gradient")
