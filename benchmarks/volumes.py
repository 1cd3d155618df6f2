"""The volumes that the pipeline is measured on: phantoms, or those of a folder."""

import functools
import os

from benchmarks.measure import VOLUME
from vnet_fast.data.phantom import phantoms
from vnet_fast.data.training_data import load_data
from vnet_fast.run.configuration import Config
from vnet_fast.training.batches import Volumes

SPACING = (1.0, 1.0, 1.5)
COUNT = 8


@functools.cache
def training_cases():
    """Prepared cases, and the number of classes: of VNET_FAST_BENCHMARK_DATA where it names a folder."""
    folder = os.environ.get("VNET_FAST_BENCHMARK_DATA")
    if not folder:
        return phantoms(0, COUNT, VOLUME[::-1], SPACING), 2
    data = load_data(Config(data=folder, volume=VOLUME[::-1], spacing=SPACING, binary=True))
    return data.training, data.num_classes


def new_volumes():
    """The cases as tensors, to be moved or pinned."""
    return Volumes(*training_cases())
