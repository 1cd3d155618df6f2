import math

import pytest
import torch

from vnet_fast import devices
from vnet_fast.devices import is_out_of_memory
from vnet_fast.run.configuration import Config
from vnet_fast.training import memory
from vnet_fast.training.memory import largest_fitting_batch, out_of_memory_error


class Limited(torch.nn.Module):
    """Runs out of memory beyond so many voxels, as a GPU does."""

    size_multiples = (16, 16, 16)
    in_channels = 1

    def __init__(self, voxels):
        super().__init__()
        self.weight, self.voxels, self.tried = torch.nn.Parameter(torch.ones(())), voxels, []

    def forward(self, x):
        self.tried.append(tuple(x.shape))
        if x.numel() > self.voxels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return x * self.weight


def loss(logits, target):
    return (logits * target).sum()


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        (3, (3, (64, 128, 128))),
        (1, (1, (64, 128, 128))),
        # of one volume the longest axis is halved first, in whole multiples of 16
        pytest.param(0.5, (1, (64, 64, 128)), marks=pytest.mark.exhaustive),
        pytest.param(0.1, (1, (32, 32, 64)), marks=pytest.mark.exhaustive),
        pytest.param(16**3 / (64 * 128 * 128), (1, (16, 16, 16)), marks=pytest.mark.exhaustive),
        pytest.param(0, None, marks=pytest.mark.exhaustive),
    ],
)
def test_what_fits_is_found_by_trying(volumes, expected):
    shape = (64, 128, 128)
    model = Limited(volumes * math.prod(shape))
    assert largest_fitting_batch(model, loss, None, 4, shape) == expected
    assert model.weight.grad is None
    assert all(batch < 4 for batch, *_ in model.tried)


@pytest.mark.exhaustive
def test_a_run_that_starts_from_another_is_not_told_to_be_narrower():
    for init, expected in ((None, "or --base-channels below 16"), ("best.pt", "which fits")):
        config = Config(data="DIR", init=init, batch_size=2, volume=(128, 128, 64))
        error = out_of_memory_error(config, Limited(64 * 128 * 128), loss, None, search=True)
        assert error.remedy.startswith("Give --batch-size 1")
        assert error.remedy.endswith(expected)


def test_other_errors_are_not_taken_for_it():
    model = Limited(math.inf)
    model.forward = lambda x: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        largest_fitting_batch(model, loss, None, 2, (16, 16, 16))


def test_out_of_memory_on_gpu_and_cpu():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("operation not permitted"))


@pytest.mark.gpu
def test_what_fits_on_a_gpu_does():
    from vnet_fast import DiceLoss, VNet

    model = VNet(base_channels=2).cuda()
    shape = (64, 128, 128)
    devices.free_memory(torch.device("cuda"))
    torch.cuda.reset_peak_memory_stats()
    assert memory._fits(model, DiceLoss.paper(), None, 1, shape)
    one = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2.5 * one)
    try:
        fitting = largest_fitting_batch(model, DiceLoss.paper(), None, 16, shape)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fitting[1] == shape
    assert 1 <= fitting[0] <= 3
