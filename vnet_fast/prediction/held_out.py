"""The cases that a run did not train on, each with the run's prediction."""

import hashlib
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
from vnet_fast.files import make_folder
from vnet_fast.io import formats, writing
from vnet_fast.io.grid import Grid
from vnet_fast.io.probabilities import probability_file
from vnet_fast.prediction.networks import build_network
from vnet_fast.prediction.passes import Passes
from vnet_fast.prediction.plan import output_suffix
from vnet_fast.prediction.record import Record
from vnet_fast.prediction.segmentation import segment
from vnet_fast.prediction.task import Task
from vnet_fast.progress import say, track
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import CONFIG_FILE, Config, stored_config
from vnet_fast.run.folder import best_checkpoints

PREDICTION_FOLDER, PHANTOM_FOLDER = "predictions", "phantoms"


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

    def files(self, outputs: int) -> list[Path]:
        """The predicted mask, and the files of so many probabilities beside it."""
        numbers = range(1, outputs + 1)
        return [self.prediction, *(probability_file(self.prediction, number, outputs) for number in numbers)]


def held_out(
    run: str | Path,
    device: str = "auto",
    interrupted: Callable[[], bool] = lambda: False,
    probabilities: bool = False,
) -> list[HeldOut]:
    """Predicts the cases that a run held out, as `python -m vnet_fast.predict` would.

    Masks are written to RUN/predictions. Masks that are there already and come from the same network are kept, and
    those that a fold of a cross-validation has are copied. Phantoms are written to RUN/phantoms first.

    Args:
        run: the folder of a training run with a `best.pt`; or of a cross-validation, whose cases are each predicted
            by the fold that did not train on them.
        device: see `vnet_fast.devices.find_device`.
        interrupted: asked before each volume.
        probabilities: whether the probabilities are to be beside the masks too.

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
        names = (_check_names if config.split is None else _check_held_out)(names, content, path.parent)
        cases = _find_cases(run, config, content["validation"])
        target = run / PREDICTION_FOLDER
        try:
            results += _predict_cases(cases, content, path, config, target, chosen_device, interrupted, probabilities)
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


def _check_held_out(names: set[str] | None, content: dict[str, Any], folder: Path) -> set[str]:
    """The names of the cases that folds of a split have held out so far; an InputError if a fold before did too."""
    before, ours = names or set(), {*content["validation"]}
    again = ", ".join(sorted(map(str, ours & before))[:5])
    if again:
        raise InputError(folder, f"held out cases that a fold before it did ({again})", "Delete it to train it again")
    return before | ours


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
    probabilities: bool,
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
        probabilities: whether they are to be beside the masks too.
    """
    outputs = checkpoint.foreground_classes(content) if probabilities else 0
    results = [
        HeldOut(case.name, case.image, case.mask, folder / f"{case.name}{output_suffix(case.image)}", case.others)
        for case in cases
    ]
    network = {"iteration": content.get("iteration"), "weights": _digest(content["model"]), "amp": config.amp}
    make_folder(folder)
    writing.sweep_unfinished(folder)
    record = Record(folder)
    made_by = {case.name: network | {"image": _stamp(case.images)} for case in results}
    missing = _find_missing(results, made_by, record, path.parent / PREDICTION_FOLDER, outputs)
    if missing:
        predicted = _predict(missing, content, path, config, device, interrupted, probabilities)
        for case in track(predicted, "predicting", "volumes", len(missing)):
            for file in case.files(outputs):
                record.add(file, made_by[case.name])
    return results


def _predict(
    missing: Sequence[HeldOut],
    content: dict[str, Any],
    path: Path,
    config: Config,
    device: torch.device,
    interrupted: Callable[[], bool],
    probabilities: bool,
) -> Iterator[HeldOut]:
    """Predicts cases and yields those that are written; at last raises the InputErrors of the others."""
    model, device = build_network(content, path, device)
    autocast, precision = choose_precision(config.amp, device)
    say(f"predicting {len(missing)} cases held out by {path}: {device_name(device)}, {precision}")
    task, errors, passes = Task.of(content, path), [], Passes(not config.no_graph)
    for case in missing:
        if interrupted():
            raise KeyboardInterrupt
        try:
            result = segment(model, case.images, task, autocast, passes=passes)
            if probabilities:
                result.write_probabilities(case.prediction)
            result.write_mask(case.prediction)
        except InputError as error:
            errors.append(error)
        else:
            yield case
    if errors:
        raise InputErrors(errors)


def _find_missing(
    cases: Sequence[HeldOut], made_by: dict[str, dict[str, Any]], record: Record, of_fold: Path, outputs: int
) -> list[HeldOut]:
    """The cases without a valid prediction; one that the fold's own folder has is copied first."""

    def is_complete(case: HeldOut, made: Record) -> bool:
        return all(made.has(file, made_by[case.name]) for file in case.files(outputs))

    missing = [case for case in cases if not is_complete(case, record)]
    record.drop([file for case in missing for file in case.files(outputs)])
    fold = Record(of_fold)
    copied = [case for case in missing if is_complete(case, fold)]
    for file, name in [(file, case.name) for case in copied for file in case.files(outputs)]:
        writing.copy(of_fold / file.name, file)
        record.add(file, made_by[name])
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
