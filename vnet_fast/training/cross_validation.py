"""Cross-validation: one run per fold, and the result over all cases."""

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from vnet_fast.data.folds import check_disjoint, folds_of
from vnet_fast.devices import find_device, free_memory
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.progress import say
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import CONFIG_FILE, FREE_ON_RESUME, Config, stored_config
from vnet_fast.run.fold_options import ALL
from vnet_fast.run.folder import (
    BEST,
    SUMMARY,
    finished_at,
    fold_folder,
    has_ended,
    holds_run,
    is_measured,
    read_summary,
    resume_hint,
    write_config,
    write_summary,
)
from vnet_fast.text_table import format_table
from vnet_fast.training.signals import restored_handlers
from vnet_fast.training.summary import dice_entries
from vnet_fast.versions import versions

# the two validations of a run in its `summary.json`: on the volumes' own grids, and on the network's grid
VALIDATIONS = ("val_dice", "network_grid_dice")
# settings that differ between the folds
OF_A_FOLD = {"fold", "output", "resume"}


def cross_validate(config: Config, train_run: Callable[[Config, str], int]) -> int:
    """Trains the folds that are not finished, one after the other, and collects their results.

    Args:
        config: of the cross-validation, with `fold` ALL. Its output holds each fold's run in fold0, fold1, …; some
            may be there already.
        train_run: trains one run. It is called with the run's Config and the output, and returns an exit code.

    Returns:
        exit code: of the fold that a signal stopped, else 0.

    Raises:
        InputError, InputErrors: if a fold can't be trained or resumed, or the output holds another run.
    """
    if Processes().several:
        remedy = "Give each fold's number and --output RUN/foldN to torchrun; then, without it, all and --output RUN"
        raise InputError("--fold", f"{ALL} under torchrun", remedy)
    output = Path(config.output)
    check_output(output, config)
    runs = [fold_config(config, fold) for fold in range(config.folds)]
    if config.split and not all(_is_finished(run) for run in runs):
        _check_split(config.split, runs)
    for fold, run in enumerate(runs):
        if _is_finished(run):
            say(f"fold {fold}: finished at iteration {finished_at(run.output)}, {run.output}")
            continue
        say(f"fold {fold} of {config.folds}:")
        try:
            with restored_handlers():
                code = train_run(run, config.output)
        except KeyboardInterrupt:
            say(f"stopped in fold {fold}. {resume_hint(config.output)}")
            raise
        if holds_run(run.output):
            # written only now, so that bad data leaves nothing, and whatever there is can be resumed
            write_config(output, config)
        if code:
            return code
        free_memory(find_device(config.device))
    write_config(output, config)
    collect(output, config)
    return 0


def _is_finished(run: Config) -> bool:
    # a fold without its last checkpoint can't be resumed, and is not trained anew over its result
    has_result = is_measured(run.output) or not holds_run(run.output)
    return has_result and has_ended(run.output, run.iterations, run.patience)


def _check_split(split: str, runs: Sequence[Config]) -> None:
    """Raises an InputError unless the folds of a split hold out different cases, and are those that were trained."""
    check_disjoint(split)
    for number, (fold, run) in enumerate(zip(folds_of(split, len(runs)), runs, strict=True)):
        best = Path(run.output) / BEST
        if not best.exists():
            continue
        content = checkpoint.load(best)
        if (set(content.get("training", ())), set(content["validation"])) != (fold.training, fold.validation):
            cause = f"was trained on other cases than those of fold {number} in {split}"
            raise InputError(run.output, cause, "Restore the split, or delete that fold to train it again")


def check_output(output: Path, config: Config) -> None:
    """Raises an InputError unless a folder is free, or of a cross-validation with the same settings."""
    if holds_run(output):
        cause = "holds a run of one fold"
        raise InputError(output, cause, "Choose another --output, or --resume that run without --fold")
    if (output / CONFIG_FILE).exists():
        check_same(output, stored_config(output), replace(config, fold=ALL))


def fold_config(config: Config, fold: int) -> Config:
    """The Config of one fold's run, which resumes a run that is there already."""
    folder = fold_folder(config.output, fold)
    own = replace(config, fold=fold, output=str(folder), resume=None)
    if config.minutes is not None and (holds_run(folder) or is_measured(folder)):
        # each fold has timed its own iterations and validation
        timed = stored_config(folder)
        own = replace(own, iterations=timed.iterations)
        if config.val_cases is None:
            own = replace(own, val_cases=timed.val_cases)
        if timed.minutes is None:
            # one that was resumed by itself, with more iterations
            own = replace(own, minutes=None)
    if not holds_run(folder):
        return own
    check_same(folder, stored_config(folder), own)
    done = finished_at(folder) or 0
    if done > own.iterations:
        raise InputError(folder, f"is at iteration {done} of {own.iterations}", "Give more --iterations")
    return replace(own, resume=str(folder))


def check_same(folder: Path, stored: Config, config: Config) -> None:
    """Raises an InputError unless a run with the stored Config can be resumed with another one."""
    if (config.split is None) != (stored.split is None):
        cause = "its folds were drawn" if stored.split is None else f"its folds are those of {stored.split}"
        remedy = "Leave --split out" if stored.split is None else "Give them with --split"
        raise InputError(folder, cause, f"{remedy}, or choose another --output")
    for name in (field.name for field in fields(config)):
        if name in FREE_ON_RESUME | OF_A_FOLD - {"fold"}:
            continue
        ours, theirs = getattr(config, name), getattr(stored, name)
        if ours != theirs:
            cause = f"its --{name.replace('_', '-')} is {_as_given(theirs)}, not {_as_given(ours)}"
            raise InputError(folder, cause, "Give the settings that it was started with, or choose another --output")


def _as_given(value: object) -> str:
    """A setting's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def collect(output: Path, config: Config) -> None:
    """Writes `summary.json` and predicts every case with the run that held it out; prints the result.

    Args:
        output: folder of the cross-validation, whose folds are all finished.
        config: of the cross-validation.
    """
    summary = summarise(output, config)
    write_summary(output, summary)
    say("\n".join(table(summary)))
    try:
        # imported here, because training from the cache needs no image library
        from vnet_fast.prediction.held_out import PHANTOM_FOLDER, PREDICTION_FOLDER, held_out
    except ImportError as error:
        say(f"no predictions: {error.name} is not installed")
        return
    try:
        held_out(output, config.device)
    except KeyboardInterrupt:
        say(f"stopped while predicting. {resume_hint(output)}")
        raise
    labels = config.labels or config.data or output / PHANTOM_FOLDER
    say(f"every case was predicted by the fold that did not train on it: {output / PREDICTION_FOLDER}")
    paths = (output / PREDICTION_FOLDER, labels, output / "fold")
    predictions, labels, folds = (shlex.quote(str(path)) for path in paths)
    say(
        f"evaluate with: python -m vnet_fast.evaluate --predictions {predictions} --labels {labels}"
        + (" --binary" if config.binary else "")
        + (f" --regions {shlex.join(config.regions)}" if config.regions else "")
        + (f" --ignore-label {config.ignore_label}" if config.ignore_label else "")
    )
    say(f"predict with: python -m vnet_fast.predict --checkpoint {folds}*/{BEST} --input … --output …")


def summarise(output: Path, config: Config) -> dict[str, Any]:
    """The result of all folds, the content of `summary.json`.

    Dice is that of each fold's `best.pt`: on the volumes' own grids, as `evaluate` measures it, and on the network's
    grid. The standard deviation is over all cases.

    Raises:
        InputError: if the result of a fold can't be read.
    """
    folds: list[dict[str, Any]] = []
    classes: list[str] | None = None
    cases: dict[str, dict[str, list[float]] | None] = {name: {} for name in VALIDATIONS}
    for fold in range(config.folds):
        folder = fold_folder(output, fold)
        result = read_summary(folder)
        classes = classes or result.get("classes")
        if result.get("classes") != classes:
            cause = f"has the classes {result.get('classes')}, and the folds before it {classes}"
            raise InputError(folder / SUMMARY, cause, "Delete that fold to train it again")
        try:
            for name in VALIDATIONS:
                cases[name] = _with_cases(cases[name], result[f"{name}_per_case_and_class"])
            best = {name: result[name] for name in (*VALIDATIONS, "best_iteration")}
            # where the volumes' own grids could not be measured, those that were validated
            validated = dict(result["network_grid_dice_per_case_and_class"])
            count = len(dict(result["val_dice_per_case_and_class"] or validated))
            folds.append({"fold": fold, "cases": count, "iterations": result.get("iterations"), **best})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            cause = f"not a run's result ({error})"
            raise InputError(folder / SUMMARY, cause, "Delete it, and resume that run to write it again") from None
    summary: dict[str, Any] = {}
    for name in VALIDATIONS:
        summary |= dice_entries(cases[name], name)
        per_case = (summary[f"{name}_per_case"] or {}).values()
        defined = [dice for dice in per_case if dice is not None]
        summary[f"{name}_standard_deviation"] = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
    return {
        **summary,
        "classes": classes,
        "folds": folds,
        "iterations": max((fold["iterations"] or 0 for fold in folds), default=0),
        "versions": versions(),
    }


def _with_cases(
    cases: dict[str, list[float]] | None, of_fold: dict[str, list[float | None]] | None
) -> dict[str, list[float]] | None:
    """The cases with those of another fold; None if one of the folds has no such validation."""
    if cases is None or of_fold is None:
        return None
    return cases | {
        name: [math.nan if dice is None else float(dice) for dice in values] for name, values in of_fold.items()
    }


def table(summary: dict[str, Any]) -> list[str]:
    """The result of the folds as lines of text."""
    rows = [
        (str(fold["fold"]), str(fold["cases"]), *(_number(fold[name]) for name in VALIDATIONS),
         str(fold["best_iteration"]))
        for fold in summary["folds"]
    ]  # fmt: skip
    cases = str(sum(fold["cases"] for fold in summary["folds"]))
    means = (f"{_number(summary[name])} ± {_number(summary[f'{name}_standard_deviation'])}" for name in VALIDATIONS)
    headings = ("fold", "cases", "Dice mean", "on the network's grid", "best iteration")
    return format_table([headings, *rows, ("all", cases, *means, "")], "right")


def _number(dice: float | None) -> str:
    return "-" if dice is None else f"{dice:.4f}"
