"""The cases that a run did not train on, each with the run's prediction of it."""

import contextlib
import hashlib
import json
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from vnet_fast.data.cases import MASK_SUFFIX, Case, natural, pair_cases
from vnet_fast.data.phantom import case_seed, phantom
from vnet_fast.devices import choose_precision, device_name, find_device
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import make_folder, write_text
from vnet_fast.io import formats, volumes
from vnet_fast.io.grid import Grid
from vnet_fast.prediction.segmentation import build_network, output_suffix, segment, to_labels
from vnet_fast.run import checkpoint
from vnet_fast.run.checkpoint import grid_of
from vnet_fast.run.configuration import ALL, stored_config
from vnet_fast.run.folder import BEST, RESUME_HINT, fold_folder

PREDICTION_FOLDER, PHANTOM_FOLDER, RECORD = "predictions", "phantoms", "made_by.json"


@dataclass(frozen=True)
class HeldOut:
    """A case that a run did not train on, with the run's prediction.

    Args:
        name: of the case.
        image: the volume's file, or its folder of DICOM slices.
        reference: its mask, with the labels as the file has them.
        prediction: the predicted mask, on the image's own grid.
    """

    name: str
    image: Path
    reference: Path
    prediction: Path


def held_out(run, device="auto"):
    """Predicts the cases that a run held out, as `python -m vnet_fast.predict` would.

    Masks go to RUN/predictions; those that are there and were made by the same network are kept.
    Phantoms are written to RUN/phantoms first.

    Args:
        run: the folder of a training run with a `best.pt`; or of a cross-validation: then the cases of
            all folds, each predicted by the fold that did not train on it.
        device: `auto`, `cpu` or `cuda`.

    Returns:
        list of HeldOut in natural order of name.

    Raises:
        InputError: if it is no run's folder, has no `best.pt`, or its data is no longer there.
        InputErrors: of all cases that can't be predicted; the others are.
    """
    run, device = Path(run), find_device(device)
    config = stored_config(run)
    folders = [run] if config.fold != ALL else [fold_folder(run, fold) for fold in range(config.folds)]
    for folder in folders:
        if not (folder / BEST).exists():
            raise InputError(folder, f"has no {BEST} yet", f"{RESUME_HINT} {run}")
    found, errors, names = [], [], None
    for folder in folders:
        content = checkpoint.load(folder / BEST)
        grid_of(content, folder / BEST)
        names = _same_names(names, content, folder)
        cases = _cases(run, config, content["validation"])
        try:
            found += _predicted(cases, content, folder / BEST, config, run / PREDICTION_FOLDER, device)
        except InputErrors as several:
            errors += several.errors
    if errors:
        raise InputErrors(errors)
    return sorted(found, key=lambda case: natural(case.name))


def _same_names(names, content, folder):
    """The names of a fold's cases, which must be those of the folds before."""
    ours = {*content.get("training", ()), *content["validation"]}
    if names is not None and ours != names:
        changed = ", ".join(sorted(map(str, ours ^ names))[:5])
        cause = f"was trained on other cases than the folds before ({changed})"
        raise InputError(folder, cause, "Take it away to train it again")
    return ours


def _cases(run, config, names):
    """The Cases of these names."""
    if config.data is None:
        return [_phantom(run / PHANTOM_FOLDER, name, config) for name in names]
    for folder in filter(None, (config.data, config.labels)):
        if not os.path.isdir(folder):
            cause = f"no such folder, and {run} was trained on it"
            raise InputError(folder, cause, f"Restore it, or write where it is now into {run / 'config.json'}")
    found = {case.name: case for case in pair_cases(config.data, config.labels)[0]}
    missing = [name for name in names if name not in found]
    if missing:
        cause = "no such case, or not its mask, and the run held it out"
        raise InputErrors([InputError(Path(config.data) / name, cause, "Restore it") for name in missing])
    return [found[name] for name in names]


def _phantom(folder, name, config):
    """The Case of a run's phantom, written as a scanner would on the network's grid."""
    case = Case(name, folder / f"{name}.nii.gz", folder / f"{name}{MASK_SUFFIX}.nii.gz")
    if not (case.image.exists() and case.mask.exists()):
        make_folder(folder)
        seed = case_seed(config.seed, int(name.removeprefix("phantom")))
        image, mask = phantom(seed, config.volume, config.spacing)
        on_grid = Grid(config.volume, config.spacing, (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1)).image_from(image)
        volumes.write(image, on_grid, case.image)
        volumes.write(mask, on_grid, case.mask)
    return case


def _predicted(cases, content, path, config, folder, device):
    """The HeldOut of all cases, those predicted that are not yet.

    Args:
        cases: list of Case.
        content: of the checkpoint at `path`.
        config: the run's.
        folder: of the predictions.
        device: where to predict.
    """
    found = [
        HeldOut(case.name, case.image, case.mask, folder / f"{case.name}{output_suffix(case.image)}") for case in cases
    ]
    made_by = {"iteration": content.get("iteration"), "weights": _digest(content["model"]), "amp": config.amp}
    make_folder(folder)
    record = Record(folder)
    made_by = {case.name: made_by | {"image": _stamp(case.image)} for case in found}
    todo = [case for case in found if not record.has(case.prediction, made_by[case.name])]
    if not todo:
        return found
    record.drop([case.prediction for case in todo])
    model, device = build_network(content, path, device)
    autocast, words = choose_precision(config.amp, device)
    print(f"predicting {len(todo)} cases held out by {path}: {device_name(device)}, {words}", flush=True)
    spacing, size = grid_of(content, path)
    bar = partial(tqdm, disable=not sys.stderr.isatty(), leave=False)
    errors, track = [], partial(bar, desc="windows", unit="window")
    for case in bar(todo, "predicting", unit="volume"):
        try:
            image, probabilities, _ = segment(model, case.image, spacing, size, autocast, track=track)
            volumes.write(to_labels(probabilities), image, case.prediction)
            record.add(case.prediction, made_by[case.name])
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputErrors(errors)
    return found


def _stamp(image):
    """By which a volume that was replaced is known: size and time of change of each of its files."""
    try:
        return [[path.stat().st_size, path.stat().st_mtime_ns] for path in formats.files_of(image)]
    except (OSError, InputError):
        # said when it is read
        return None


def _digest(weights):
    """Hexadecimal digest of a network's weights: the same for copies of a checkpoint."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Record:
    """What made each prediction of a folder: a file beside them, which names those that are whole.

    Args:
        folder: of the predictions.
    """

    def __init__(self, folder):
        self.path, self.made = folder / RECORD, {}
        # without it, or damaged by hand, all is predicted again
        with contextlib.suppress(OSError, ValueError):
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            self.made = stored if isinstance(stored, dict) else {}

    def has(self, prediction, made_by):
        """Whether a prediction is there with all its files, and of the network that `made_by` names."""
        if self.made.get(prediction.name) != made_by or not prediction.exists():
            return False
        try:
            return all(file.exists() for file in formats.files_of(prediction))
        except InputError:
            return False

    def drop(self, predictions):
        """To be called before any of them is written anew."""
        stale = self.made.keys() & {prediction.name for prediction in predictions}
        if stale:
            self._write({name: made_by for name, made_by in self.made.items() if name not in stale})

    def add(self, prediction, made_by):
        """To be called when the prediction is written."""
        self._write({**self.made, prediction.name: made_by})

    def _write(self, made):
        self.made = made
        write_text(self.path, json.dumps(self.made, indent=1) + "\n")
