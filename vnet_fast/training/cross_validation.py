"""Cross-validation: a run for each fold, and the result over all cases."""

import contextlib
import json
import shlex
import signal
from dataclasses import fields, replace
from pathlib import Path

import numpy as np

from vnet_fast.devices import find_device, free
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.run.configuration import ALL, FREE_ON_RESUME, stored_config
from vnet_fast.run.folder import BEST, RESUME_HINT, finished_at, fold_folder, holds_run, write_config
from vnet_fast.versions import versions

# what is each fold's own
OF_A_FOLD = {"fold", "output", "resume"}


def cross_validate(config, train_run):
    """Trains every fold that is not finished, one after the other, and collects their results.

    Args:
        config: the Config, its `fold` ALL; its output holds each fold's run in fold0, fold1, …, where
            some may lie already.
        train_run: trains one run, called with its Config and the output; returns an exit code.

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
    for fold, run in enumerate(runs):
        if finished_at(run.output) == config.iterations:
            print(f"fold {fold}: finished at iteration {config.iterations}, {run.output}")
            continue
        print(f"fold {fold} of {config.folds}:", flush=True)
        try:
            with _kept_handlers():
                code = train_run(run, config.output)
        except KeyboardInterrupt:
            print(f"stopped in fold {fold}. {RESUME_HINT} {config.output}")
            raise
        if holds_run(run.output):
            # so that the hint to resume holds, and bad data leaves nothing
            write_config(output, config)
        if code:
            return code
        free(find_device(config.device))
    write_config(output, config)
    collect(output, config)
    return 0


def check_output(output, config):
    """Makes sure that a folder is free, or of a cross-validation with the same settings."""
    if holds_run(output):
        cause = "holds a run of one fold"
        raise InputError(output, cause, "Choose another --output, or --resume that run without --fold")
    if (output / "config.json").exists():
        check_same(output, stored_config(output), replace(config, fold=ALL))


def fold_config(config, fold):
    """The Config of one fold's run: to resume where one lies."""
    folder = fold_folder(config.output, fold)
    own = replace(config, fold=fold, output=str(folder), resume=None)
    if not holds_run(folder):
        return own
    check_same(folder, stored_config(folder), own)
    done = finished_at(folder) or 0
    if done > config.iterations:
        raise InputError(folder, f"is at iteration {done} of {config.iterations}", "Give more --iterations")
    return replace(own, resume=str(folder))


def check_same(folder, stored, config):
    """Makes sure that a stored Config is one that a run with another may go on from."""
    for name in (field.name for field in fields(config)):
        if name in FREE_ON_RESUME | OF_A_FOLD - {"fold"}:
            continue
        ours, theirs = getattr(config, name), getattr(stored, name)
        if ours != theirs:
            cause = f"its --{name.replace('_', '-')} is {words(theirs)}, not {words(ours)}"
            raise InputError(folder, cause, "Give the settings that it was begun with, or choose another --output")


def words(value):
    """A setting's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@contextlib.contextmanager
def _kept_handlers():
    """Between two folds signals do what they did before the first."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def collect(output, config):
    """Writes `summary.json` and the predictions of all cases, each by the run that held it out, and
    says the result.

    Args:
        output: folder of the cross-validation, all its folds finished.
        config: the Config.
    """
    summary = summarise(output, config)
    write_text(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    print("\n".join(table(summary)))
    try:
        # imported here: training from the cache needs no image library
        from vnet_fast.prediction.held_out import PHANTOM_FOLDER, PREDICTION_FOLDER, held_out
    except ImportError as error:
        print(f"no predictions: {error.name} is not installed")
        return
    try:
        held_out(output, config.device)
    except KeyboardInterrupt:
        print(f"stopped while predicting. {RESUME_HINT} {output}")
        raise
    labels = config.labels or config.data or output / PHANTOM_FOLDER
    print(f"every case predicted by the fold that did not train on it: {output / PREDICTION_FOLDER}")
    predictions, labels, folds = (
        shlex.quote(str(path)) for path in (output / PREDICTION_FOLDER, labels, output / "fold")
    )
    print(
        f"evaluate with: python -m vnet_fast.evaluate --predictions {predictions} --labels {labels}"
        + (" --binary" if config.binary else "")
    )
    print(f"predict with: python -m vnet_fast.predict --checkpoint {folds}*/{BEST} --input … --output …")


def summarise(output, config):
    """The result of all folds, as `summary.json` keeps it.

    Dice is that of validation, on the network's grid, at each fold's best iteration; the mean and the
    standard deviation are over all cases.
    """
    folds, per_case, per_class = [], {}, []
    for fold in range(config.folds):
        path = fold_folder(output, fold) / "summary.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            cases = found["val_dice_per_case"]
            folds.append(
                {"fold": fold, "cases": len(cases), **{name: found[name] for name in ("val_dice", "best_iteration")}}
            )
            per_case.update(cases)
            per_class += [found["val_dice_per_class"]] * len(cases)
        except (OSError, ValueError, KeyError, TypeError) as error:
            cause = f"not a run's result ({error})"
            raise InputError(path, cause, "Take it away, and resume that fold's run to make it again") from None
    values = list(per_case.values())
    return {
        "val_dice": float(np.mean(values)),
        "val_dice_standard_deviation": float(np.std(values, ddof=1)),
        "val_dice_per_case": per_case,
        "val_dice_per_class": np.mean(per_class, axis=0).tolist(),
        "folds": folds,
        "iterations": config.iterations,
        "versions": versions(),
    }


def table(summary):
    """The result of the folds as lines of text."""
    rows = [
        (str(fold["fold"]), str(fold["cases"]), f"{fold['val_dice']:.4f}", str(fold["best_iteration"]))
        for fold in summary["folds"]
    ]
    cases = str(len(summary["val_dice_per_case"]))
    whole = f"{summary['val_dice']:.4f} ± {summary['val_dice_standard_deviation']:.4f}"
    rows = [("fold", "cases", "Dice mean", "best iteration"), *rows, ("all", cases, whole, "")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{word:>{width}}" for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
