"""The cases that a run did not train on, each with the run's prediction."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vnet_fast.data.cases import MASK_SUFFIX, Case, natural, pair_cases
from vnet_fast.data.phantom import case_seed, phantom
from vnet_fast.devices import choose_precision, device_name, find_device
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import make_folder, write_text
from vnet_fast.io import formats, writing
from vnet_fast.io.grid import Grid
from vnet_fast.prediction.networks import build_network
from vnet_fast.prediction.plan import output_suffix
from vnet_fast.prediction.segmentation import segment
from vnet_fast.prediction.task import Task
from vnet_fast.progress import say, track
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import CONFIG_FILE, Config, stored_config
from vnet_fast.run.folder import best_checkpoints
from vnet_fast.stored import read_object

PREDICTION_FOLDER, PHANTOM_FOLDER, RECORD_FILE = "predictions", "phantoms", "made_by.json"


@dataclass(frozen=True)
class HeldOut:
    """A case that a run did not train on, with the run's prediction.

    Args:
        name: of the case.
        image: the volume's file, or its folder of DICOM slices.
        reference: its mask, with the labels of the file.
        prediction: the predicted mask, on the image's own grid.
        others: the files of its other channels, if each has one of its own.
    """

    name: str
    image: Path
    reference: Path
    prediction: Path
    others: tuple[Path, ...] = ()

    @property
    def images(self) -> tuple[Path, ...]:
        """The volume's files, one for each channel."""
        return self.image, *self.others


def held_out(run: str | Path, device: str = "auto", interrupted: Callable[[], bool] = lambda: False) -> list[HeldOut]:
    """Predicts the cases that a run held out, as `python -m vnet_fast.predict` would.

    Masks are written to RUN/predictions. Masks that are there already and come from the same network are kept, and
    those that a fold of a cross-validation has are copied. Phantoms are written to RUN/phantoms first.

    Args:
        run: the folder of a training run with a `best.pt`; or of a cross-validation, whose cases are each predicted
            by the fold that did not train on them.
        device: see `vnet_fast.devices.find_device`.
        interrupted: asked before each volume.

    Returns:
        the cases, in natural order of name.

    Raises:
        InputError: if it is no run's folder, has no `best.pt`, or its data is no longer there.
        InputErrors: of all cases that can't be predicted; the others are.
        KeyboardInterrupt: if `interrupted` said so.
    """
    run, chosen_device = Path(run), find_device(device)
    config, checkpoints = stored_config(run), best_checkpoints(run)
    results: list[HeldOut] = []
    errors: list[InputError] = []
    names: set[str] | None = None
    for path in checkpoints:
        content = checkpoint.load(path)
        checkpoint.grid_of(content, path)
        names = _check_names(names, content, path.parent)
        cases = _find_cases(run, config, content["validation"])
        try:
            results += _predict_cases(cases, content, path, config, run / PREDICTION_FOLDER, chosen_device, interrupted)
        except InputErrors as several:
            errors += several.errors
    if errors:
        raise InputErrors(errors)
    return sorted(results, key=lambda case: natural(case.name))


def _check_names(names: set[str] | None, content: dict[str, Any], folder: Path) -> set[str]:
    """The names of a fold's cases; an InputError unless they are those of the folds before."""
    ours = {*content.get("training", ()), *content["validation"]}
    if names is not None and ours != names:
        changed = ", ".join(sorted(map(str, ours ^ names))[:5])
        cause = f"was trained on other cases than the folds before ({changed})"
        raise InputError(folder, cause, "Delete it to train it again")
    return ours


def _find_cases(run: Path, config: Config, names: Iterable[str]) -> list[Case]:
    if config.data is None:
        writing.sweep_unfinished(run / PHANTOM_FOLDER)
        return [_write_phantom(run / PHANTOM_FOLDER, name, config) for name in names]
    for folder in filter(None, (config.data, config.labels)):
        if not os.path.isdir(folder):
            cause = f"no such folder, and {run} was trained on it"
            raise InputError(folder, cause, f"Restore it, or write its new path into {run / CONFIG_FILE}")
    cases = {case.name: case for case in pair_cases(config.data, config.labels)[0]}
    missing = [name for name in names if name not in cases]
    if missing:
        cause = "the run held it out, but the case or its mask is missing"
        raise InputErrors([InputError(Path(config.data) / name, cause, "Restore it") for name in missing])
    return [cases[name] for name in names]


def _write_phantom(folder: Path, name: str, config: Config) -> Case:
    """The Case of a run's phantom, whose files are written if needed, on the network's grid."""
    case = Case(name, folder / f"{name}.nii.gz", folder / f"{name}{MASK_SUFFIX}.nii.gz")
    if not (case.image.exists() and case.mask.exists()):
        make_folder(folder)
        seed = case_seed(config.seed, int(name.removeprefix("phantom")))
        image, mask = phantom(seed, config.volume, config.spacing)
        grid = Grid(config.volume, config.spacing, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
        writing.write(image, grid, case.image)
        writing.write(mask, grid, case.mask)
    return case


def _predict_cases(
    cases: Iterable[Case],
    content: dict[str, Any],
    path: Path,
    config: Config,
    folder: Path,
    device: torch.device,
    interrupted: Callable[[], bool],
) -> list[HeldOut]:
    """Predicts the cases that have no valid prediction yet.

    Args:
        cases: all cases that the checkpoint's run held out.
        content: of the checkpoint.
        path: of the checkpoint.
        config: of the run.
        folder: of the predictions.
        device: where to predict.
        interrupted: asked before each volume.
    """
    results = [
        HeldOut(case.name, case.image, case.mask, folder / f"{case.name}{output_suffix(case.image)}", case.others)
        for case in cases
    ]
    network = {"iteration": content.get("iteration"), "weights": _digest(content["model"]), "amp": config.amp}
    make_folder(folder)
    writing.sweep_unfinished(folder)
    record = Record(folder)
    made_by = {case.name: network | {"image": _stamp(case.images)} for case in results}
    missing = _find_missing(results, made_by, record, path.parent / PREDICTION_FOLDER)
    if missing:
        predicted = _predict(missing, content, path, config.amp, device, interrupted)
        for case in track(predicted, "predicting", "volumes", len(missing)):
            record.add(case.prediction, made_by[case.name])
    return results


def _predict(
    missing: Sequence[HeldOut],
    content: dict[str, Any],
    path: Path,
    amp: str | None,
    device: torch.device,
    interrupted: Callable[[], bool],
) -> Iterator[HeldOut]:
    """Predicts cases and yields those that are written; at last raises the InputErrors of the others."""
    model, device = build_network(content, path, device)
    autocast, precision = choose_precision(amp, device)
    say(f"predicting {len(missing)} cases held out by {path}: {device_name(device)}, {precision}")
    task, errors = Task.of(content, path), []
    for case in missing:
        if interrupted():
            raise KeyboardInterrupt
        try:
            segment(model, case.images, task, autocast).write_mask(case.prediction)
        except InputError as error:
            errors.append(error)
        else:
            yield case
    if errors:
        raise InputErrors(errors)


def _find_missing(
    cases: Sequence[HeldOut], made_by: dict[str, dict[str, Any]], record: "Record", of_fold: Path
) -> list[HeldOut]:
    """The cases without a valid prediction; one that the fold's own folder has is copied first."""
    missing = [case for case in cases if not record.has(case.prediction, made_by[case.name])]
    record.drop([case.prediction for case in missing])
    fold = Record(of_fold)
    copied = [case for case in missing if fold.has(case.prediction, made_by[case.name])]
    for case in copied:
        writing.copy(of_fold / case.prediction.name, case.prediction)
        record.add(case.prediction, made_by[case.name])
    return [case for case in missing if case not in copied]


def _stamp(images: Iterable[Path]) -> list[list[int]] | None:
    """Size and modification time of each file of a volume, which show that it was replaced."""
    try:
        files = [path for image in images for path in formats.files_of(image)]
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    except (OSError, InputError):
        # reported when the volume is read
        return None


def _digest(weights: dict[str, Tensor]) -> str:
    """Hexadecimal digest of a network's weights, equal for copies of a checkpoint."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
