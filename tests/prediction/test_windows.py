import numpy as np
import pytest
import torch

from vnet_fast.prediction import windows

# length, window
AXES = [(16, 16), (17, 16), (31, 16), (48, 16), (49, 16), (100, 32), (141, 128), (7, 3), (5, 1)]
OVERLAPS = [0, 0.25, 0.5, 0.75, 0.9]


@pytest.mark.parametrize(("length", "window"), AXES, ids=str)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_windows_overlap_as_asked_and_no_more_than_needed(length, window, overlap):
    first = windows.starts(length, window, overlap)
    assert first[0] == 0
    assert first[-1] == length - window
    # a window of one voxel, or of 0.9 of three, moves by a voxel
    widest = max(1, int(window * (1 - overlap)))
    gaps = np.diff(first)
    assert (gaps >= 1).all()
    assert (gaps <= widest).all()
    assert len(first) - 1 < (length - window) / widest + 1
    if len(gaps):
        assert np.ptp(gaps) <= 1


@pytest.mark.parametrize(("length", "window"), AXES, ids=str)
@pytest.mark.parametrize("overlap", OVERLAPS)
def test_weights_along_an_axis_sum_to_1(length, window, overlap):
    first = windows.starts(length, window, overlap)
    weights = windows.axis_weights(length, window, first)
    total, count = np.zeros(length), np.zeros(length)
    for start, weight in zip(first, weights, strict=True):
        assert weight.dtype == torch.float32
        assert (weight > 0).all()
        total[start : start + window] += weight.double().numpy()
        count[start : start + window] += 1
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-7)
    # exactly, so that a single window's prediction is kept to the bit
    assert (total[count == 1] == 1).all()


@pytest.mark.parametrize(("length", "window", "overlap"), [(16, 16, 0.5), (32, 16, 0.5), (64, 16, 0.25), (35, 7, 0.5)])
def test_weights_are_symmetric(length, window, overlap):
    weights = windows.axis_weights(length, window, windows.starts(length, window, overlap))
    for one, other in zip(weights, reversed(weights), strict=True):
        torch.testing.assert_close(one, other.flip(0), rtol=1e-6, atol=0)


def test_weights_fade_towards_a_window_s_end_where_another_takes_over():
    first = windows.starts(96, 32, 0.5)
    middle = windows.axis_weights(96, 32, first)[2]
    assert max(middle[0], middle[-1]) < 1e-3
    # two Gaussians a distance s apart blend as a logistic curve, of slope s / (4 sigma^2)
    assert middle.diff().abs().max() < 16 / (4 * 4**2)
    assert middle[14:18].min() > 0.99


@pytest.mark.parametrize(
    ("shape", "window"), [((16, 16, 16), (16, 16, 16)), ((17, 8, 40), (16, 16, 16)), ((5, 7, 3), (2, 3, 3))], ids=str
)
@pytest.mark.parametrize("overlap", [0, 0.5])
def test_cover_reaches_every_voxel_with_weights_that_sum_to_1(shape, window, overlap):
    total = torch.zeros(shape, dtype=torch.float64)
    for part in windows.cover(shape, window, overlap):
        weights = part.weights()
        assert weights.dtype == torch.float32
        assert weights.shape == windows.clip_to_shape(window, shape)
        total[part.where] += weights
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


def test_cover_gives_each_axis_its_own_weights():
    shape, window = (20, 24, 30), (12, 16, 20)
    lines = [windows.axis_weights(n, w, windows.starts(n, w, 0.5)) for n, w in zip(shape, window, strict=True)]
    parts = windows.cover(shape, window, 0.5)
    assert len(parts) == 3 * 2 * 2
    expected = torch.einsum("i,j,k->ijk", lines[0][1], lines[1][0], lines[2][1])
    assert [part.where for part in parts].index((slice(4, 16), slice(0, 16), slice(10, 30))) == 5
    torch.testing.assert_close(parts[5].weights(), expected)


def test_one_window_has_weight_1():
    (only,) = windows.cover((16, 20, 7), (32, 20, 16), 0.5)
    assert only.where == (slice(0, 16), slice(0, 20), slice(0, 7))
    assert (only.weights() == 1).all()


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5, float("nan")])
def test_overlap_outside_of_its_range(overlap):
    with pytest.raises(ValueError, match=r"overlap must be 0 or more and below 1; got"):
        windows.cover((16, 16, 16), (16, 16, 16), overlap)


def test_halves_down_to_the_smallest():
    sizes = [(64, 128, 128)]
    while size := windows.halve_longest_axis(sizes[-1]):
        sizes.append(size)
    assert sizes[1:] == [(64, 64, 128), (64, 64, 64)]


@pytest.mark.parametrize("longest", range(65, 300, 13))
def test_a_half_is_smaller_and_a_multiple_of_16(longest):
    half = windows.halve_longest_axis((16, longest, 20))[1]
    assert longest / 2 <= half < longest
    assert half % 16 == 0
    assert windows.halve_longest_axis((64, 20, 7)) is None
