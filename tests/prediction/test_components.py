import numpy as np

from vnet_fast.prediction.components import largest_components


def test_largest_components():
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[1:4, 1:4, 1:4] = 1
    mask[8:10, 8:10, 8:10] = 1
    mask[0, 11, 11] = 2
    mask[4, 4, 4] = 1  # touches the first by a corner
    kept = largest_components(mask)
    assert (kept == 1).sum() == 28
    assert (kept == 2).sum() == 1
    assert not kept[8:10, 8:10, 8:10].any()
