"""What is said while something runs, and the progress of long work: a bar on a terminal, and elsewhere a line on
stderr every ten seconds.

The lines come from a thread, so that they also come in the middle of a step that takes long. Within `quiet` nothing
is printed, and what the user has to know is a warning of Python's. Within `silent` not even that: of several processes
that train together, the first one speaks.
"""

import contextlib
import contextvars
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

# from one line to the next
SECONDS = 10.0
# of this thread, and of those that get a copy of its context
_is_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("quiet", default=False)
_is_silent: contextvars.ContextVar[bool] = contextvars.ContextVar("silent", default=False)


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Prints nothing and shows no progress while the block runs, in this thread; does nothing unless that is wanted."""
    token = _is_quiet.set(wanted or _is_quiet.get())
    try:
        yield
    finally:
        _is_quiet.reset(token)


@contextlib.contextmanager
def silent(wanted: bool = True) -> Iterator[None]:
    """Says nothing at all while the block runs, as another process says it; does nothing unless that is wanted."""
    token = _is_silent.set(wanted or _is_silent.get())
    try:
        yield
    finally:
        _is_silent.reset(token)


def _prints() -> bool:
    return not (_is_quiet.get() or _is_silent.get())


def say(text: str) -> None:
    """Prints a line on stdout."""
    if _prints():
        print(text, flush=True)


def warn(text: str) -> None:
    """Prints a warning on stderr."""
    if _prints():
        print(f"warning: {text}", file=sys.stderr)
    else:
        _warn_by_python(text)


def note(text: str) -> None:
    """Prints a line about something unexpected on stdout, above the bars of a terminal."""
    if _prints():
        tqdm.write(text)
    else:
        _warn_by_python(text)


def _warn_by_python(text: str) -> None:
    """Warns about the line of the program that called this package, unless another process does."""
    if _is_silent.get():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("vnet_fast."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)


def shows_bar() -> bool:
    """Whether progress is a bar on a terminal, and not lines."""
    return _prints() and sys.stderr.isatty()


@dataclass
class Work:
    """Work that goes on, perhaps within other work.

    Args:
        description: what is done; empty within other work that says it.
        total: number of steps, or None if it is not known.
        unit: what a step is, in the plural; empty for work without steps.
        done: steps that are done.
    """

    description: str
    total: int | None
    unit: str
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        if not self.unit:
            return self.description
        count = str(self.done) if self.total is None else f"{self.done} of {self.total}"
        return f"{self.description}{': ' if self.description else ''}{count} {self.unit}"


class _Lines:
    """The thread that prints the lines; it runs while there is any work."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.works: list[Work] = []
        self.ended: threading.Event | None = None
        self.last = time.monotonic()

    def begin(self, work: Work) -> None:
        with self.lock:
            self.works.append(work)
            if self.ended is None:
                self.last, self.ended = work.began, threading.Event()
                threading.Thread(target=self._print, args=(self.ended,), daemon=True).start()

    def end(self, work: Work) -> None:
        with self.lock:
            self.works = [other for other in self.works if other is not work]
            if not self.works and self.ended is not None:
                self.ended.set()
                self.ended = None

    def _print(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.0, self.last + SECONDS - time.monotonic())):
            with self.lock:
                works, now = list(self.works), time.monotonic()
            if works and now - self.last >= SECONDS:
                self.last = now
                spent = int(now - works[0].began)
                print(f"{', '.join(map(str, works))}, {spent // 60}:{spent % 60:02d}", file=sys.stderr, flush=True)


_lines = _Lines()


def said() -> None:
    """Tells that a line about the work was printed elsewhere, so that the next one is due in ten seconds."""
    _lines.last = time.monotonic()


@contextlib.contextmanager
def working(description: str, total: int | None = None, unit: str = "", done: int = 0) -> Iterator[Work]:
    """Prints lines about work while the block runs, unless there is a terminal.

    Args:
        description: what is done.
        total: number of steps, or None.
        unit: what a step is, in the plural; empty for work without steps.
        done: steps that are done already.

    Yields:
        the Work, whose `done` the block increases.
    """
    work = Work(description, total, unit, done)
    if not _prints() or shows_bar():
        yield work
        return
    _lines.begin(work)
    try:
        yield work
    finally:
        _lines.end(work)


def track(items: Iterable[T], description: str, unit: str, total: int | None = None) -> Iterator[T]:
    """Iterates with a progress bar, or with lines where there is no terminal.

    Args:
        items: what is iterated.
        description: what is done.
        unit: what an item is, in the plural.
        total: number of items; None takes it from `items`, if they have a length.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with working(description, total, unit) as work:
        bar = tqdm(items, description, total, leave=False, unit=f" {unit}", disable=not shows_bar())
        for item in bar:
            yield item
            work.done += 1
