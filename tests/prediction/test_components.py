import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

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


@pytest.mark.exhaustive
def test_the_components_of_a_large_mask_are_not_read_after_their_memory_is_freed():
    # glibc returns blocks above 32 MB to the system at once, so that a late read ends the process
    code = """
import numpy as np
from vnet_fast.prediction.components import largest_components
mask = np.zeros((210, 210, 210), np.uint8)
mask[:2, 0, 0] = mask[-1, -1, -1] = 1
assert largest_components(mask).sum() == 2
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("density", [0.02, 0.2, 0.6], ids=["many specks", "pieces", "one piece"])
@pytest.mark.parametrize("shape", [(4, 60, 70), (80, 5, 4)], ids=["large slices", "more components than a slice has"])
def test_components_are_itks(shape, density):
    mask = (np.random.default_rng(0).random(shape) < density).astype(np.uint8) * 3
    ranks = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(mask), True), sortByObjectSize=True)
    np.testing.assert_array_equal(largest_components(mask), 3 * (sitk.GetArrayFromImage(ranks) == 1))
