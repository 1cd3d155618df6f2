"""Changes what the program has stored, at random, and reads it, in a process of its own.

    python -m tests.run.fuzz_stored KIND[,KIND…] SEED COUNT FOLDER [trusting]

A kind is `checkpoint`, `cache`, `config` or `dataset`.

Half of the changes are of bytes, half of what the bytes mean: other types, huge numbers, wrong lengths, missing names.
Of a checkpoint and of an entry of the cache, the checksums and the digest are made right again in many of the latter.

Prints a line for each change: kind and number, outcome (`refused` with one line, `original`, `described` if what is
read is what the file says, `misread`, `memory`, or the name of an exception), and the message. The last line has the
bytes that the process has taken at most. With `trusting`, files are read without this program's checks: this shows that
a misread is detected.
"""

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from tests.peak_memory import peak_bytes
from tests.run import stored_mutants
from tests.volumes import write_case
from vnet_fast import VNet
from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import find_cases
from vnet_fast.data.labels import declared_labels
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.nn.losses import DiceLoss
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config, stored_config
from vnet_fast.run.fields import OLDER_ARCHITECTURE
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step
from vnet_fast.training.stored_state import check_step_state

SECONDS_A_CASE = 20
MAX_BYTES = 2 << 30
LONGEST_LINE = 1000
CPU = torch.device("cpu")


class Checkpoint:
    """A checkpoint as training writes it."""

    name = "last.pt"

    def __init__(self, folder):
        torch.manual_seed(0)
        self.folder, model = folder, VNet(base_channels=1)
        self.step = Step(model, DiceLoss.paper(), make_optimizer(model, "sgd", 1e-3, 0.9, 1e-4), ema=0.9)
        state = {
            **self.step.state_dict(), "seconds": 1.5, "iteration": 7, "batch": 2, "config": asdict(Config(output="r")),
            "best": {"iteration": 4, "dice": 0.5, "per_case": {"A": [0.5]}}, "spacing": [1.0, 1.0, 2.0],
            "volume": [16, 16, 16], "training": ["B", "C"], "validation": ["A"],
        }  # fmt: skip
        with self.step.averaged():
            checkpoint.save(folder / self.name, model, **state)

    def read(self):
        path = self.folder / self.name
        content = checkpoint.load(path)
        checkpoint.grid_of(content, path)
        checkpoint.build_model(content, path, CPU)
        if {"optimizer", "scaler"} <= content.keys():
            check_step_state(content, self.step, path)
        return content

    def read_trusting(self):
        return torch.load(self.folder / self.name, weights_only=True)

    def described(self):
        # after this program has accepted it
        content = self.read_trusting()
        content["architecture"] = OLDER_ARCHITECTURE | content["architecture"]
        return content

    mutate = staticmethod(stored_mutants.mutate_checkpoint)


class Entry:
    """An entry of the cache, which is read by preparing its case."""

    name = "entry"

    def __init__(self, folder):
        (folder / "data").mkdir()
        write_case(folder / "data", "A", labels=2)
        self.cases = find_cases(folder / "data")
        self.cache = Cache(folder / "cache", (1.5, 1.5, 2.0), (16, 16, 16))
        (case,) = self.cache.load(self.cases)
        self.original = stored_mutants.arrays_of(case)
        (entry,) = (folder / "cache").iterdir()
        self.name = f"cache/{entry.name}"
        self.entry = entry

    def read(self):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            (case,) = self.cache.load(self.cases)
        found, lines = stored_mutants.arrays_of(case), printed.getvalue().splitlines()
        if lines:
            assert len(lines) == 1
            assert stored_mutants.is_equal(found, self.original)
            raise InputError(self.entry, lines[0], "")
        return found

    def read_trusting(self):
        return self.described()

    def described(self):
        return stored_mutants.load_arrays(self.entry)

    mutate = staticmethod(stored_mutants.mutate_entry)


class Settings:
    """The settings of a run."""

    name = "config.json"

    def __init__(self, folder):
        self.folder = folder
        config = Config(data="data", output="runs/a", amp="off", val_every=80)
        (folder / self.name).write_text(json.dumps(asdict(config), indent=2))

    def read(self):
        return _listed(asdict(stored_config(self.folder)))

    def read_trusting(self):
        return self.described()

    def described(self):
        # a file without patches is of a run from before there were any
        defaults = _listed(asdict(Config(patches="off")))
        stored = json.loads((self.folder / self.name).read_bytes())
        return defaults | {name: value for name, value in stored.items() if name in defaults}

    mutate = staticmethod(stored_mutants.mutate_json)


class Description:
    """The description of a data set."""

    name = "dataset.json"

    def __init__(self, folder):
        self.folder = folder
        labels = {"background": 0, "gland": 1, "zone": 2, "cyst": 3}
        content = {"name": "x", "labels": labels, "numTraining": 2, "training": [{"image": "a", "label": "b"}]}
        (folder / self.name).write_text(json.dumps(content, indent=1))

    def read(self):
        return declared_labels(self.folder)

    def read_trusting(self):
        return self.described()

    def described(self):
        if not (self.folder / self.name).exists():
            return None
        labels = json.loads((self.folder / self.name).read_bytes()).get("labels")
        pairs = ((key, value) if key.isdigit() and isinstance(value, str) else (value, key)
                 for key, value in (labels or {}).items())  # fmt: skip
        # the label to ignore is none of the classes
        return {int(label): name for label, name in pairs if name.lower() != "ignore"} or None

    mutate = staticmethod(stored_mutants.mutate_json)


KINDS = {"checkpoint": Checkpoint, "cache": Entry, "config": Settings, "dataset": Description}


def _listed(settings):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def is_short_of_memory(error):
    """Whether an error, or what it stands for, is of a lack of memory."""
    cause = error.__context__
    return isinstance(error, MemoryError) or isinstance(cause, MemoryError) or "allocate memory" in str(cause)


def read_changed(target, original, is_checked, trusting):
    """Reads what has been changed: (outcome, message)."""
    try:
        found = target.read_trusting() if trusting else target.read()
    except (InputError, InputErrors) as error:
        lines = str(error).splitlines()
        is_line = len(lines) == 1 and len(lines[0]) < LONGEST_LINE
        return ("memory" if is_short_of_memory(error) else "refused" if is_line else "lines"), str(error)
    except Exception as error:
        return ("memory" if is_short_of_memory(error) else type(error).__name__), str(error)
    if stored_mutants.is_equal(found, original):
        return "original", ""
    # where a checksum was left as it was, no other content is acceptable
    acceptable = not is_checked and not trusting and stored_mutants.is_equal(found, target.described())
    return ("described" if acceptable else "misread"), ""


def fuzz(kind, seed, count, folder, trusting):
    """Changes and reads files of a kind."""
    target = KINDS[kind](folder)
    path = folder / target.name
    intact, original = path.read_bytes(), target.read()
    for number in range(count):
        draw = random.Random(f"{kind} {seed} {number}")
        print(kind, number, end="\t", flush=True)
        # a timer of Python's would not do: a native library that hangs holds the interpreter's lock
        faulthandler.dump_traceback_later(SECONDS_A_CASE, exit=True)
        is_checked = target.mutate(path, draw)
        if trusting and not path.is_file():
            # it would be waited for
            outcome, message = "refused", ""
        else:
            outcome, message = read_changed(target, original, is_checked, trusting)
        faulthandler.cancel_dump_traceback_later()
        print(outcome, ascii(message[:300]), sep="\t", flush=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(intact)


def main(kinds, seed, count, folder, reader=""):
    """Limits the memory, and changes and reads `count` files of each kind."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MAX_BYTES, size + MAX_BYTES))
    before = peak_bytes()
    for kind in kinds.split(","):
        own = Path(folder) / kind
        own.mkdir()
        fuzz(kind, seed, int(count), own, reader == "trusting")
    print("bytes", peak_bytes() - before, sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
