"""Trains a V-Net on a folder of volumes with masks, or on phantoms."""

import json
import math
import signal
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from vnet_fast import checkpoint, command_line, figures
from vnet_fast.augment import Draws
from vnet_fast.batches import make_source
from vnet_fast.configuration import LOSSES, Config, configure, find_device, learning_rate
from vnet_fast.devices import choose_precision, device_name, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.files import write_text
from vnet_fast.inference import predict_probabilities
from vnet_fast.model import VNet
from vnet_fast.step import Step, make_optimizer
from vnet_fast.training_data import load_data
from vnet_fast.training_log import Log, ReadBack, minutes
from vnet_fast.validation import Best, interval, mean_dice, validate
from vnet_fast.versions import versions

RESUME_HINT = "Resume with: python -m vnet_fast.train --resume"


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
        optimizer = make_optimizer(
            self.model, config.optimizer, config.learning_rate, config.momentum, config.weight_decay
        )
        self.step = Step(self.model, LOSSES[config.loss](), optimizer, self.autocast, graph=not config.no_graph)
        self.iteration, self.best, self.seconds = 0, Best(), 0.0
        if config.resume:
            self._restore()
        self._make_folder()
        print(
            f"network: {config.topology} topology, {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{' x '.join(map(str, config.volume))} voxels of {' x '.join(f'{s:g}' for s in config.spacing)} mm"
        )
        print(f"run: {self.folder}", flush=True)

    def _make_source(self):
        config = self.config
        count = len(self.data.training)
        draws = Draws(config.seed, config.batch_size, count, config.volume[::-1], not config.no_augment)
        source = make_source(
            self.data.training,
            self.data.num_classes,
            draws,
            self.device,
            self.autocast or torch.float32,
            self.iteration,
            config.iterations,
            config.workers,
        )
        self.step.prepare = source.prepare
        way = ", a step is one CUDA graph" if self.step.wants_graph else ""
        print(f"batches: {source.words}{way}", flush=True)
        return source

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
            self.step.load_state_dict(content)
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
        val_every = config.val_every or interval(config.iterations, config.batch_size, len(self.data.validation))
        save_every = config.save_every or val_every
        source = self._make_source()
        stop, log = StopSignal(), Log(self.folder / "log.csv", self.iteration, config)
        losses, began = ReadBack(self.iteration), time.monotonic()
        try:
            while self.iteration < config.iterations:
                self.step.set_learning_rate(learning_rate(config, self.iteration))
                losses.add(self.step(*source.inputs(self.iteration)))
                self.iteration += 1
                stopping = stop.number is not None
                validating = self.iteration == config.iterations or self.iteration % val_every == 0
                saving = validating or stopping or self.iteration % save_every == 0
                if not saving and not losses.full:
                    continue
                first, values = losses.read(everything=saving)
                self._check_finite(values, first)
                spent = time.monotonic() - began
                self.seconds += spent
                dice = self._validate() if validating else None
                log.add(first, values, len(values) * config.batch_size / spent, dice)
                self._say_refusal()
                if saving:
                    self._save_last()
                if stopping:
                    break
                began = time.monotonic()
        finally:
            log.close()
            source.close()
        return stop.number

    def _say_refusal(self):
        if self.step.refusal:
            print(f"no CUDA graph of the step, which runs eagerly: {self.step.refusal}", flush=True)
            self.step.refusal = None

    def _check_finite(self, losses, first):
        bad = next((first + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            cause = f"the loss became NaN or infinite at iteration {bad}"
            raise InputError(self.folder, cause, "Start again with a lower --learning-rate")

    def _validate(self):
        per_case = validate(self.model, self.data.validation, self.data.num_classes, self.autocast)
        dice = mean_dice(per_case)
        if dice > self.best.dice:
            self.best = Best(self.iteration, dice, per_case)
            checkpoint.save(self.folder / "best.pt", self.model, **self._about())
        return dice

    def _save_last(self):
        checkpoint.save(
            self.folder / "last.pt",
            self.model,
            **self.step.state_dict(),
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
    use_all_cores()
    run = Run(configure(given))
    number = run.train()
    if number is not None and run.iteration < run.config.iterations:
        print(f"stopped at iteration {run.iteration}. {RESUME_HINT} {run.folder}")
        return 128 + number
    run.finish()
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.train"))
