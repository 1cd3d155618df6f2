"""The volumes that training and augmentation are measured on: phantoms, or the cases of a folder."""

import functools
import os

from benchmarks.measure import SIZE
from vnet_fast.data.phantom import phantoms
from vnet_fast.data.training_data import load_data
from vnet_fast.run.configuration import Config
from vnet_fast.training.volumes import Volumes

# mm, x y z
SPACING = (1.0, 1.0, 1.5)
# how many phantoms
COUNT = 8


@functools.cache
def training_cases():
    """Prepared cases and the number of classes, of the folder VNET_FAST_BENCHMARK_DATA if it is set."""
    folder = os.environ.get("VNET_FAST_BENCHMARK_DATA")
    if not folder:
        return phantoms(0, COUNT, SIZE, SPACING), 2
    data = load_data(Config(data=folder, volume=SIZE, spacing=SPACING, binary=True))
    return data.training, data.num_classes


def new_volumes():
    """The cases as new tensors, which the caller may move or pin."""
    return Volumes(*training_cases())
