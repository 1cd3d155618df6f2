"""The log of a training run, `log.csv`, and the progress on the screen."""

import contextlib
import csv
import io
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from vnet_fast.averages import class_means, mean_dice
from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.progress import said, say, shows_bar, working
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import TENSORBOARD
from vnet_fast.run.tensorboard import Board
from vnet_fast.stored import open_regular, reason
from vnet_fast.text_table import printable

FIELDS = ("iteration", "loss", "learning_rate", "validation_dice", "volumes_per_second")
# between two lines of progress where there is no terminal
SECONDS_BETWEEN_LINES = 10


class LogRow(NamedTuple):
    """One iteration of a log; the Dice is None where it was not validated."""

    iteration: int
    loss: float
    learning_rate: float
    validation_dice: float | None


class Log:
    """Writes `log.csv`, and TensorBoard's scalars if the run has them, and shows the progress.

    The progress is a bar on a terminal, and lines elsewhere.

    Args:
        path: of the file. When a run is resumed, lines after iteration `start` are deleted.
        start: iterations that are done.
        config: of the run.
        titles: what the foreground classes are called.

    Raises:
        InputError: if the file of a resumed run is damaged.
    """

    def __init__(self, path: Path, start: int, config: Config, titles: Sequence[str] = ()) -> None:
        self.config, self.start, self.titles = config, start, titles
        _rewrite(path, start)
        self.board = Board(path.with_name(TENSORBOARD), start, titles) if config.tensorboard else None
        self.file = open(path, "a", newline="")  # noqa: SIM115 - closed by close()
        self.writer = csv.writer(self.file)
        self.stack = contextlib.ExitStack()
        self.work = self.stack.enter_context(working("training", config.iterations, "iterations", start))
        self.bar = tqdm(total=config.iterations, initial=start, unit="it", disable=not shows_bar())
        self.shown_dice = "-"
        self.began = self.last_line = time.monotonic()

    def set_iterations(self, iterations: int) -> None:
        """Sets the number of iterations of the run, once it is known."""
        self.config = replace(self.config, iterations=iterations)
        self.work.total = self.bar.total = iterations

    def add(
        self,
        first: int,
        losses: Sequence[float],
        learning_rates: Sequence[float],
        volumes_per_second: float,
        per_case: dict[str, list[float]] | None = None,
    ) -> None:
        """Adds iterations that are done.

        Args:
            first: the first of them, counted from 1.
            losses: of each iteration.
            learning_rates: that each iteration was made with.
            volumes_per_second: the speed.
            per_case: None, or what `validate` returned after the last of them.
        """
        if not losses:
            return
        last = first + len(losses) - 1
        dice = None if per_case is None else mean_dice(per_case.values())
        for iteration, (loss, rate) in enumerate(zip(losses, learning_rates, strict=True), start=first):
            shown_dice = f"{dice:.6g}" if iteration == last and dice is not None else ""
            self.writer.writerow((iteration, f"{loss:.6g}", f"{rate:.6g}", shown_dice, f"{volumes_per_second:.6g}"))
            if self.board:
                self.board.add_update(iteration, loss, rate)
        self.file.flush()
        if self.board:
            self.board.add_speed(last, volumes_per_second)
            if per_case is not None:
                self.board.add_validation(last, per_case)
        if per_case is not None:
            self.shown_dice = dice_text(per_case, self.titles)
        self._show_progress(last, losses, volumes_per_second, validated=per_case is not None)

    def _show_progress(self, done: int, losses: Sequence[float], volumes_per_second: float, validated: bool) -> None:
        progress = f"loss {np.mean(losses):.4f}  validation Dice {self.shown_dice}  {volumes_per_second:.2f} volumes/s"
        self.bar.set_postfix_str(progress, refresh=False)
        self.bar.update(len(losses))
        self.work.done = done
        now = time.monotonic()
        is_due = validated or now - self.last_line > SECONDS_BETWEEN_LINES
        if self.bar.disable and is_due:
            left = (now - self.began) / (done - self.start) * (self.config.iterations - done)
            say(f"iteration {done}/{self.config.iterations}  {progress}  {minutes(left)} left")
            self.last_line = now
            said()

    def close(self) -> None:
        """Closes the file, the bar and TensorBoard's writer."""
        self.bar.close()
        self.stack.close()
        self.file.close()
        if self.board:
            self.board.close()


def _rewrite(path: Path, start: int) -> None:
    """Writes the log with the lines up to iteration `start`, whole, because a run may be killed at any moment."""
    kept = []
    if start and path.exists():
        try:
            with open_regular(path, "r", newline="") as file:
                # a line that a kill cut short lacks fields, and its iteration may lack digits
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            kept = [row for row in rows if int(row["iteration"]) <= start]
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise InputError(path, f"not a log ({error})", "Delete it to resume without it") from None
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, FIELDS)
    writer.writeheader()
    writer.writerows([{name: row.get(name) for name in FIELDS} for row in kept])
    write_text(path, text.getvalue())


def dice_text(per_case: Mapping[str, Sequence[float]], titles: Sequence[str]) -> str:
    """The mean Dice, and that of each class where there are several.

    Args:
        per_case: Dice of each class, by the name of the case.
        titles: what the classes are called.
    """
    text = _number(mean_dice(per_case.values()))
    if len(titles) > 1:
        classes = zip(titles, class_means(per_case.values()), strict=True)
        text += f" ({', '.join(f'{printable(title)} {_number(dice)}' for title, dice in classes)})"
    return text


def _number(dice: float) -> str:
    return "-" if math.isnan(dice) else f"{dice:.4f}"


def recipe_text(config: Config) -> str:
    """The recipe of a run in a few words, such as `recipe: paper, dice, sgd, learning rate 0.0001, step`."""
    parts = [f"{config.freeze} stages frozen"] if config.freeze else []
    parts += [config.loss, config.optimizer, f"learning rate {config.learning_rate:g}", config.schedule]
    parts += [f"warm-up of {config.warmup} iterations"] if config.warmup else []
    parts += [f"gradients clipped at {config.clip:g}"] if config.clip is not None else []
    parts += [f"weights averaged with {config.ema:g}"] if config.ema is not None else []
    parts += [f"{config.minutes:g} minutes"] if config.minutes is not None else []
    parts += [f"patience of {config.patience} validations"] if config.patience is not None else []
    return f"recipe: {config.recipe}, {', '.join(parts)}"


def network_text(config: Config, parameters: int) -> str:
    """The network of a run, which has so many parameters, in a few words."""
    size, spacing = " x ".join(map(str, config.volume)), " x ".join(f"{length:g}" for length in config.spacing)
    return f"network: {config.topology} topology, {parameters:,} parameters, {size} voxels of {spacing} mm"


def minutes(seconds: float) -> str:
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def read_log(path: str | Path) -> list[LogRow]:
    """The rows of a run's `log.csv`.

    Raises:
        InputError: if the file is damaged or can't be read.
    """
    try:
        with open_regular(path, "r", newline="") as file:
            return [
                LogRow(
                    int(row["iteration"]),
                    float(row["loss"]),
                    float(row["learning_rate"]),
                    float(row["validation_dice"]) if row["validation_dice"] else None,
                )
                for row in csv.DictReader(file)
            ]
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise InputError(path, f"not a log ({reason(error)})", "Delete it to report without it") from None
