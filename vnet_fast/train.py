"""Trains a V-Net on a folder of volumes with masks, or on phantoms."""

import json
import math
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vnet_fast import augment, checkpoint, command_line, dataset, figures
from vnet_fast.cache import Cache
from vnet_fast.configuration import LOSSES, Config, configure, find_device, learning_rate
from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.metrics import dice_per_class
from vnet_fast.model import VNet
from vnet_fast.phantom import phantoms
from vnet_fast.step import Step, TrainingData, choose_precision, device_name, predict_probabilities
from vnet_fast.training_log import Log, minutes
from vnet_fast.versions import versions

PHANTOMS = 100
VALIDATIONS = 10
# how many iterations' losses are read back at once: a look at every one would wait for the GPU
READ_BACK = 10
RESUME_HINT = "Resume with: python -m vnet_fast.train --resume"


@dataclass
class Best:
    """The best validation so far."""

    iteration: int = 0
    dice: float = -1.0
    per_case: dict = None


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on."""

    training: list
    validation: list
    num_classes: int


def load_data(config):
    """Finds, splits and prepares the cases; says how many there are.

    Returns:
        Data.
    """
    if config.data is None:
        _check_folds("the phantoms", PHANTOMS, config)
        cases = phantoms(config.seed, PHANTOMS, config.volume, config.spacing)
        training, validation = dataset.split(cases, config.folds, config.fold, config.seed)
        print(f"data: {PHANTOMS} synthetic phantoms, {len(training)} to train on, {len(validation)} to validate")
        return Data(training, validation, 2)
    cases = dataset.find_cases(config.data, config.labels)
    _check_folds(config.data, len(cases), config)
    cache = Cache(config.cache or Path.home() / ".cache" / "vnet_fast", config.spacing, config.volume)
    quiet = not sys.stderr.isatty()
    prepared = cache.load(
        cases, lambda results: tqdm(results, "preparing", len(cases), leave=False, disable=quiet, unit="case")
    )
    num_classes = dataset.count_classes(prepared, cases, config.binary, dataset.declared_labels(config.data))
    training, validation = dataset.split(prepared, config.folds, config.fold, config.seed)
    print(
        f"data: {len(cases)} cases in {config.data}, {len(training)} to train on, {len(validation)} to validate, "
        f"{num_classes - 1} {'class' if num_classes == 2 else 'classes'} (prepared volumes in {cache.folder})"
    )
    return Data(training, validation, num_classes)


def _check_folds(subject, count, config):
    if count < config.folds:
        remedy = f"Give --folds {count} or less, or add cases" if count > 1 else "Add cases"
        raise InputError(subject, f"{count} cases for {config.folds} folds", remedy)


def make_optimizer(model, config):
    """The optimiser, its rates as in the authors' release: biases learn twice as fast and do not
    decay.
    """
    biases = [weight for name, weight in model.named_parameters() if name.endswith("bias")]
    others = [weight for name, weight in model.named_parameters() if not name.endswith("bias")]
    groups = [
        {"params": others, "weight_decay": config.weight_decay, "scale": 1.0},
        {"params": biases, "weight_decay": 0.0, "scale": 2.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    return torch.optim.AdamW([{**group, "scale": 1.0} for group in groups], lr=config.learning_rate)


def validate(model, data, autocast):
    """Dice of each validation case and foreground class: dict from name to list."""
    per_case = {}
    for case in data.validation:
        labels = predict_probabilities(model, case.image, autocast).argmax(0)
        reference = np.minimum(case.mask, 1) if data.num_classes == 2 else case.mask
        per_case[case.name] = dice_per_class(labels, reference, data.num_classes)
    model.train()
    return per_case


def mean_dice(per_case):
    """The mean over cases and classes."""
    return float(np.mean(list(per_case.values())))


class StopSignal:
    """Remembers SIGINT or SIGTERM, so that a step is finished; a second one ends at once."""

    def __init__(self):
        self.number = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def _remember(self, number, frame):
        self.number = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)


class Run:
    """A training run in its folder.

    Args:
        config: the Config.
    """

    def __init__(self, config):
        self.config = config
        self.folder = Path(config.output)
        self.device = find_device(config.device)
        self.autocast, words = choose_precision(config.amp, self.device)
        print(f"device: {device_name(self.device)}, {words}")
        if not config.resume and (self.folder / "last.pt").exists():
            raise InputError(self.folder, "holds a run already", "Choose another --output, or --resume it")
        self.data = load_data(config)
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True
        self.model = VNet(1, self.data.num_classes, config.base_channels, config.topology).to(self.device)
        self.step = Step(self.model, LOSSES[config.loss](), make_optimizer(self.model, config), self.autocast)
        self.batches = TrainingData(self.data.training, self.data.num_classes, self.device)
        self.iteration, self.best, self.seconds = 0, Best(), 0.0
        if config.resume:
            self._restore()
        self._make_folder()
        print(
            f"network: {config.topology} topology, {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{' x '.join(map(str, config.volume))} voxels of {' x '.join(f'{s:g}' for s in config.spacing)} mm"
        )
        print(f"run: {self.folder}", flush=True)

    def _make_folder(self):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({**asdict(self.config), "resume": None}, indent=2)
            write_text(self.folder / "config.json", content + "\n")
        except OSError as error:
            cause = f"can't be written ({error.strerror})"
            raise InputError(self.folder, cause, "Choose another --output") from None

    def _restore(self):
        path = self.folder / "last.pt"
        content = checkpoint.load(path, self.device)
        checkpoint.fill_model(self.model, content, path)
        try:
            self.step.optimizer.load_state_dict(content["optimizer"])
            if content["scaler"]:
                # empty after a run in another precision, which --amp may have changed
                self.step.scaler.load_state_dict(content["scaler"])
            self.iteration, self.seconds = content["iteration"], content["seconds"]
            self.best = Best(**content["best"])
            kept = content["training"], content["validation"]
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(path, f"can't be resumed ({error})", "Start a new run") from None
        if kept != (self._names(self.data.training), self._names(self.data.validation)):
            changed = sorted(
                set(kept[0] + kept[1]) ^ {*map(str, self._names(self.data.training + self.data.validation))}
            )
            cause = f"its cases have changed{': ' + ', '.join(changed[:5]) if changed else ''}"
            raise InputError(self.folder, cause, "Restore them, or start a new run")
        if self.iteration >= self.config.iterations and (self.folder / "summary.json").exists():
            cause = f"is at iteration {self.iteration} of {self.config.iterations}"
            raise InputError(self.folder, cause, "Give more --iterations")
        print(f"resuming at iteration {self.iteration}")

    def train(self):
        """Trains to the last iteration or a signal.

        Returns:
            the signal's number, or None.
        """
        config = self.config
        stop, log = StopSignal(), Log(self.folder / "log.csv", self.iteration, config)
        val_every = config.val_every or max(1, math.ceil(config.iterations / VALIDATIONS))
        save_every = config.save_every or val_every
        pending, rate, began = [], 0.0, time.monotonic()
        try:
            while self.iteration < config.iterations and stop.number is None:
                pending.append(self._update())
                self.iteration += 1
                last = self.iteration == config.iterations
                validating = last or self.iteration % val_every == 0
                saving = validating or stop.number is not None or self.iteration % save_every == 0
                if not saving and len(pending) < READ_BACK:
                    continue
                losses = torch.stack(pending).tolist()
                first = self.iteration - len(losses) + 1
                self._check_finite(losses, first)
                spent = time.monotonic() - began
                self.seconds += spent
                rate = len(losses) * config.batch_size / spent
                dice = self._validate() if validating else None
                log.add(first, losses, rate, dice)
                if saving:
                    self._save_last()
                pending, began = [], time.monotonic()
        finally:
            log.close()
        return stop.number

    def _update(self):
        config = self.config
        for group in self.step.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.iteration) * group["scale"]
        choice = augment.draw(
            config.seed,
            self.iteration,
            config.batch_size,
            len(self.data.training),
            config.volume[::-1],
            augmented=not config.no_augment,
        )
        return self.step(*self.batches.batch(choice))

    def _check_finite(self, losses, first):
        bad = next((first + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            cause = f"the loss became NaN or infinite at iteration {bad}"
            raise InputError(self.folder, cause, "Start again with a lower --learning-rate")

    def _validate(self):
        per_case = validate(self.model, self.data, self.autocast)
        dice = mean_dice(per_case)
        if dice > self.best.dice:
            self.best = Best(self.iteration, dice, per_case)
            checkpoint.save(self.folder / "best.pt", self.model, **self._about())
        return dice

    def _save_last(self):
        checkpoint.save(
            self.folder / "last.pt",
            self.model,
            optimizer=self.step.optimizer.state_dict(),
            scaler=self.step.scaler.state_dict(),
            seconds=self.seconds,
            **self._about(),
        )

    def _about(self):
        return {
            "iteration": self.iteration,
            "best": asdict(self.best),
            "config": asdict(self.config),
            "spacing": list(self.config.spacing),
            "volume": list(self.config.volume),
            "training": self._names(self.data.training),
            "validation": self._names(self.data.validation),
        }

    @staticmethod
    def _names(cases):
        return [case.name for case in cases]

    def finish(self):
        """Writes `summary.json` and, with matplotlib, the pictures; says the result."""
        best = self.best
        summary = {
            "val_dice": best.dice,
            "val_dice_per_case": {name: float(np.mean(values)) for name, values in best.per_case.items()},
            "val_dice_per_class": np.mean(list(best.per_case.values()), axis=0).tolist(),
            "best_iteration": best.iteration,
            "iterations": self.iteration,
            "seconds": round(self.seconds, 1),
            "volumes_per_second": round(self.iteration * self.config.batch_size / self.seconds, 3),
            "device": device_name(self.device),
            "precision": "float32" if self.autocast is None else str(self.autocast).removeprefix("torch."),
            "versions": versions(),
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        if figures.available():
            self._draw()
        else:
            print("no pictures: matplotlib is not installed (pip install 'vnet_fast[plots]')")
        classes = ", ".join(f"{dice:.4f}" for dice in summary["val_dice_per_class"])
        print(
            f"validation Dice {best.dice:.4f}"
            + (f" (classes {classes})" if len(summary["val_dice_per_class"]) > 1 else "")
            + f" at iteration {best.iteration}, {summary['volumes_per_second']:.2f} volumes/s, "
            f"{minutes(self.seconds)} of training"
        )
        print(f"predict with: python -m vnet_fast.predict --checkpoint {self.folder / 'best.pt'} --input … --output …")

    def _draw(self):
        figures.curves(self.folder / "log.csv", self.folder / "curves.png")
        path = self.folder / "best.pt"
        checkpoint.fill_model(self.model, checkpoint.load(path, self.device), path)
        # the median case: neither the luckiest nor the worst
        by_dice = sorted(self.data.validation, key=lambda case: np.mean(self.best.per_case[case.name]))
        case = by_dice[len(by_dice) // 2]
        figures.overlay(
            case.image,
            np.minimum(case.mask, 1) if self.data.num_classes == 2 else case.mask,
            predict_probabilities(self.model, case.image, self.autocast).argmax(0),
            self.config.spacing,
            f"{case.name}: Dice {np.mean(self.best.per_case[case.name]):.3f}, the median of validation",
            self.folder / "overlay.png",
        )


def main(given):
    """Runs with the options given; returns the exit code."""
    run = Run(configure(given))
    number = run.train()
    if number is not None and run.iteration < run.config.iterations:
        print(f"stopped at iteration {run.iteration}. {RESUME_HINT} {run.folder}")
        return 128 + number
    run.finish()
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.train"))
