"""The blocks of the CPU's convolutions: what they may change, what they need, and how many threads may share them."""

import itertools

import pytest
import torch

from tests.ops.test_kernel_cpu_convolution import BOUNDS, case, error, exact_results, filtered
from vnet_fast.kernels import cpu_blocks
from vnet_fast.kernels import cpu_convolution as kernels

LENGTHS = (1, 3, 4, 5, 9, 16, 17, 20, 33, 64, 130)
CHANNELS = (8, 24, 32, 64, 80, 128, 256)
# slices, tiles along H and W, shared; of a volume of 19 x 21 x 18 voxels: one tile, parts of it, and all of it
BLOCKS = [(4, 1, 1, False), (8, 2, 1, True), (12, 1, 3, False), (20, 4, 5, True), (16, 6, 6, False)]


@pytest.fixture
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(20)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("depth", kernels.DEPTHS)
@pytest.mark.parametrize("taps", kernels.TAPS)
def test_no_block_changes_an_output(library, monkeypatch, taps, depth):
    x, weight, grad = case((1, 16, 24, 19, 21, 18), taps=taps)
    chosen = filtered(library, x, weight, depth)
    exact = exact_results(x, weight, grad)[2]
    for block in BLOCKS:
        monkeypatch.setattr(kernels, "block_of", lambda *_, block=block, **__: block)
        assert filtered(library, x, weight, depth).equal(chosen)
        assert error(kernels.weight_gradient(library, x, grad, taps, depth), exact) <= BOUNDS[depth]


@pytest.mark.parametrize("shape", [(1, 16, 136, 8, 17, 16), (1, 136, 16, 5, 9, 8), (2, 8, 8, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("depth", kernels.DEPTHS)
def test_more_threads_than_points_of_a_plane_have_parts(library, many_threads, shape, depth):
    """With more than eight threads, those that share a block also share the channels of a point."""
    x, weight, grad = case(shape)
    y, exact_y, exact_grad = filtered(library, x, weight, depth), *exact_results(x, weight, grad)[::2]
    assert error(y, exact_y) <= BOUNDS[depth]
    assert error(kernels.weight_gradient(library, x, grad, 5, depth), exact_grad) <= BOUNDS[depth]
    torch.set_num_threads(2)
    assert filtered(library, x, weight, depth).equal(y)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5, 64])
@pytest.mark.parametrize("taps", kernels.TAPS)
def test_blocks_fit_the_volume_and_keep_threads_busy(taps, threads, gradient):
    for c, d, h, w in itertools.product(CHANNELS, LENGTHS, LENGTHS, LENGTHS):
        deep, high, wide, shared = cpu_blocks.block_of(c, c, 1, (d, h, w), taps, 4, threads, gradient)
        tile = cpu_blocks.POINTS - taps + 1
        # whole tiles, none of which lies beyond the volume
        assert deep % 4 == 0 < deep < d + 4
        assert 0 < (high - 1) * tile < h or high == 1
        assert 0 < (wide - 1) * tile < w or wide == 1
        assert shared or c <= cpu_blocks.MAX_OWN_CHANNELS
        # which all threads read once for a block
        assert c <= cpu_blocks.MAX_OWN_CHANNELS or high * wide > 1 or max(h, w) <= tile
        if threads > 1 and not shared:
            blocks = -(-d // deep) * -(-h // (high * tile)) * -(-w // (wide * tile))
            assert blocks >= cpu_blocks.BLOCKS_A_THREAD * threads


@pytest.mark.parametrize("taps", kernels.TAPS)
def test_memory_is_what_the_guide_says(taps):
    """docs/cpu.md, in MB, for any size of volume."""
    for gradient, own, shared_by_all, of_each in ((False, 10, 38, 1), (True, 28, 210, 3.2)):
        for c, d, depth in itertools.product(CHANNELS, LENGTHS, kernels.DEPTHS):
            deep, high, wide, shared = cpu_blocks.block_of(c, c, 1, (d, 128, 128), taps, depth, 2, gradient)
            values = cpu_blocks.POINTS**2 * ((deep + taps - 1) + deep) * high * wide * c
            values += gradient * cpu_blocks.weight_size(c, c, taps, depth)
            # the points along the depth, of inputs and of gradients or the widest panel of products
            along = (
                (depth > 1) * (deep // depth * high * wide * (c + (c if gradient else 32)) + 32) * (depth + taps - 1)
            )
            assert values * 4e-6 + (not shared) * along * 4e-6 <= (shared_by_all if shared else own)
            assert not shared or along * 4e-6 <= of_each
