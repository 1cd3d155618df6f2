"""Compares predicted masks with reference masks."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnet_fast import command_line, plotting
from vnet_fast.command_line import option, path_text, positive_int
from vnet_fast.data.labels import DESCRIPTION, described_in
from vnet_fast.errors import InputError
from vnet_fast.evaluation import tables
from vnet_fast.evaluation.comparison import Comparison
from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.figures import DISTRIBUTION, draw, find_case_images
from vnet_fast.evaluation.score import read_observer
from vnet_fast.files import make_folder, replacing, write_text
from vnet_fast.interface.evaluation import ClassSettings, Sets, Table, measure
from vnet_fast.io import formats


@dataclass(frozen=True)
class Config:
    """Measure predicted masks against reference masks: Dice, surface distances and volumes of each case and class.
    Several folders of predictions are compared with a paired test."""

    predictions: tuple[str, ...] = option(
        None, "folder of predicted masks, or several with the same cases; or one file", type=path_text, nargs="+",
        action="extend", metavar="DIR", required=True,
    )  # fmt: skip
    labels: str = option(
        None, "folder of reference masks, with or without their volumes; or one file", type=path_text, metavar="DIR",
        required=True,
    )  # fmt: skip
    output: str | None = option(None, "write all numbers to this JSON file", type=path_text, metavar="FILE")
    csv: str | None = option(
        None, "write a row for each case, class and region to this CSV file", type=path_text, metavar="FILE"
    )
    figures: str | None = option(
        None, "draw the distribution of Dice and the best, median and worst case into this folder", type=path_text,
        metavar="DIR",
    )  # fmt: skip
    images: str | None = option(
        None, "folder of the volumes for --figures, if they are not beside the reference masks", type=path_text,
        metavar="DIR",
    )  # fmt: skip
    ignore_label: int | None = option(
        None, "label of the reference masks whose voxels do not count", type=positive_int, metavar="N"
    )
    binary: bool = option(False, "treat all labels as one foreground class", action="store_true")
    regions: tuple[str, ...] | None = option(
        None, "measure regions of several labels, each as NAME: LABEL LABEL; without any, also measure base and apex, "
        "the cranial and caudal thirds of the reference's slices", nargs="*", metavar="REGION",
    )  # fmt: skip
    observer: str | None = option(
        None, "TOML file with a second observer's means, for the challenge's score", type=path_text, metavar="FILE"
    )
    calibration: bool = option(
        False, "also measure the calibration of the probabilities that predict --probabilities wrote beside the masks",
        action="store_true",
    )  # fmt: skip

    @property
    def classes(self) -> ClassSettings:
        """What the labels stand for."""
        return ClassSettings(self.labels, self.binary, self.regions, self.ignore_label)

    def check(self) -> None:
        """Checks the options before anything is measured; raises an InputError."""
        self.classes.check()
        if self.images and not self.figures:
            raise InputError("--images", "given without --figures", "Name the folder of the pictures too")
        if self.figures and not plotting.available():
            raise InputError("--figures", "matplotlib is not installed", "pip install 'vnet_fast[report]'")
        for path, flag in ((self.output, "--output"), (self.csv, "--csv")):
            if path and not Path(path).absolute().parent.is_dir():
                raise InputError(path, "can't be written (no such folder)", f"Choose another {flag}")
            if path and Path(path).is_dir():
                raise InputError(path, "can't be written (it is a folder)", f"Choose another {flag}")
            if path:
                _check_writable(path, flag)
        if self.output and self.csv and Path(self.output).resolve() == Path(self.csv).resolve():
            raise InputError("--csv", "is the file of --output", "Choose another --csv")
        if self.figures and len(self.predictions) > plotting.MAX_SERIES:
            cause = f"shows at most {plotting.MAX_SERIES} sets of predictions; got {len(self.predictions)}"
            raise InputError("--figures", cause, "Draw fewer of them together")


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    config.check()
    observer = read_observer(config.observer) if config.observer else None
    # before anything is measured or written
    sets = Sets.find(config.predictions, config.labels)
    images = {}
    if config.figures:
        images = find_case_images(config.labels, config.images, [name for name, _, _ in sets.pairs[0]])
    _check_nothing_is_replaced(config, sets, images)
    if config.figures:
        make_folder(config.figures, "Choose another --figures")
        _check_writable(Path(config.figures) / DISTRIBUTION, "--figures")
    table = Table(measure(sets, config.classes, observer, config.calibration))
    # before anything is printed, which may fail
    _write(config, table.evaluations, table.comparisons)
    print(table)
    for folder, name, others in zip(config.predictions, sets.names, sets.unpredicted, strict=True):
        # who names a file wants no other
        if others and Path(folder).is_dir():
            several = f" in {name}" if len(sets.names) > 1 else ""
            print(f"{len(others)} more reference masks have no prediction{several}")
    # last, because the volumes of pictures are only read now
    if config.figures:
        draw(config.figures, table.evaluations, sets.pairs, images, table.comparisons, config.binary)
    return 0


class _AbandonedError(Exception):
    """Ends the writing of a file that only shows whether it can be written."""


def _check_writable(path: str | Path, flag: str) -> None:
    """Raises an InputError if a file can't be written, which is left as it is."""
    try:
        with contextlib.suppress(_AbandonedError), replacing(path, follows=True):
            raise _AbandonedError
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", f"Choose another {flag}") from None


def _check_nothing_is_replaced(config: Config, sets: Sets, images: Mapping[str, Path]) -> None:
    """Raises an InputError if a result would replace a file that is read, or any volume."""
    for path, flag in ((config.output, "--output"), (config.csv, "--csv")):
        if not path or not os.path.exists(path):
            continue
        if formats.suffix_of(path) or formats.is_meant_as_dicom(Path(path)):
            raise InputError(path, "would replace a volume or a mask", f"Choose another {flag}")
        read = [path for pairs in sets.pairs for _, *masks in pairs for path in masks]
        read += [*itertools.chain(*sets.unpredicted), *images.values()]
        others = [Path(config.observer)] if config.observer else []
        others += [described_in(config.labels) / DESCRIPTION]
        # unlike Path.resolve, realpath accepts a loop of links
        if os.path.realpath(path) in {os.path.realpath(file) for file in (*others, *_files_of(read))}:
            raise InputError(path, "would replace a file that is read", f"Choose another {flag}")


def _files_of(volumes: Iterable[Path]) -> Iterator[Path]:
    """The files of volumes and masks."""
    for path in volumes:
        try:
            yield from formats.files_of(path)
        except InputError:
            # a damaged header is reported when the volume is read
            yield path


def _write(config: Config, evaluations: Sequence[Evaluation], comparisons: Sequence[Comparison]) -> None:
    if config.output:
        write_text(config.output, tables.json_text(evaluations, comparisons), "Choose another --output", follows=True)
    if config.csv:
        write_text(config.csv, tables.csv_text(evaluations), "Choose another --csv", follows=True)


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.evaluate"))
