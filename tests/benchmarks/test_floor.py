import copy
import math

import pytest
import torch
from torch import nn

from benchmarks.ceilings import Ceilings
from benchmarks.floor import convolutions, floor_of
from benchmarks.peers import CommonVNet, PlainVNet
from vnet_fast import VNet


def machine(flops, bandwidth):
    return Ceilings({"product": flops}, {1: bandwidth})


H200 = machine(flops=790e12, bandwidth=4.3e12)
PAPER = (2, 1, 64, 128, 128)


def on_meta(make):
    with torch.device("meta"):
        return make()


def test_floor_of_the_paper_is_that_worked_out_by_hand():
    floor = floor_of(on_meta(VNet), PAPER, torch.bfloat16, H200)
    assert floor.flops == pytest.approx(5.35e12, rel=0.005)
    assert floor.step == pytest.approx(7.35e-3, rel=0.02)
    assert floor.forward == pytest.approx(2.34e-3, rel=0.02)


@pytest.mark.parametrize(
    ("layer", "count", "gigaflops", "megabytes"),
    [
        ("1→16, 5x5x5, 128x128x64", 1, 8.08, 71),
        ("32→32, 5x5x5, 128x128x64", 1, 517, 269),
        ("64→64, 5x5x5, 64x64x32", 2, 249, 68),
        ("256→256, 5x5x5, 8x8x4", 3, 4.24, 17),
        ("16→32, 2x2x2 down, 128x128x64", 1, 2.15, 84),
        ("64→16, 2x2x2 up, 64x64x32", 1, 4.29, 101),
        ("32→2, 1x1x1, 128x128x64", 1, 0.27, 143),
    ],
)
def test_layers_of_the_paper(layer, count, gigaflops, megabytes):
    same = [convolution for convolution in convolutions(on_meta(VNet), PAPER)[0] if str(convolution) == layer]
    assert len(same) == count
    assert same[0].flops == pytest.approx(1e9 * gigaflops, rel=0.01)
    assert same[0].nbytes(torch.bfloat16) == pytest.approx(1e6 * megabytes, rel=0.01)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(2, 3, 5, padding=2, bias=False),
        nn.Conv3d(2, 3, (5, 3, 1), stride=(2, 1, 2), padding=(1, 2, 0), bias=False),
        nn.Conv3d(2, 3, 2, stride=2, bias=False),
        nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False),
        nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1, bias=False),
    ],
    ids=str,
)
def test_flops_leave_out_the_zeros_of_the_padding(layer):
    """Of ones, a convolution is the number of its products."""
    shape = (2, 2, 4, 6, 3)
    nn.init.ones_(layer.weight)
    (convolution,) = convolutions(copy.deepcopy(layer).to("meta"), shape)[0]
    assert convolution.flops == 2 * layer(torch.ones(shape)).sum().item()


def test_only_the_first_convolution_has_no_input_gradient():
    layers, logits = convolutions(on_meta(VNet), PAPER)
    assert logits == (2, 2, 64, 128, 128)
    assert [layer.needs_input_gradient for layer in layers] == [False] + [True] * (len(layers) - 1)
    assert len(layers[0].passes) == 2


def test_each_topology_has_its_own_floor():
    plain, common = (floor_of(on_meta(make), PAPER, torch.bfloat16, H200) for make in (PlainVNet, CommonVNet))
    assert plain == floor_of(on_meta(VNet), PAPER, torch.bfloat16, H200)
    assert common.flops < 0.9 * plain.flops


def test_slow_bandwidth_counts_bytes_and_fast_ones_arithmetic():
    model, shape = on_meta(lambda: nn.Conv3d(1, 1, 1, bias=False)), (1, 1, 4, 4, 4)
    by_bytes = floor_of(model, shape, torch.float32, machine(math.inf, 1.0))
    # input, output and one weight, twice; logits three times and labels twice; the optimiser's 20 bytes
    assert by_bytes.step == 2 * 4 * (64 + 64 + 1) + 3 * 4 * 64 + 2 * 64 + 20
    assert floor_of(model, shape, torch.float32, machine(1.0, math.inf)).step == 2 * 2 * 64
