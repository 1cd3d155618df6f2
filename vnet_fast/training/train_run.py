"""A whole run, from its settings to its result or to the command that resumes it."""

from pathlib import Path

from vnet_fast.progress import say
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import holds_run, resume_hint
from vnet_fast.training.trainer import Trainer


def train_run(config: Config, cross_validation: str | None = None) -> int:
    """Trains a run and finishes it, or prints how to resume it.

    Args:
        config: of the run.
        cross_validation: None, or the folder of the cross-validation that the run is a fold of. A signal ends the
            whole cross-validation.

    Returns:
        exit code.
    """
    with Trainer(config) as trainer:
        number, is_complete = trainer.train(), trainer.is_finished
        if is_complete:
            try:
                trainer.finish()
            except KeyboardInterrupt:
                is_complete = False
        # a signal may also come while the held-out cases of a fold are predicted
        number = number or trainer.stop.number
        if number is not None and (cross_validation or not is_complete):
            run = cross_validation or trainer.config.output
            hints = [] if trainer.is_planned else ["It was still timed, and is not saved"]
            if trainer.is_planned or any(map(holds_run, Path(run).glob("fold*"))):
                hints.append(resume_hint(run))
            say(f"stopped at iteration {trainer.iteration}. {'. '.join(hints)}")
            return 128 + number
    return 0
