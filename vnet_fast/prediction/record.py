"""The record of which network made the predictions of a folder."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.io import formats
from vnet_fast.stored import read_object

RECORD_FILE = "made_by.json"


class Record:
    """Records which network made each complete prediction of a folder, in a file beside them.

    Args:
        folder: of the predictions.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD_FILE
        self.made: dict[str, Any] = {}
        # if the file is missing or damaged, everything is predicted again
        with contextlib.suppress(OSError, ValueError):
            self.made = read_object(self.path)

    def has(self, prediction: Path, made_by: dict[str, Any]) -> bool:
        """Whether a prediction of this name is there, with all its files, and was made by what `made_by` names."""
        file = self.path.with_name(prediction.name)
        if self.made.get(file.name) != made_by or not file.exists():
            return False
        try:
            return all(part.exists() for part in formats.files_of(file))
        except InputError:
            return False

    def drop(self, predictions: Iterable[Path]) -> None:
        """Forgets predictions; to be called before they are written again."""
        stale = self.made.keys() & {prediction.name for prediction in predictions}
        if stale:
            self._write({name: made_by for name, made_by in self.made.items() if name not in stale})

    def add(self, prediction: Path, made_by: dict[str, Any]) -> None:
        """Adds a prediction; to be called when it is written."""
        self._write({**self.made, prediction.name: made_by})

    def _write(self, made: dict[str, Any]) -> None:
        self.made = made
        write_text(self.path, json.dumps(self.made, indent=1) + "\n")
