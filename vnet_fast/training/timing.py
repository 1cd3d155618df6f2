"""How long a run takes: its first iterations are timed, and from a number of minutes follows that of all iterations."""

import math
import time
from collections.abc import Callable

import torch

from vnet_fast.accelerators import synchronize
from vnet_fast.command_line import MAX_INT
from vnet_fast.distributed import Processes
from vnet_fast.run.configuration import Config
from vnet_fast.run.recipes import PAPER

# of timing, unless that is more than a share of the run's minutes
SECONDS, SHARE = 5.0, 0.05
# of the run's minutes, which a validation of all cases may take
VALIDATION_SHARE = 0.1
# iterations that are timed at least, however long they take
TIMED = 3
# before them memory, libraries and caches are set up; on a GPU, a graph is captured after three
UNTIMED, UNTIMED_ON_GPU = 2, 6
# a run that takes longer is told of the other recipe
LONG = 3600.0
# of the minutes, from which on they do not suffice
TOO_LONG = 1.5


class Timing:
    """Times the first iterations of a run, as many as take a few seconds.

    Args:
        config: of the run.
        device: where they run. It is waited for twice.
        processes: that train together, of which the first one's time counts.
        intervals: iterations from one validation, and from one checkpoint, to the next, in a run of so many iterations.

    Attributes:
        validation_seconds, save_seconds: of a validation and of a checkpoint, if they are known.
    """

    def __init__(
        self,
        config: Config,
        device: torch.device,
        processes: Processes,
        intervals: Callable[[int], tuple[int, int]],
    ) -> None:
        self.started = time.monotonic()
        self.config, self.device, self.processes, self.intervals = config, device, processes, intervals
        self.validation_seconds, self.save_seconds = 0.0, 0.0
        minutes = config.minutes
        self.seconds = SECONDS if minutes is None else min(SECONDS, SHARE * 60 * minutes)
        self.untimed = UNTIMED_ON_GPU if device.type == "cuda" else UNTIMED
        self.count, self.began, self.each = 0, 0.0, 0.0

    def add(self) -> bool:
        """Notes that an iteration was made; returns whether that was the last one to be timed."""
        self.count += 1
        if self.count == self.untimed:
            self.began = self._now()
        timed = self.count - self.untimed
        is_enough = timed >= TIMED and time.monotonic() - self.began >= self.seconds
        if not self.processes.first(is_enough):
            return False
        self.each = (self._now() - self.began) / timed
        return True

    def _now(self) -> float:
        synchronize(self.device)
        return time.monotonic()

    def affordable(self, cases: int, seconds: float) -> int:
        """On how many cases the run can validate, at least one, and notes how long that takes.

        Args:
            cases: that are held out.
            seconds: of a validation of all.
        """
        count, budget = cases, VALIDATION_SHARE * 60 * (self.config.minutes or 0.0)
        # a number that is given is what the user wants
        if seconds > budget and self.config.val_cases is None:
            count = max(1, int(cases * budget / seconds))
        count = self.processes.first(count)
        # each process takes a share of the cases
        of_process, of_all = (math.ceil(number / self.processes.count) for number in (count, cases))
        self.validation_seconds = seconds * of_process / of_all
        return count

    def iterations(self, done: int) -> int:
        """The most iterations of the run, those that are done included, that fit in its minutes.

        It is at least one more than are done, with which the last validation is logged.
        """
        seconds = 60 * (self.config.minutes or 0.0) - (time.monotonic() - self.started)
        low, high = done + 1, min(MAX_INT, done + 1 + int(max(0.0, seconds) / self.each))
        while low < high:
            middle = (low + high + 1) // 2
            if (middle - done) * self.each + self._seconds_beside(middle) <= seconds:
                low = middle
            else:
                high = middle - 1
        return self.processes.first(low)

    def _seconds_beside(self, iterations: int) -> float:
        """Of validations and checkpoints; after each validation, the best network is saved too."""
        validations, saves = (-(-iterations // every) for every in self.intervals(iterations))
        return validations * (self.validation_seconds + self.save_seconds) + saves * self.save_seconds

    def plan(self, iterations: int) -> str:
        """A line about a run of so many iterations."""
        minutes, seconds = self.config.minutes, iterations * self.each
        line = f"planned: {iterations} iterations of {self.each:.3g} s each, "
        if minutes is not None:
            validations = -(-iterations // self.intervals(iterations)[0])
            line += f"which with {validations} validation{'' if validations == 1 else 's'} take "
            needed = seconds + self._seconds_beside(iterations)
            # at least one more is made than were timed
            is_too_long = needed > TOO_LONG * 60 * minutes
            return line + (f"{duration(needed)}, more than " if is_too_long else "") + f"{minutes:g} minutes"
        is_slow = self.config.recipe == PAPER and self.config.data is not None and seconds > LONG
        sooner = "; --recipe fast --minutes M learns sooner" if is_slow else ""
        return line + f"which take {duration(seconds)}{sooner}"


def duration(seconds: float) -> str:
    """As in `40 seconds`, `12 minutes`, `3.5 hours` and `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.3g} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
