import pytest
import torch

from vnet_fast.training import read_back as reading
from vnet_fast.training.read_back import READ_BACK, ReadBack

RATE = 1e-3


def losses_of(values):
    return [torch.tensor(float(value)) for value in values]


def test_losses_of_a_cpu_come_back_group_by_group():
    read_back = ReadBack(start=5)
    for count, loss in enumerate(losses_of(range(READ_BACK)), start=1):
        read_back.add(loss, RATE)
        assert read_back.full == (count == READ_BACK)
    assert read_back.read() == (6, list(range(READ_BACK)), [RATE] * READ_BACK)
    assert not read_back.full
    read_back.add(torch.tensor(7.0), 2 * RATE)
    assert read_back.read(everything=True) == (6 + READ_BACK, [7.0], [2 * RATE])
    assert read_back.read(everything=True) == (7 + READ_BACK, [], [])


class Event:
    """A point in the device's work, waited for or not."""

    def __init__(self, waited):
        self.waited = waited

    def synchronize(self):
        self.waited.append(self)


@pytest.fixture
def waited(monkeypatch):
    """Losses that come from a device which is not done yet; the points that were waited for."""
    points = []
    monkeypatch.setattr(reading, "_mark", lambda device: Event(points))
    return points


def test_a_group_is_read_when_the_next_is_full(waited):
    read_back = ReadBack(start=0)
    groups = [losses_of(range(10 * i, 10 * i + READ_BACK)) for i in range(3)]
    came = []
    for group in groups:
        for loss in group:
            read_back.add(loss, RATE)
        came.append((read_back.read(), len(waited)))
    # nothing is waited for until a later group is under way
    assert came == [
        ((1, [], []), 0),
        ((1, [float(loss) for loss in groups[0]], [RATE] * READ_BACK), 1),
        ((1 + READ_BACK, [float(loss) for loss in groups[1]], [RATE] * READ_BACK), 2),
    ]
    read_back.add(torch.tensor(0.5), RATE)
    last = [*map(float, groups[2]), 0.5]
    assert read_back.read(everything=True) == (1 + 2 * READ_BACK, last, [RATE] * len(last))
    assert len(waited) == 4


@pytest.mark.gpu
def test_losses_of_a_gpu_are_those_it_computed():
    read_back, came = ReadBack(start=0), []
    loss = torch.zeros((), device="cuda")
    for iteration in range(25):
        loss += 1
        read_back.add(loss.clone(), RATE)
        if read_back.full:
            came += read_back.read()[1]
        # nothing came of the first group while the second was computed
        assert iteration >= 19 or came == []
    came += read_back.read(everything=True)[1]
    assert came == list(range(1, 26))
