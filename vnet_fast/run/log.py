"""The log of a training run, and its progress on the screen."""

import csv
import io
import sys
import time

import numpy as np
from tqdm import tqdm

from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.run.tensorboard import Board
from vnet_fast.training.schedule import learning_rate

LOG_FIELDS = ("iteration", "loss", "learning_rate", "validation_dice", "volumes_per_second")
# between two lines where there is no terminal
SECONDS_BETWEEN_LINES = 30


class Log:
    """`log.csv` of a run and its progress, a bar on a terminal and lines elsewhere; and TensorBoard's
    scalars beside it, if the run has them.

    Args:
        path: of the file; lines from `start` on are dropped when a run is resumed.
        start: the first iteration.
        config: of the run.
    """

    def __init__(self, path, start, config):
        self.config = config
        kept = []
        if start and path.exists():
            try:
                with open(path, newline="") as file:
                    kept = [row for row in csv.DictReader(file) if int(row["iteration"]) <= start]
            except (KeyError, ValueError, TypeError, csv.Error) as error:
                raise InputError(path, f"not a log ({error})", "Take it away to resume without it") from None
        # whole before the first new line: a run may be killed at any moment
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, LOG_FIELDS)
        writer.writeheader()
        writer.writerows([{name: row.get(name) for name in LOG_FIELDS} for row in kept])
        write_text(path, text.getvalue())
        self.board = Board(path.with_name("tensorboard"), start) if config.tensorboard else None
        self.file = open(path, "a", newline="")  # noqa: SIM115 - closed by close()
        self.writer = csv.DictWriter(self.file, LOG_FIELDS)
        self.bar = tqdm(total=config.iterations, initial=start, unit="it", disable=not sys.stderr.isatty())
        self.dice, self.said, self.began, self.start = None, time.monotonic(), time.monotonic(), start

    def add(self, first, losses, rate, per_case=None):
        """Iterations that have been done.

        Args:
            first: of them, counted from 1.
            losses: of each.
            rate: volumes/s.
            per_case: None, or what `validation.validate` returned after the last of them.
        """
        if not losses:
            return
        dice = None if per_case is None else mean_dice(per_case)
        if self.board:
            self._show(first, losses, rate, per_case)
        for iteration, loss in enumerate(losses, start=first):
            last = iteration == first + len(losses) - 1
            row = (
                iteration,
                f"{loss:.6g}",
                f"{learning_rate(self.config, iteration - 1):.6g}",
                f"{dice:.6g}" if last and dice is not None else "",
                f"{rate:.6g}",
            )
            self.writer.writerow(dict(zip(LOG_FIELDS, row, strict=True)))
        self.file.flush()
        self.dice = self.dice if dice is None else dice
        shown = f"loss {np.mean(losses):.4f}  validation Dice {'-' if self.dice is None else f'{self.dice:.4f}'}"
        shown += f"  {rate:.2f} volumes/s"
        self.bar.set_postfix_str(shown, refresh=False)
        self.bar.update(len(losses))
        self._say(first + len(losses) - 1, shown, dice is not None)

    def _show(self, first, losses, rate, per_case):
        for iteration, loss in enumerate(losses, start=first):
            self.board.add_update(iteration, loss, learning_rate(self.config, iteration - 1))
        self.board.add_rate(first + len(losses) - 1, rate)
        if per_case is not None:
            self.board.add_validation(first + len(losses) - 1, per_case)

    def _say(self, done, shown, always):
        now = time.monotonic()
        if not self.bar.disable or not (always or now - self.said > SECONDS_BETWEEN_LINES):
            return
        left = (now - self.began) / (done - self.start) * (self.config.iterations - done)
        print(f"iteration {done}/{self.config.iterations}  {shown}  {minutes(left)} left", flush=True)
        self.said = now

    def close(self):
        self.bar.close()
        self.file.close()
        if self.board:
            self.board.close()


def minutes(seconds):
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def mean_dice(per_case):
    """The mean over cases and classes."""
    return float(np.mean(list(per_case.values())))


def read_log(log):
    """A run's `log.csv`: list of (iteration, loss, learning rate, validation Dice or None)."""
    with open(log, newline="") as file:
        return [
            (
                int(row["iteration"]),
                float(row["loss"]),
                float(row["learning_rate"]),
                float(row["validation_dice"]) if row["validation_dice"] else None,
            )
            for row in csv.DictReader(file)
        ]
