"""Trains networks, and what a finished run has left."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from vnet_fast.accelerators import ACCELERATORS
from vnet_fast.data.check import check_data
from vnet_fast.devices import use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.interface.options import PathLike, checked, signature
from vnet_fast.progress import quiet
from vnet_fast.run.configuration import Config, stored_config
from vnet_fast.run.fold_options import ALL
from vnet_fast.run.folder import LOG, best_checkpoints, holds_run, read_summary
from vnet_fast.run.log import read_log
from vnet_fast.training.signals import embedded
from vnet_fast.training.start import settle, start
from vnet_fast.training.workers import check_not_starting

# what a run sets in PyTorch is that of the whole process
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Run:
    """The folder of a training run or of a cross-validation.

    Args:
        folder: its path.
    """

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """The result, the content of `summary.json`; an `InputError` if the run is not finished."""
        return read_summary(self.folder)

    @property
    def checkpoints(self) -> list[Path]:
        """`best.pt` of the run, or of each fold of a cross-validation; an `InputError` if there is none yet."""
        return best_checkpoints(self.folder)

    @property
    def best(self) -> Path:
        """`best.pt` of the run; an `InputError` if there is none yet, or one for each fold."""
        first, *others = self.checkpoints
        if others:
            raise InputError(self.folder, "has a best.pt for each fold", "Use checkpoints, or the folder itself")
        return first

    @property
    def config(self) -> Config:
        """The settings of the run."""
        return stored_config(self.folder)

    @property
    def log(self) -> list[dict[str, Any]]:
        """A row for each iteration: its number, the loss, the learning rate, and the validation's Dice or None.

        An `InputError` if there is none yet, or one for each fold.
        """
        if not (self.folder / LOG).exists():
            if self.config.fold == ALL:
                raise InputError(self.folder, f"has a {LOG} for each fold", "Name the folder of a fold")
            raise InputError(self.folder, f"has no {LOG} yet", "Train first")
        return [row._asdict() for row in read_log(self.folder / LOG)]


class Trainer:
    """Trains a V-Net on a folder of volumes with masks, or on phantoms, as `python -m vnet_fast.train` does.

    The options are those of the command, with underscores: `Trainer(data="DIR", recipe="fast", minutes=8)`. Options
    with several values take a sequence, and those without a value True. `python -m vnet_fast.train --help` explains
    them.

    Args:
        verbose: whether to print the command's lines and show the progress. Without it, nothing is printed, and what
            the user should know is a warning of Python's.
        **options: of the command.

    Raises:
        TypeError: if there is no such option.
        InputError: if an option has a value that it can't have.
    """

    def __init__(self, *, verbose: bool = False, **options: Any) -> None:
        self.verbose, self.options = verbose, checked(Config, options, "Trainer")
        if self.options.pop("check", False):
            raise TypeError("check=True trains nothing; call Trainer(...).check()")

    @classmethod
    def resume(cls, folder: PathLike, *, verbose: bool = False, **options: Any) -> "Trainer":
        """A Trainer that goes on with the run in a folder, from its last checkpoint on.

        Args:
            folder: of the run or of the cross-validation.
            verbose: see the class.
            **options: that may change when a run is resumed, such as `iterations`.
        """
        return cls(verbose=verbose, resume=os.fspath(folder), **options)

    def run(self) -> Run:
        """Trains the network, or one for each fold, and measures it on the cases that are held out.

        Ctrl-C stores the run after the current iteration and raises the KeyboardInterrupt then, and so does SIGTERM
        before the program's own handler gets it. A second Ctrl-C interrupts at once. Threads, random numbers and other
        settings of PyTorch are afterwards as they were before. In a process one run trains at a time; a run of another
        thread waits until it has ended.

        Returns:
            the finished run.

        Raises:
            InputError, InputErrors: if options contradict each other, or data, folder, device or checkpoint can't be
                used.
            KeyboardInterrupt: if it was interrupted; `Trainer.resume` goes on.
        """
        check_not_starting()
        with quiet(not self.verbose), embedded() as received, _kept_settings():
            config = settle(self.options)
            start(config)
        if received.number is not None:
            _pass_on(received.number, Path(config.output))
        return Run(Path(config.output))

    def check(self) -> None:
        """Checks every case of the data without training; with `verbose`, prints a table of them.

        Raises:
            InputError, InputErrors: of all cases that can't be used.
            TypeError: if this Trainer resumes a run.
        """
        if "resume" in self.options:
            raise TypeError("Trainer.resume(...) has no check(); call Trainer(data=...).check()")
        check_not_starting()
        with quiet(not self.verbose), _kept_settings():
            check_data(settle({**self.options, "check": True}))


Trainer.__signature__ = signature(Config, Trainer)  # type: ignore[attr-defined]  # what inspect.signature looks for


def _pass_on(number: int, folder: Path) -> NoReturn:
    """Does about a signal what would have been done without the run, and raises a KeyboardInterrupt in any case."""
    if number != signal.SIGINT:
        signal.raise_signal(number)
    stored = holds_run(folder) or any(map(holds_run, folder.glob("fold*")))
    raise KeyboardInterrupt(f"Trainer.resume({str(folder)!r}).run() goes on" if stored else "nothing was stored yet")


@contextlib.contextmanager
def _kept_settings() -> Iterator[None]:
    """Lets one block run at a time, which may train; restores what training changes in PyTorch.

    The block uses all cores, keeps freed memory and computes gradients, in float32 unless it asks for less.
    """
    with _one_at_a_time, torch.inference_mode(False), torch.enable_grad(), _without_autocast(), _restored():
        try:
            torch.set_default_dtype(torch.float32)
            use_all_cores()
            keep_freed_memory()
            yield
        finally:
            keep_freed_memory(False)


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Leaves the mixed precision of the caller."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda", *ACCELERATORS):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restores settings of PyTorch."""
    threads, cudnn, dtype = torch.get_num_threads(), torch.backends.cudnn, torch.get_default_dtype()
    flags = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    with torch.random.fork_rng(list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            torch.use_deterministic_algorithms(flags[0], warn_only=flags[1])
            torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]  # a property
            cudnn.deterministic, cudnn.benchmark = of_cudnn
