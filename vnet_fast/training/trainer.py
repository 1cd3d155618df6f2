"""A training run, from its start to its end."""

import math
import time
from dataclasses import asdict, replace

import numpy as np
import torch

from vnet_fast.data.training_data import load_data
from vnet_fast.devices import choose_precision, device_name, find_device, free, is_out_of_memory, make_deterministic
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.nn.vnet import VNet
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import LOSSES
from vnet_fast.run.folder import BEST, LAST, PREVIOUS, RESUME_HINT, RunFolder, finished_at, write_config
from vnet_fast.run.log import Log, mean_dice
from vnet_fast.training.batches import is_worker_death, make_source
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.memory import what_fits
from vnet_fast.training.read_back import ReadBack
from vnet_fast.training.schedule import learning_rate
from vnet_fast.training.signals import StopSignal
from vnet_fast.training.step import Step, make_optimizer
from vnet_fast.training.summary import finish
from vnet_fast.training.validation import Best, interval, validate

# checkpoints of a run at least
SAVES = 10


class Run:
    """A training run in its folder, to be closed.

    Args:
        config: the Config.
        processes: None, or the `distributed.Processes` that train together.

    Raises:
        InputError, InputErrors: if data, folder, device or checkpoint can't be used.
    """

    def __init__(self, config, processes=None):
        self.processes, self.folder, self.step = processes or Processes(), None, None
        try:
            self._start(config)
        except BaseException:
            self.close(failed=True)
            raise

    def _start(self, config):
        if config.deterministic:
            make_deterministic()
        else:
            torch.backends.cudnn.benchmark = True
        try:
            self.device = self.processes.start(find_device(config.device))
        except RuntimeError as error:
            raise InputError("--nproc-per-node", str(error), "Start fewer processes") from None
        # the default is the time, which each process would read for itself
        self.config = config = replace(config, output=self.processes.first(config.output))
        self.autocast, words = choose_precision(config.amp, self.device)
        together = f", {self.processes.count} processes" if self.processes.several else ""
        print(f"device: {device_name(self.device)}{together}, {words}")
        self.data = self._load_data()
        if self.processes.is_first:
            self.folder = RunFolder(config.output, resume=bool(config.resume))
        self.processes.wait()
        torch.manual_seed(config.seed)
        self.model = VNet(1, self.data.num_classes, config.base_channels, config.topology).to(self.device)
        optimizer = make_optimizer(
            self.model, config.optimizer, config.learning_rate, config.momentum, config.weight_decay
        )
        # gradients are averaged between kernels, which a graph of one process's can't hold
        graph = not (config.no_graph or self.processes.several)
        self.iteration, self.best, self.seconds = 0, Best(), 0.0
        self.step = Step(self.model, LOSSES[config.loss](), optimizer, self.autocast, graph=graph)
        if config.resume:
            self._restore()
        self.step.model = self.processes.wrap(self.model)
        if self.folder:
            write_config(self.folder.path, self.config)
        print(
            f"network: {config.topology} topology, {sum(p.numel() for p in self.model.parameters()):,} parameters, "
            f"{' x '.join(map(str, config.volume))} voxels of {' x '.join(f'{s:g}' for s in config.spacing)} mm"
        )
        print(f"run: {config.output}", flush=True)

    def _load_data(self):
        # the first process prepares what is not cached, the others find it
        if self.processes.is_first:
            data = load_data(self.config)
        self.processes.wait()
        return data if self.processes.is_first else load_data(self.config)

    def close(self, failed=False):
        """Lets other processes train in the folder, and leaves those that trained with this one.

        Args:
            failed: whether an exception ends the run: then the others are not waited for.
        """
        if self.folder:
            self.folder.close()
        if self.step:
            self.step.model = self.model
        self.processes.end(failed)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.close(failed=kind is not None)

    def _restore(self):
        # on the host, whatever memory the device has: what it is loaded into is on the device
        content, path = RunFolder.load_last(self.config.output, torch.device("cpu"))
        self.processes.wait()
        if self.folder and path.name == PREVIOUS:
            self.folder.set_last_aside()
        checkpoint.fill_model(self.model, content, path)
        try:
            self.step.load_state_dict(content)
            self.iteration, self.seconds = content["iteration"], content["seconds"]
            self.best = Best(**content["best"])
            kept = {part: content[part] for part in ("training", "validation")}
            self._share_batch(content.get("batch", self.config.batch_size * self.processes.count))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(path, f"can't be resumed ({error})", "Start a new run") from None
        self.data.check_unchanged(kept, path.parent)
        if self.iteration >= self.config.iterations and (
            self.best.iteration == 0 or finished_at(path.parent) == self.iteration
        ):
            cause = f"is at iteration {self.iteration} of {self.config.iterations}"
            raise InputError(path.parent, cause, "Give more --iterations")
        print(f"resuming at iteration {self.iteration}")

    def _share_batch(self, total):
        """Keeps the volumes of an iteration as they were, whatever the number of processes is now."""
        each, rest = divmod(total, self.processes.count)
        if rest:
            cause = f"{self.processes.count} processes can't share the run's batches of {total}"
            raise InputError("--nproc-per-node", cause, "Start a number of them that divides it")
        self.config = replace(self.config, batch_size=each)

    def _make_source(self):
        config, processes = self.config, self.processes
        count, size = len(self.data.training), config.volume[::-1]
        self.draws = BatchSampler(
            config.seed, config.batch_size, count, size, not config.no_augment, processes.rank, processes.count
        )
        source = make_source(
            self.data.training,
            self.data.num_classes,
            self.draws,
            self.device,
            self.autocast or torch.float32,
            self.iteration,
            config.iterations,
            config.workers,
        )
        self.step.prepare = source.prepare
        way = ", a step is one CUDA graph" if self.step.wants_graph else ""
        print(f"batches: {source.description}{way}", flush=True)
        return source

    def train(self):
        """Trains to the last iteration or a signal.

        Returns:
            the signal's number, or None.
        """
        config = self.config
        val_every = config.val_every or interval(
            config.iterations, config.batch_size * self.processes.count, len(self.data.validation)
        )
        save_every = config.save_every or min(val_every, math.ceil(config.iterations / SAVES))
        stop = self.stop = StopSignal(second_ends=not self.processes.several)
        source = self._make_source()
        log = Log(self.folder / "log.csv", self.iteration, config) if self.folder else None
        losses, began, since = ReadBack(self.iteration), time.monotonic(), self.iteration
        try:
            while self.iteration < config.iterations:
                losses.add(self._update(source))
                self.iteration += 1
                stopping = self.processes.any(stop.number is not None)
                validating = self.iteration == config.iterations or self.iteration % val_every == 0
                # after the first one, so that whatever comes there is something to resume
                saving = validating or stopping or self.iteration == 1 or self.iteration % save_every == 0
                if not saving and not losses.full:
                    continue
                first, values = losses.read(everything=saving)
                values = np.mean(self.processes.gathered(values), axis=0).tolist()
                self._check_losses(values, first)
                if saving:
                    self._check_weights()
                spent = time.monotonic() - began
                self.seconds += spent
                per_case = self._validate() if validating else None
                if log:
                    volumes = (self.iteration - since) * config.batch_size * self.processes.count
                    log.add(first, values, volumes / spent, per_case)
                    self._say_refusal()
                if saving:
                    self._save_last()
                if stopping:
                    break
                began, since = time.monotonic(), self.iteration
        except RuntimeError as error:
            if is_worker_death(error):
                raise InputError("--workers", f"a worker process has ended: {error}", "Give fewer of them") from None
            if is_out_of_memory(error):
                cause = "its memory does not suffice beside the training step"
                raise InputError(
                    self.device, cause, "Give a smaller --batch-size, --volume or --base-channels"
                ) from None
            raise
        finally:
            if log:
                log.close()
            source.close()
        return max(self.processes.gathered(stop.number or 0)) or None

    def _update(self, source):
        self.step.set_learning_rate(learning_rate(self.config, self.iteration))
        try:
            return self.step(*source.inputs(self.iteration))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # behind the except clause, whose traceback keeps the activations
        raise self._too_large()

    def _too_large(self):
        config = self.config
        self.step.release()
        free(self.device)
        cause = f"{config.batch_size} volumes of {' x '.join(map(str, config.volume))} do not fit in memory"
        if self.processes.several:
            return InputError(self.device, cause, "Give a smaller --batch-size or --volume")
        found = what_fits(self.model, self.step.loss, self.autocast, config.batch_size, config.volume[::-1])
        if found is None:
            return InputError(self.device, cause, "Give a smaller --base-channels")
        batch_size, size = found
        options = f"--batch-size {batch_size}"
        if size != config.volume[::-1]:
            options += f" --volume {' '.join(map(str, size[::-1]))}"
        return InputError(
            self.device, cause, f"Give {options}, which fits, or --base-channels below {config.base_channels}"
        )

    def _say_refusal(self):
        if self.step.refusal:
            print(f"no CUDA graph of the step, which runs eagerly: {self.step.refusal}", flush=True)
            self.step.refusal = None

    def _check_losses(self, losses, first):
        bad = next((first + i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        # float16's scaler skips such updates and tries a smaller scale
        if bad is not None and not self.step.still_scales():
            cases = self.draws.of_all(bad - 1).cases
            names = ", ".join(dict.fromkeys(self.data.training[case].name for case in cases))
            raise self._diverged(f"the loss became NaN or infinite at iteration {bad} ({names})")

    def _check_weights(self):
        if not checkpoint.all_finite(self.model):
            raise self._diverged(f"weights became NaN or infinite by iteration {self.iteration}")

    def _diverged(self, cause):
        remedy = "Start again with a lower --learning-rate, and look at those cases if it comes again"
        return InputError(self.config.output, f"{cause}; {LAST} is from before", remedy)

    def _validate(self):
        mine = validate(self.model, self.processes.share(self.data.validation), self.data.num_classes, self.autocast)
        found = {name: dice for part in self.processes.gathered(mine) for name, dice in part.items()}
        per_case = {case.name: found[case.name] for case in self.data.validation}
        dice = mean_dice(per_case)
        if dice > self.best.dice:
            self.best = Best(self.iteration, dice, per_case)
            if self.folder:
                checkpoint.save(self.folder / BEST, self.model, **self._about())
        return per_case

    def _save_last(self):
        if self.folder:
            self.folder.save_last(self.model, **self.step.state_dict(), seconds=self.seconds, **self._about())

    def _about(self):
        return {
            "iteration": self.iteration,
            "best": asdict(self.best),
            "config": asdict(self.config),
            "batch": self.config.batch_size * self.processes.count,
            "spacing": list(self.config.spacing),
            "volume": list(self.config.volume),
            **self.data.names,
        }


def train_run(config, whole=None):
    """Trains a run and finishes it, or says how to resume it.

    Args:
        config: its Config.
        whole: None, or the folder of the cross-validation that it is a fold of, which a signal ends.

    Returns:
        exit code.
    """
    with Run(config) as run:
        number = run.train()
        done = run.iteration >= run.config.iterations
        if done and run.folder:
            # prediction needs neither graph nor gradients
            run.step.release()
            finish(run)
        # a fold's pictures may take longer than the signal
        number = number or run.stop.number
        if number is not None and (whole or not done):
            print(f"stopped at iteration {run.iteration}. {RESUME_HINT} {whole or run.config.output}")
            return 128 + number
    return 0
