"""The curves of a training run for TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vnet_fast.averages import class_means, mean_dice
from vnet_fast.errors import InputError

# more scalars than are added between two readings of the losses, so that adding never waits for the disk
QUEUE = 1000
SECONDS_BETWEEN_WRITES = 10


def check_installed() -> None:
    """Raises an `InputError` if TensorBoard is not installed."""
    _load_writer()


def _load_writer() -> Any:
    # imported here, because it takes seconds and most runs do not need it
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard", "TensorBoard is not installed", "pip install 'vnet_fast[tensorboard]'"
        ) from None
    return SummaryWriter


class Board:
    """Writes the scalars of a run, in a thread of its own.

    Args:
        folder: where TensorBoard finds them.
        start: iterations that are done. Later scalars of an interrupted run are hidden.
        titles: what the foreground classes are called.
    """

    def __init__(self, folder: Path, start: int, titles: Sequence[str] = ()) -> None:
        # two classes of one name would share a curve
        self.titles = [
            title if titles.count(title) == 1 else f"{title} {label}" for label, title in enumerate(titles, start=1)
        ]
        self.writer = _load_writer()(
            str(folder), purge_step=start + 1, max_queue=QUEUE, flush_secs=SECONDS_BETWEEN_WRITES
        )

    def add_update(self, iteration: int, loss: float, learning_rate: float) -> None:
        """Adds one update of the weights; `iteration` counts from 1."""
        self.writer.add_scalar("loss", loss, iteration)
        self.writer.add_scalar("learning_rate", learning_rate, iteration)

    def add_speed(self, iteration: int, volumes_per_second: float) -> None:
        """Adds the speed up to an iteration."""
        self.writer.add_scalar("volumes_per_second", volumes_per_second, iteration)

    def add_validation(self, iteration: int, per_case: dict[str, list[float]]) -> None:
        """Adds the mean Dice of a validation, and that of each foreground class.

        Args:
            iteration: counted from 1.
            per_case: Dice of each class, by the name of the case.
        """
        values = per_case.values()
        self.writer.add_scalar("validation_dice/mean", mean_dice(values), iteration)
        for title, dice in zip(self.titles, class_means(values), strict=True):
            self.writer.add_scalar(f"validation_dice/{title.replace(' ', '_')}", dice, iteration)

    def close(self) -> None:
        """Writes what is queued."""
        self.writer.close()
