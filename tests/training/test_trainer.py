import pytest

from vnet_fast.run.configuration import Config
from vnet_fast.run.log import read_log
from vnet_fast.training import trainer
from vnet_fast.training.trainer import Trainer


def config_of(cases, output, **settings):
    grid = {"volume": (16, 16, 16), "spacing": (1.5, 1.5, 2.0), "base_channels": 1}
    common = {"folds": 3, "device": "cpu", "iterations": 5, "val_every": 5}
    return Config(data=str(cases), output=str(output), **grid, **common, **settings)


def logged_rates(run):
    return [row.learning_rate for row in read_log(run / "log.csv")]


def test_the_log_has_the_learning_rate_of_the_schedule(cases, tmp_path, quick_training):
    with Trainer(config_of(cases, tmp_path / "run", lr_step=2, save_every=3)) as training:
        training.train()
    assert logged_rates(tmp_path / "run") == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5, 1e-6])


def test_the_log_has_the_learning_rate_that_was_applied(cases, tmp_path, quick_training, monkeypatch):
    """Of the step, whatever the schedule is: it is not computed a second time for the log."""
    rates = [3e-4, 1e-4, 2e-4, 5e-5, 1e-6]
    monkeypatch.setattr(trainer, "learning_rate", lambda config, iteration: rates[iteration])
    applied = []
    with Trainer(config_of(cases, tmp_path / "run")) as training:
        optimizer = training.step.optimizer
        update = optimizer.step

        def step(*given, **named):
            applied.append(optimizer.param_groups[0]["lr"])
            return update(*given, **named)

        monkeypatch.setattr(optimizer, "step", step)
        training.train()
    assert applied == rates
    assert logged_rates(tmp_path / "run") == pytest.approx(rates)
