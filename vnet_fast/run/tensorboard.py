"""The course of a training run for TensorBoard."""

import numpy as np

from vnet_fast.errors import InputError

# scalars that wait to be written: more than come between two looks at the losses, so that none waits
QUEUE = 1000
SECONDS_BETWEEN_WRITES = 10


def check_installed():
    """Makes sure that TensorBoard can be written for.

    Raises:
        InputError: if not.
    """
    _writer_class()


def _writer_class():
    # imported here: it takes seconds, and most runs do without
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "--tensorboard", "TensorBoard is not installed", "pip install 'vnet_fast[tensorboard]'"
        ) from None
    return SummaryWriter


class Board:
    """Scalars of a run, written by a thread of its own.

    Args:
        folder: where TensorBoard finds them.
        start: iterations done before; what an earlier run wrote beyond is hidden.
    """

    def __init__(self, folder, start):
        self.writer = _writer_class()(
            str(folder), purge_step=start + 1, max_queue=QUEUE, flush_secs=SECONDS_BETWEEN_WRITES
        )

    def add_update(self, iteration, loss, learning_rate):
        """What one update of the weights was, `iteration` counted from 1."""
        self.writer.add_scalar("loss", loss, iteration)
        self.writer.add_scalar("learning_rate", learning_rate, iteration)

    def add_rate(self, iteration, rate):
        """Volumes a second up to an iteration."""
        self.writer.add_scalar("volumes_per_second", rate, iteration)

    def add_validation(self, iteration, per_case):
        """The mean Dice of a validation and that of each foreground class, of what `validate` returned."""
        values = list(per_case.values())
        self.writer.add_scalar("validation_dice/mean", np.mean(values), iteration)
        for label, dice in enumerate(np.mean(values, axis=0), start=1):
            self.writer.add_scalar(f"validation_dice/class_{label}", dice, iteration)

    def close(self):
        self.writer.close()
