"""Compares predicted masks with reference masks."""

from dataclasses import dataclass
from pathlib import Path

from vnet_fast import command_line, plotting
from vnet_fast.command_line import option, path_text
from vnet_fast.data import cases
from vnet_fast.errors import InputError
from vnet_fast.evaluation import tables
from vnet_fast.evaluation.comparison import check_same_cases, compare_pairs, require_scipy
from vnet_fast.evaluation.evaluation import evaluate, names_of
from vnet_fast.evaluation.figures import draw, images_of
from vnet_fast.evaluation.score import read_observer
from vnet_fast.files import make_folder, write_text


@dataclass(frozen=True)
class Config:
    """Dice, surface distances and volumes of predicted masks, for each case and class; of several
    folders of predictions side by side, with a paired test."""

    predictions: tuple = option(
        None, "folder of predicted masks, or several of the same cases", type=path_text, nargs="+", metavar="DIR",
        required=True,
    )  # fmt: skip
    labels: str = option(
        None, "folder of reference masks, alone or beside their volumes", type=path_text, metavar="DIR", required=True
    )
    output: str = option(None, "writes all numbers as JSON", type=path_text, metavar="FILE")
    csv: str = option(None, "writes the cases as CSV, a row for each case, class and region", type=path_text,
                      metavar="FILE")  # fmt: skip
    figures: str = option(None, "draws the distributions, and the best, median and worst case", type=path_text,
                          metavar="DIR")  # fmt: skip
    images: str = option(None, "folder of the volumes for --figures, if they are not with the reference masks",
                         type=path_text, metavar="DIR")  # fmt: skip
    binary: bool = option(False, "all labels are one foreground", action="store_true")
    regions: bool = option(
        False, "also of base and apex, the cranial and caudal thirds of the reference's slices", action="store_true"
    )
    observer: str = option(
        None, "TOML file of a second observer's means, for the challenge's score", type=path_text, metavar="FILE"
    )


def check(config):
    """What can be known to fail before anything is measured; an `InputError`."""
    if len({Path(folder).resolve() for folder in config.predictions}) < len(config.predictions):
        raise InputError("--predictions", "names a folder twice", "Name each once")
    if len(config.predictions) > 1:
        require_scipy("--predictions")
    if config.images and not config.figures:
        raise InputError("--images", "given without --figures", "Name the folder of the pictures too")
    if config.figures and not plotting.available():
        raise InputError("--figures", "matplotlib is not installed", "pip install 'vnet_fast[report]'")
    for path, flag in ((config.output, "--output"), (config.csv, "--csv")):
        if path and not Path(path).absolute().parent.is_dir():
            raise InputError(path, "can't be written (no such folder)", f"Choose another {flag}")
        if path and Path(path).is_dir():
            raise InputError(path, "can't be written (it is a folder)", f"Choose another {flag}")
    if config.output and config.csv and Path(config.output).resolve() == Path(config.csv).resolve():
        raise InputError("--csv", "is the file of --output", "Choose another --csv")
    if config.figures and len(config.predictions) > plotting.MOST:
        cause = f"shows {plotting.MOST} sets of predictions at most; got {len(config.predictions)}"
        raise InputError("--figures", cause, "Draw fewer of them together")


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    check(config)
    observer = read_observer(config.observer) if config.observer else None
    names = names_of(config.predictions)
    found = [cases.pair_masks(folder, config.labels) for folder in config.predictions]
    pairs = [each for each, _ in found]
    # before anything is measured or written
    check_same_cases({name: [case for case, _, _ in each] for name, each in zip(names, pairs, strict=True)})
    if config.figures:
        images_of(config.labels, config.images)
        make_folder(config.figures, "Choose another --figures")
    evaluations = evaluate(names, pairs, config.binary, config.regions, observer)
    comparisons = compare_pairs(evaluations) if len(evaluations) > 1 else []
    print("\n".join(tables.text(evaluations, comparisons)))
    for (_, unpredicted), name in zip(found, names, strict=True):
        if unpredicted:
            print(f"{unpredicted} more reference masks have no prediction" + (f" in {name}" if len(names) > 1 else ""))
    if config.output:
        write_text(config.output, tables.json_text(evaluations, comparisons), "Choose another --output")
    if config.csv:
        write_text(config.csv, tables.csv_text(evaluations), "Choose another --csv")
    if config.figures:
        draw(config, evaluations, pairs, comparisons)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.evaluate"))
