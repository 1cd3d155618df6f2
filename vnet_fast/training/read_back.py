"""Losses on their way from the device to the log."""

import torch
from torch import Tensor

# the losses of so many iterations are read back together, because each reading would wait for the GPU
READ_BACK = 10


class ReadBack:
    """Reads losses back from the device without waiting for it.

    A group of losses is copied when it is full, and read when the next group is full. By then the device has
    finished it and works on later iterations.

    Args:
        start: iterations that are done.
    """

    def __init__(self, start: int) -> None:
        self.first = start + 1
        self.pending: list[Tensor] = []
        self.rates: list[float] = []
        self.sent: tuple[Tensor, torch.cuda.Event | None] | None = None

    def add(self, loss: Tensor, learning_rate: float) -> None:
        """Adds the loss of the next iteration, a scalar tensor, and the learning rate that it was made with."""
        self.pending.append(loss)
        self.rates.append(learning_rate)

    @property
    def full(self) -> bool:
        """Whether a group is full, so that `read` should be called."""
        return len(self.pending) >= READ_BACK

    def read(self, everything: bool = False) -> tuple[int, list[float], list[float]]:
        """The losses and learning rates of the group before this one.

        Args:
            everything: waits for the device and returns the losses of all iterations.

        Returns:
            the first one's iteration, counted from 1, the losses, which may be none, and as many learning rates.
        """
        losses = self._receive()
        if self.pending:
            group = torch.stack(self.pending)
            self.sent, self.pending = (group.to("cpu", non_blocking=group.is_cuda), _mark(group.device)), []
        if self.sent is not None and (everything or self.sent[1] is None):
            losses += self._receive()
        first = self.first
        self.first += len(losses)
        rates, self.rates = self.rates[: len(losses)], self.rates[len(losses) :]
        return first, losses, rates

    def _receive(self) -> list[float]:
        if self.sent is None:
            return []
        (losses, mark), self.sent = self.sent, None
        if mark is not None:
            mark.synchronize()
        values: list[float] = losses.tolist()
        return values


def _mark(device: torch.device) -> torch.cuda.Event | None:
    """A mark in a CUDA device's queue of work that can be waited for; None elsewhere, where copying has waited."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event
