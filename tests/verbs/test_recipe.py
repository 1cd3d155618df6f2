"""The settings of recipes from the command line to the result: which win, what is stored, and where a run goes on."""

import csv
import functools
import itertools
import json
import re
import signal
import types

import pytest
import torch

from tests.send_signal import send
from tests.training.test_resume import assert_equal
from vnet_fast import train
from vnet_fast.data import training_data
from vnet_fast.devices import HOST
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import stored_config
from vnet_fast.run.configure import configure
from vnet_fast.run.recipes import CPU_CHANNELS, RECIPES
from vnet_fast.training import timing, trainer, validator
from vnet_fast.training.validation import validate

SMALL = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
# all that a recipe may change, in a run so short that each of them acts
FAST = ["--recipe", "fast", "--warmup", 2, "--clip", 0.05, "--ema", 0.8, "--val-every", 2]

pytestmark = pytest.mark.usefixtures("quick_training")


def json_of(path):
    return json.loads(path.read_text())


def rows_of(run):
    """Iteration, loss, learning rate and validation Dice."""
    with open(run / "log.csv", newline="") as file:
        return [row[:4] for row in csv.reader(file)][1:]


def assert_same_run(ours, theirs):
    contents = [torch.load(run / "last.pt", weights_only=True) for run in (ours, theirs)]
    for part in ("iteration", "model", "optimizer", "scaler", "average", "best"):
        assert_equal(contents[0].get(part), contents[1].get(part), part)
    assert_equal(checkpoint.load(ours / "best.pt")["model"], checkpoint.load(theirs / "best.pt")["model"], "best.pt")
    assert rows_of(ours) == rows_of(theirs)


def stop_at(monkeypatch, iteration, number=signal.SIGTERM):
    """Sends a signal in the middle of an iteration."""
    update = trainer.Trainer._update

    def stopping(run, source):
        if run.iteration + 1 == iteration:
            send(number, lambda: run.stop.number)
        return update(run, source)

    monkeypatch.setattr(trainer.Trainer, "_update", stopping)


# Options

SIZES = [(48, 16, 15), (16, 40, 40), (32, 48, 63), (128, 128, 64)]


def test_a_recipe_sets_what_is_not_given():
    config = configure({"data": "x", "recipe": "fast", "learning_rate": 0.5, "clip": 3.0})
    assert (config.recipe, config.learning_rate, config.clip) == ("fast", 0.5, 3.0)
    for name, value in RECIPES["fast"].items():
        assert getattr(config, name) == value or name in ("learning_rate", "clip")
    assert configure({"data": "x", "output": "y", "recipe": "paper"}) == configure({"data": "x", "output": "y"})
    assert [configure({"data": "x", "recipe": "fast", "volume": size}).levels for size in SIZES] == [2, 3, 4, 5]
    assert configure({"data": "x", "recipe": "fast", "device": "cpu"}).base_channels == CPU_CHANNELS


@pytest.mark.parametrize(
    ("spacing", "volume", "levels", "halvings"),
    [
        ((1.0, 1.0, 1.9), (64, 64, 64), 5, None),
        ((0.6, 0.6, 3.6), (64, 64, 20), 5, (4, 4, 2)),
        ((1.0, 2.0, 1.0), (64, 64, 64), 5, (4, 3, 4)),
        # of fewer slices the coarsest resolution would have one
        ((0.6, 0.6, 3.6), (64, 64, 10), 4, (3, 3, 1)),
        ((1.0, 1.0, 100.0), (64, 64, 4), 5, (4, 4, 0)),
        # an axis that is not halved may be as short as it is
        ((0.5, 0.5, 4.0), (256, 256, 3), 4, (3, 3, 0)),
    ],
)
def test_the_fast_recipe_halves_a_coarse_axis_less_often(spacing, volume, levels, halvings):
    config = configure({"data": "x", "recipe": "fast", "volume": volume, "spacing": spacing})
    assert (config.levels, config.halvings) == (levels, halvings)
    assert configure({"data": "x", "volume": (64, 64, 64), "spacing": spacing}).halvings is None


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_levels_follow_from_halvings(recipe):
    config = configure({"data": "x", "recipe": recipe, "halvings": [2, 2, 1]})
    assert (config.levels, config.halvings) == (3, (2, 2, 1))
    with pytest.raises(InputError, match="--halvings: must be from 0 to 3, the steps of 4 levels"):
        configure({"data": "x", "recipe": recipe, "halvings": [2, 2, 1], "levels": 4})


def test_without_data_it_learns_by_the_fast_recipe():
    config = configure({"device": "cpu", "gamma": (0.0, 1.0, 1.0)})
    assert (config.recipe, config.schedule, config.base_channels) == ("fast", "poly", CPU_CHANNELS)
    assert (config.volume, config.levels, config.gamma) == ((48, 48, 32), 4, (0.0, 1.0, 1.0))
    config = configure({"device": "cpu", "recipe": "paper"})
    assert (config.recipe, config.optimizer, config.schedule, config.volume) == ("paper", "sgd", "step", (48, 48, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--minutes", 1, "--iterations", 5], "--minutes: given with --iterations. Give one of them"),
        (["--minutes", 0], "argument --minutes: must be a number above 0; got '0'"),
        (["--minutes", "nan"], "argument --minutes: must be a number above 0; got 'nan'"),
        (["--patience", 0], "argument --patience: must be a whole number above 0; got '0'"),
        (["--ema", 1], "argument --ema: must be a number from 0 to below 1; got '1'"),
        (["--clip", 0], "argument --clip: must be a number above 0; got '0'"),
        (["--warmup", -1], "argument --warmup: must be a whole number, 0 or more; got '-1'"),
        (["--warmup", 10**12], "--warmup: must be at most 2147483647; got 1000000000000"),
        (["--schedule", "linear"], "argument --schedule: invalid choice: 'linear'"),
        (["--recipe", "slow"], "argument --recipe: invalid choice: 'slow'"),
        (["--optimizer", "nesterov", "--momentum", 0], "--momentum: is 0 with --optimizer nesterov"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line(options, message, tmp_path, run_verb):
    code, _, err = run_verb(train, "--output", tmp_path / "run", *options)
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# A run


def test_a_run_stopped_and_resumed_is_the_whole_run(cases, tmp_path, run_verb, monkeypatch):
    """With averaged weights in its checkpoints, from which it goes on with those that are trained."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--data", cases, *SMALL, *FAST, "--iterations", 6]
    code, out, err = run_verb(train, *arguments, "--output", whole)
    assert code == 0, err
    rate = RECIPES["fast"]["learning_rate"]
    text = f"recipe: fast, dice-ce, adamw, learning rate {rate:g}, poly, warm-up of 2 iterations, "
    text += "gradients clipped at 0.05, "
    assert text + "weights averaged with 0.8\n" in out
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    assert run_verb(train, "--resume", parts, "--recipe", "fast")[0] == 0
    assert_same_run(parts, whole)
    check_average(parts)
    code, _, err = run_verb(train, "--resume", whole, "--ema", 0.5)
    assert code == 2
    assert err.startswith("error: --ema: is 0.5 here and 0.8 in")
    config, summary = json_of(whole / "config.json"), json_of(whole / "summary.json")
    for stored in (config, summary):
        assert (stored["recipe"], stored["schedule"], stored["warmup"]) == ("fast", "poly", 2)
        assert (stored["clip"], stored["ema"], stored["learning_rate"]) == (0.05, 0.8, rate)


def check_average(run):
    """The averaged weights are those that were validated and that predict."""
    best, last = (checkpoint.load(run / name) for name in ("best.pt", "last.pt"))
    assert "average" not in best
    data = training_data.load_data(stored_config(run))
    model = checkpoint.build_model(best, run / "best.pt", HOST)
    assert validate(model, data.validation, data.num_classes) == best["best"]["per_case"]
    raw = last["average"]["raw"]
    assert last["average"]["updates"] == last["iteration"]
    assert raw.keys() == last["model"].keys()
    assert not all(torch.equal(raw[name], last["model"][name]) for name in raw)


# Patience


def lasting(monkeypatch, dice):
    """Validations with these Dice, one after the other."""
    values = iter(dice)

    def validate(model, cases, *_):
        value = next(values)
        return {case.name: [value] for case in cases}

    monkeypatch.setattr(validator, "validate", validate)


def test_patience_ends_a_run_that_does_not_gain(cases, tmp_path, run_verb, monkeypatch):
    run = tmp_path / "run"
    arguments = ["--data", cases, *SMALL, "--iterations", 9, "--val-every", 1, "--patience", 2, "--output", run]
    with monkeypatch.context() as patch:
        lasting(patch, [0.1, 0.3, 0.2, 0.4, 0.4, 0.3])
        code, out, err = run_verb(train, *arguments)
    assert code == 0, err
    assert "no higher Dice in 2 validations: the run ends here\n" in out
    summary = json_of(run / "summary.json")
    assert (summary["iterations"], summary["best_iteration"], summary["validations_without_gain"]) == (6, 4, 2)
    assert summary["val_dice"] is not None
    code, _, err = run_verb(train, "--resume", run)
    assert code == 2
    assert err.endswith("run: has ended: no higher Dice in 2 validations. Give more --patience\n")
    with monkeypatch.context() as patch:
        lasting(patch, [0.5, 0.5, 0.5])
        code, out, err = run_verb(train, "--resume", run, "--patience", 3)
    assert code == 0, err
    assert json_of(run / "summary.json")["iterations"] == 9
    assert len(rows_of(run)) == 9


@pytest.mark.exhaustive
def test_a_fold_that_patience_has_ended_is_finished(cases, tmp_path, run_verb, monkeypatch):
    run = tmp_path / "run"
    arguments = ["--data", cases, *SMALL[:-1], 2, "--iterations", 5, "--val-every", 1, "--patience", 1, "--fold", "all"]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        # stopped in the second fold, whose first validations gain
        lasting(patch, [0.5, 0.4, 0.1, 0.2, 0.3])
        assert run_verb(train, *arguments, "--output", run)[0] == 128 + signal.SIGTERM
    lasting(monkeypatch, [0.4, 0.3])
    code, out, err = run_verb(train, "--resume", run)
    assert code == 0, err
    assert "fold 0: finished at iteration 2" in out
    summary = json_of(run / "summary.json")
    assert [fold["iterations"] for fold in summary["folds"]] == [2, 5]
    assert summary["iterations"] == 5


# Minutes


@pytest.fixture
def clock(monkeypatch):
    """An iteration takes a fifth of a second, because that is when the clock is looked at; other things take less."""
    for module, tick in ((timing, 0.2), (trainer, 0.01)):
        ticks = itertools.count(1)
        monotonic = functools.partial(lambda ticks, tick: tick * next(ticks), ticks, tick)
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr(validator, "seconds_of_a_validation", lambda *_: 0.02)


MINUTES = [*SMALL, "--recipe", "fast", "--minutes", 0.05]


@pytest.mark.usefixtures("clock")
def test_minutes_are_a_number_of_iterations(cases, tmp_path, run_verb, monkeypatch):
    """A run of some minutes is that of as many iterations, also if it is stopped and resumed."""
    timed, counted, parts = tmp_path / "timed", tmp_path / "counted", tmp_path / "parts"
    code, out, err = run_verb(train, "--data", cases, *MINUTES, "--output", timed)
    assert code == 0, err
    planned = re.search(r"planned: (\d+) iterations of \S+ s each, which with 1 validation take 0.05 minutes\n", out)
    iterations = int(planned[1])
    assert 8 < iterations < 20
    assert json_of(timed / "config.json")["iterations"] == iterations
    assert checkpoint.load(timed / "last.pt")["config"]["iterations"] == iterations
    assert len(rows_of(timed)) == json_of(timed / "summary.json")["iterations"] == iterations
    assert rows_of(timed)[-1][3]
    same = ["--data", cases, *MINUTES[:-2], "--iterations", iterations, "--output", counted]
    assert run_verb(train, *same)[0] == 0
    assert_same_run(timed, counted)
    with monkeypatch.context() as patch:
        stop_at(patch, iterations - 2)
        assert run_verb(train, "--data", cases, *MINUTES, "--output", parts)[0] == 128 + signal.SIGTERM
    assert run_verb(train, "--resume", parts, "--minutes", 0.05)[0] == 0
    assert_same_run(parts, counted)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("clock")
def test_a_validation_that_takes_much_of_the_minutes_leaves_cases_out(cases, tmp_path, run_verb, monkeypatch):
    monkeypatch.setattr(validator, "seconds_of_a_validation", lambda *_: 3.0)
    run, parts, given = tmp_path / "run", tmp_path / "parts", tmp_path / "given"
    arguments = ["--data", cases, *MINUTES, "--folds", 2]
    code, out, err = run_verb(train, *arguments, "--output", run)
    assert code == 0, err
    # a tenth of three seconds
    assert "\nvalidation: of 1 of 3 held-out cases, because all take 3 seconds\n" in out
    summary = json_of(run / "summary.json")
    assert len(summary["network_grid_dice_per_case"]) == 1
    assert len(summary["val_dice_per_case"]) == 3
    iterations = json_of(run / "config.json")["iterations"]
    assert json_of(run / "config.json")["val_cases"] == 1
    # what is given stays, and a resumed run validates the same cases
    with monkeypatch.context() as patch:
        stop_at(patch, iterations - 2)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    assert run_verb(train, "--resume", parts, "--val-cases", 2)[0] == 2
    code, out, err = run_verb(train, "--resume", parts)
    assert code == 0, err
    assert_same_run(parts, run)
    code, out, _ = run_verb(train, *arguments, "--val-cases", 2, "--output", given)
    assert code == 0
    assert "held-out cases, because" not in out
    assert len(json_of(given / "summary.json")["network_grid_dice_per_case"]) == 2


@pytest.mark.usefixtures("clock")
def test_a_run_that_is_stopped_while_it_is_timed_starts_again(cases, tmp_path, run_verb, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        code, out, _ = run_verb(train, "--data", cases, *MINUTES, "--output", run)
    assert code == 128 + signal.SIGTERM
    assert out.endswith("stopped at iteration 2. It was still timed, and is not saved\n")
    assert not (run / "last.pt").exists()
    code, _, err = run_verb(train, "--data", cases, *MINUTES, "--output", run)
    assert code == 0, err
    code, _, err = run_verb(train, "--resume", run, "--minutes", 2)
    assert code == 2
    assert err.startswith("error: --minutes: is 2.0 here and 0.05 in")
    # but it may have more iterations, which no minutes bound
    more = json_of(run / "config.json")["iterations"] + 1
    assert run_verb(train, "--resume", run, "--iterations", more)[0] == 0
    assert (json_of(run / "config.json")["minutes"], len(rows_of(run))) == (None, more)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("clock")
def test_every_fold_has_its_minutes(cases, tmp_path, run_verb, monkeypatch):
    # for which a validation of both cases takes too long
    monkeypatch.setattr(validator, "seconds_of_a_validation", lambda *_: 3.0)
    run = tmp_path / "run"
    arguments = ["--data", cases, *MINUTES, "--folds", 2, "--fold", "all", "--output", run]
    with monkeypatch.context() as patch:
        stop_at(patch, 8)
        assert run_verb(train, *arguments)[0] == 128 + signal.SIGTERM
    planned = json_of(run / "fold0" / "config.json")["iterations"]
    assert json_of(run / "fold0" / "config.json")["val_cases"] == 1
    with monkeypatch.context() as patch:
        # only of the fold that is timed
        stop_at(patch, 1)
        code, out, err = run_verb(train, "--resume", run)
    assert code == 128 + signal.SIGTERM
    resume = f"Resume with: python -m vnet_fast.train --resume {run}"
    assert out.endswith(f"stopped at iteration 1. It was still timed, and is not saved. {resume}\n")
    code, out, err = run_verb(train, "--resume", run)
    assert code == 0, err
    assert "fold 0: finished at iteration" in out
    folds = json_of(run / "summary.json")["folds"]
    assert folds[0]["iterations"] == planned
    assert folds[1]["iterations"] == json_of(run / "fold1" / "config.json")["iterations"] < 30_000
    code, _, err = run_verb(train, "--resume", run, "--iterations", 99)
    assert code == 2
    assert "--iterations: given to folds that train for 0.05 minutes each. Leave it out, or resume one fold" in err
    # as it says
    assert run_verb(train, "--resume", run / "fold0", "--iterations", planned + 1)[0] == 0
    code, _, err = run_verb(train, "--resume", run)
    assert code == 0, err
    assert json_of(run / "summary.json")["folds"][0]["iterations"] == planned + 1
