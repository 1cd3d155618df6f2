"""A training run, from top to bottom: what starts it, the loop, and what ends it."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from vnet_fast.data.training_data import load_data_once
from vnet_fast.devices import choose_precision, device_name, find_device, make_deterministic
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError
from vnet_fast.nn.vnet import VNet
from vnet_fast.ops.cpu_convolution_choice import description
from vnet_fast.progress import say
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import BEST, LOG, RunFolder, write_config
from vnet_fast.run.initial import prepare
from vnet_fast.run.log import Log, network_text, recipe_text
from vnet_fast.training.batches import make_sampler, make_source
from vnet_fast.training.divergence import check_losses, check_weights
from vnet_fast.training.memory import explain_failure, make_step
from vnet_fast.training.network import make_training_step, make_vnet
from vnet_fast.training.read_back import ReadBack
from vnet_fast.training.resume import restore
from vnet_fast.training.schedule import learning_rate
from vnet_fast.training.signals import StopSignal
from vnet_fast.training.sources import Source
from vnet_fast.training.summary import Result, finish
from vnet_fast.training.timing import Timing, duration
from vnet_fast.training.validation import Best, intervals
from vnet_fast.training.validator import Validator

# the end of a run whose length is not known yet
NEVER = 1 << 40


class Trainer(AbstractContextManager["Trainer"]):
    """A training run in its folder. It must be closed.

    Args:
        config: of the run.
        processes: None, or the processes that train together.
        make_network: makes the network of a Config and of the numbers of classes and channels.

    Raises:
        InputError, InputErrors: if data, folder, device or checkpoint can't be used.
    """

    def __init__(
        self,
        config: Config,
        processes: Processes | None = None,
        make_network: Callable[[Config, int, int], VNet] = make_vnet,
    ) -> None:
        self.processes, self.make_network = processes or Processes(), make_network
        self.folder: RunFolder | None = None
        try:
            self._start(config)
        except BaseException:
            self.close(failed=True)
            raise

    # What starts a run

    def _start(self, config: Config) -> None:
        if config.deterministic:
            make_deterministic()
        try:
            self.device = self.processes.start(find_device(config.device))
        except RuntimeError as error:
            raise InputError("--nproc-per-node", str(error), "Start fewer processes") from None
        # the default name is the time, which differs between processes
        self.config = replace(config, output=self.processes.first(config.output))
        self.autocast, precision = choose_precision(config.amp, self.device)
        together = f", {self.processes.count} processes" if self.processes.several else ""
        say(f"device: {device_name(self.device)}{together}, {precision}{description(self.device)}")
        self.data = load_data_once(self.config, self.processes)
        if self.processes.is_first:
            self.folder = RunFolder(self.config.output, resume=bool(config.resume))
        self.processes.wait()
        self.iteration, self.seconds, self.best = 0, 0.0, Best()
        # there is no checkpoint of a run whose number of iterations is not known
        self.is_planned = config.minutes is None or bool(config.resume)
        self._make_network()
        if config.resume:
            state = restore(self.folder, self.config, self.processes, self.model, self.step, self.data)
            self.iteration, self.seconds, self.best = state.iteration, state.seconds, state.best
            self.config = replace(self.config, batch_size=state.batch_size)
        self.step.model = self.processes.wrap(self.model)
        if self.folder:
            write_config(self.folder.path, self.config)
        say(network_text(config, sum(weight.numel() for weight in self.model.parameters())))
        say(recipe_text(config))
        say(f"run: {self.config.output}")

    def _make_network(self) -> None:
        config = self.config
        torch.manual_seed(config.seed)
        self.model = self.make_network(config, self.data.outputs, len(self.data.channels))
        prepare(self.model, config.init, config.freeze, bool(config.resume), self.data.description)
        self.model.to(self.device)
        # several processes average their gradients between kernels, which the graph of one process can't hold
        self.step = make_training_step(self.model, config, self.autocast, not self.processes.several, self.data)
        self.validator = Validator(self.model, self.data, config, self.autocast, self.processes)

    def _make_source(self) -> Source:
        config = self.config
        self.sampler = make_sampler(config, self.data, self.processes)
        dtype, end = self.autocast or torch.float32, config.iterations if self.is_planned else NEVER
        iterations = range(self.iteration, end)
        source = make_source(self.data, self.sampler, self.device, dtype, iterations, config.workers)
        self.step.prepare = source.prepare
        graph = ", a step is one CUDA graph" if self.step.wants_graph else ""
        say(f"batches: {source.description}{graph}")
        return source

    # The loop

    def train(self) -> int | None:
        """Trains to the last iteration or a signal; returns the signal's number, or None."""
        self.stop = StopSignal(second_ends=not self.processes.several)
        source = self._make_source()
        self.log = Log(self.folder / LOG, self.iteration, self.config, self.data.titles) if self.folder else None
        self.losses = ReadBack(self.iteration)
        try:
            self._start_timing()
            self._start_clock()
            while not self.is_finished:
                self._update(source)
                stopping = self.processes.any(self.stop.number is not None)
                self._note_time()
                val_every, save_every = self._intervals(self.config.iterations)
                validating = self.is_finished or (self.is_planned and self.iteration % val_every == 0)
                # the first iteration too, so that there is always something to resume
                saving = validating or stopping or self.iteration == 1 or self.iteration % save_every == 0
                # a run whose number of iterations is not known can't be resumed
                saving = saving and self.is_planned
                if saving or self.losses.full:
                    self._report(validating, saving)
                if stopping:
                    break
        except (RuntimeError, MemoryError) as error:
            explanation = explain_failure(error, self.device)
            if explanation is None:
                raise
            raise explanation from None
        finally:
            if self.log:
                self.log.close()
            source.close()
        return max(self.processes.gathered(self.stop.number or 0)) or None

    def _update(self, source: Source) -> None:
        """One iteration."""
        self.step.set_learning_rate(learning_rate(self.config, self.iteration))
        loss = make_step(self.step, source.inputs(self.iteration), self.config, not self.processes.several)
        self.losses.add(loss, self.step.learning_rate)
        self.iteration += 1

    # How long it takes

    def _start_timing(self) -> None:
        self.timing = None
        if not self.config.resume:
            self.timing = Timing(self.config, self.device, self.processes, self._intervals)
        if self.timing and not self.is_planned:
            self._limit_validation(self.timing)

    def _limit_validation(self, timing: Timing) -> None:
        """Measures a validation, and leaves out cases if it takes much of the run's time."""
        seconds, count = self.validator.seconds(), len(self.validator.cases)
        affordable = timing.affordable(count, seconds)
        if affordable < count:
            self.config = replace(self.config, val_cases=affordable)
            self.validator.limit(affordable)
            say(f"validation: of {affordable} of {count} held-out cases, because all take {duration(seconds)}")

    def _note_time(self) -> None:
        """Notes an iteration. When enough are timed, it says how long all of them take, or sets their number."""
        if self.timing is None or not self.timing.add():
            return
        timing, self.timing = self.timing, None
        if not self.is_planned:
            # twice, because only a checkpoint tells how long another one takes
            for _ in range(2):
                self._set_iterations(timing.iterations(self.iteration))
                began = time.monotonic()
                self._report(validating=False, saving=True)
                timing.save_seconds = time.monotonic() - began
        say(timing.plan(self.config.iterations))

    def _set_iterations(self, iterations: int) -> None:
        self.config, self.is_planned = replace(self.config, iterations=iterations), True
        if self.folder:
            write_config(self.folder.path, self.config)
        if self.log:
            self.log.set_iterations(iterations)

    def _intervals(self, iterations: int) -> tuple[int, int]:
        """Iterations from one validation, and from one checkpoint, to the next, if the run has so many."""
        volumes = self.config.batch_size * self.processes.count
        return intervals(self.config, iterations, volumes, self.validator.num_windows)

    # What follows some iterations

    def _report(self, validating: bool, saving: bool) -> None:
        """Reads losses back, checks and logs them; validates and saves."""
        first, losses, rates = self.losses.read(everything=saving)
        losses = np.mean(self.processes.gathered(losses), axis=0).tolist()
        # the scaler of float16 skips updates that overflow, and tries a smaller scale
        if not self.step.still_scales():
            check_losses(losses, first, self.sampler, self.data, self.config.output)
        if saving:
            check_weights(self.model, self.iteration, self.config.output)
        spent = time.monotonic() - self.began
        self.seconds += spent
        per_case = self._validate() if validating else None
        if self.log:
            volumes = (self.iteration - self.since) * self.config.batch_size * self.processes.count
            self.log.add(first, losses, rates, volumes / spent, per_case)
        if self.step.refusal:
            say(f"no CUDA graph of the step, which runs eagerly: {self.step.refusal}")
            self.step.refusal = None
        if saving:
            self._save_last()
        self._start_clock()

    def _start_clock(self) -> None:
        # validation and saving do not count as training
        self.began, self.since = time.monotonic(), self.iteration

    def _validate(self) -> dict[str, list[float]]:
        with self.step.averaged():
            per_case = self.validator.dice(shows_progress=self.folder is not None)
        if self.best.improved_by(self.iteration, per_case) and self.folder:
            with self.step.averaged():
                checkpoint.save(self.folder / BEST, self.model, **self._description())
        if self.is_finished and self.iteration < self.config.iterations:
            say(f"no higher Dice in {self.best.since} validations: the run ends here")
        return per_case

    def _save_last(self) -> None:
        if self.folder:
            with self.step.averaged():
                self.folder.save_last(self.model, **self.step.state_dict(), seconds=self.seconds, **self._description())

    def _description(self) -> dict[str, Any]:
        """What a checkpoint says beside its weights."""
        return {
            "iteration": self.iteration,
            "best": asdict(self.best),
            "config": asdict(self.config),
            "batch": self.config.batch_size * self.processes.count,
            "spacing": list(self.config.spacing),
            "volume": list(self.config.volume),
            **self.data.description,
        }

    # What ends a run

    @property
    def is_finished(self) -> bool:
        """Whether the last iteration is done, or validations have not gained for as long as the run's patience."""
        return self.is_planned and (
            self.iteration >= self.config.iterations or self.best.exhausts(self.config.patience)
        )

    def finish(self) -> None:
        """Writes the result of a finished run, with pictures, and prints it.

        Raises:
            KeyboardInterrupt: if a signal came before the result was written.
        """
        if self.folder:
            # neither the graph nor gradients are needed for prediction
            self.step.release()
            volumes = self.iteration * self.config.batch_size * self.processes.count
            result = Result(
                self.best, self.iteration, volumes, self.seconds, self.device, self.processes.count, self.autocast
            )
            finish(self.folder, result, self.model, self.data, self.config, lambda: self.stop.number is not None)

    def close(self, failed: bool = False) -> None:
        """Unlocks the folder and leaves the other processes; a failed run does not wait for them."""
        if self.folder:
            self.folder.close()
        if hasattr(self, "step"):
            # the wrapped model keeps the communication threads alive
            self.step.model = self.model
        self.processes.end(failed)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(failed=kind is not None)
