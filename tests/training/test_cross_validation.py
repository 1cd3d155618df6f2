import csv
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.send_signal import send
from vnet_fast import evaluate, train
from vnet_fast.data import training_data
from vnet_fast.run import checkpoint
from vnet_fast.run.configuration import Config
from vnet_fast.run.folder import write_config
from vnet_fast.training import trainer
from vnet_fast.training.cross_validation import fold_config

TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--seed", 1]
TINY += ["--learning-rate", 0.01, "--optimizer", "adamw", "--lr-step", 2]
ALL_FOLDS = [*TINY, "--fold", "all"]
NAMES = {f"Case{index:02d}" for index in range(6)}

pytestmark = pytest.mark.usefixtures("quick_training")


def losses_of(run):
    with open(run / "log.csv", newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def json_of(path):
    return json.loads(path.read_text())


def assert_same_weights(ours, theirs):
    ours, theirs = (checkpoint.load(path)["model"] for path in (ours, theirs))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_all_folds_are_trained_as_single_runs_and_collected(cases, tmp_path, run_verb):
    run, common = tmp_path / "run", ["--data", cases, *TINY, "--folds", 3, "--iterations", 2]
    code, out, err = run_verb(train, *common, "--fold", "all", "--output", run)
    assert code == 0, err
    assert json_of(run / "config.json")["fold"] == "all"
    per_case, folds = {}, []
    for fold in range(3):
        assert json_of(run / f"fold{fold}" / "config.json")["fold"] == fold
        one = json_of(run / f"fold{fold}" / "summary.json")
        assert not per_case.keys() & one["val_dice_per_case"].keys()
        per_case |= one["val_dice_per_case"]
        names = ("val_dice", "network_grid_dice", "best_iteration", "iterations")
        folds.append({"fold": fold, "cases": 2, **{name: one[name] for name in names}})
        row = [str(fold), "2", f"{one['val_dice']:.4f}", f"{one['network_grid_dice']:.4f}", str(one["best_iteration"])]
        assert row in [line.split() for line in out.splitlines()]
        for prediction in (run / f"fold{fold}" / "predictions").glob("*.zraw"):
            # not predicted twice
            assert (run / "predictions" / prediction.name).read_bytes() == prediction.read_bytes()
    assert out.count("predicting 2 cases held out by") == 3
    summary = json_of(run / "summary.json")
    assert per_case.keys() == NAMES
    assert summary["val_dice_per_case"] == per_case
    assert summary["folds"] == folds
    values = list(per_case.values())
    assert summary["val_dice"] == pytest.approx(np.mean(values))
    assert summary["val_dice_standard_deviation"] == pytest.approx(np.std(values, ddof=1))
    assert f"all      6  {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}" in out

    hint = next(line for line in out.splitlines() if line.startswith("evaluate with: "))
    code, shown, err = run_verb(evaluate, *hint.removeprefix("evaluate with: python -m vnet_fast.evaluate ").split())
    assert code == 0, err
    assert all(name in shown for name in NAMES)
    assert ["mean", "±", "SD", "1", "whole", f"{summary['val_dice']:.4f}"] in [
        line.split()[:6] for line in shown.splitlines()
    ]

    assert run_verb(train, *common, "--fold", 1, "--output", tmp_path / "single")[0] == 0
    assert_same_weights(run / "fold1" / "last.pt", tmp_path / "single" / "last.pt")

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.suffix in (".pt", ".zraw")}
    assert len(before) == 3 * 3 + 2 * 6
    code, again, err = run_verb(train, "--resume", run)
    assert code == 0, err
    assert again.count("finished at iteration 2") == 3
    assert "predicting" not in again
    assert again.splitlines()[-3:] == out.splitlines()[-3:]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.exhaustive
def test_folds_of_other_machines_are_taken_over(cases, tmp_path, run_verb):
    """One finished, one begun; the others are trained."""
    run, common = tmp_path / "run", ["--data", cases, *TINY, "--folds", 3]
    assert run_verb(train, *common, "--fold", 0, "--iterations", 3, "--output", run / "fold0")[0] == 0
    assert run_verb(train, *common, "--fold", 2, "--iterations", 2, "--output", run / "fold2")[0] == 0
    finished = (run / "fold0" / "last.pt").read_bytes()
    code, out, err = run_verb(train, *common, "--fold", "all", "--iterations", 3, "--output", run)
    assert code == 0, err
    assert out.count("fold 0: finished at iteration 3") == 1
    assert out.count("resuming at iteration 2") == 1
    assert [len(losses_of(run / f"fold{fold}")) for fold in range(3)] == [3, 3, 3]
    assert (run / "fold0" / "last.pt").read_bytes() == finished
    assert json_of(run / "summary.json")["val_dice_per_case"].keys() == NAMES
    code, _, err = run_verb(train, "--resume", run, "--iterations", 2)
    assert code == 2
    assert "fold0: is at iteration 3 of 2. Give more --iterations" in err


def test_a_fold_that_has_not_begun_takes_nothing_of_what_a_failed_one_left(tmp_path):
    folder = tmp_path / "fold0"
    folder.mkdir()
    write_config(folder, Config(data="x", fold=0, val_cases=1, output=str(folder)))
    config = Config(data="x", fold="all", minutes=5.0, output=str(tmp_path))
    assert fold_config(config, 0) == replace(config, fold=0, output=str(folder))


def stop_at(monkeypatch, fold, iteration, number):
    """Sends a signal in the middle of a fold's iteration."""
    update = trainer.Trainer._update

    def stopping(run, source):
        if (run.config.fold, run.iteration + 1) == (fold, iteration):
            send(number, lambda: run.stop.number)
        return update(run, source)

    monkeypatch.setattr(trainer.Trainer, "_update", stopping)


@pytest.mark.exhaustive
def test_a_signal_stops_all_folds_and_the_whole_is_resumed(cases, tmp_path, run_verb, monkeypatch):
    run, whole = tmp_path / "run", tmp_path / "whole"
    common = ["--data", cases, *ALL_FOLDS, "--folds", 2, "--iterations", 3]
    assert run_verb(train, *common, "--output", whole)[0] == 0
    arguments = [*common, "--output", run]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for fold, number in ((0, signal.SIGINT), (1, signal.SIGTERM)):
        with monkeypatch.context() as patch:
            stop_at(patch, fold, 2, number)
            code, out, _ = run_verb(train, *arguments)
        assert code == 128 + number
        assert out.endswith(f"stopped at iteration 2. Resume with: python -m vnet_fast.train --resume {run}\n")
        assert not (run / "summary.json").exists()
        assert (run / "fold1").exists() == (fold == 1)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
        arguments = ["--resume", run]
    assert run_verb(train, *arguments)[0] == 0
    for fold in ("fold0", "fold1"):
        assert losses_of(run / fold) == losses_of(whole / fold)
        assert_same_weights(run / fold / "best.pt", whole / fold / "best.pt")


@pytest.mark.parametrize("moment", ["before the predictions", "after the result"])
def test_a_signal_at_the_end_of_a_fold_begins_no_other(cases, tmp_path, run_verb, monkeypatch, moment):
    run, finish = tmp_path / "run", trainer.finish

    def stopping(*given):
        # the last argument tells whether a signal has come
        if moment == "before the predictions":
            send(signal.SIGTERM, given[-1])
        finish(*given)
        if moment == "after the result":
            send(signal.SIGTERM, given[-1])

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "finish", stopping)
        code, out, _ = run_verb(train, "--data", cases, *ALL_FOLDS, "--folds", 2, "--iterations", 1, "--output", run)
    assert code == 128 + signal.SIGTERM
    assert f"--resume {run}\n" in out
    assert (run / "fold0" / "summary.json").exists() == (moment == "after the result")
    assert not (run / "fold1").exists()
    assert run_verb(train, "--resume", run)[0] == 0
    assert json_of(run / "summary.json")["val_dice_per_case"].keys() == NAMES


@pytest.mark.exhaustive
def test_phantoms(tmp_path, run_verb, monkeypatch):
    monkeypatch.setattr(training_data, "NUM_PHANTOMS", 5)
    run = tmp_path / "run"
    code, out, err = run_verb(train, *ALL_FOLDS, "--folds", 2, "--iterations", 1, "--output", run)
    assert code == 0, err
    names = {f"phantom0{index}" for index in range(5)}
    assert {path.name.removesuffix(".nii.gz") for path in (run / "predictions").glob("*.nii.gz")} == names
    assert json_of(run / "summary.json")["val_dice_per_case"].keys() == names
    assert f"--predictions {run / 'predictions'} --labels {run / 'phantoms'}\n" in out


@pytest.mark.exhaustive
def test_folders_of_another_kind_are_refused(cases, tmp_path, run_verb):
    single, parts = tmp_path / "single", tmp_path / "parts"
    common = ["--data", cases, "--folds", 2, "--iterations", 1]
    assert run_verb(train, *common, *TINY, "--output", single)[0] == 0
    assert run_verb(train, *common, *TINY, "--fold", 1, "--output", parts / "fold1")[0] == 0
    for arguments, message in (
        ([*ALL_FOLDS, "--output", single], "single: holds a run of one fold. Choose another --output"),
        ([*ALL_FOLDS, "--output", parts, "--topology", "caffe"], "fold1: its --topology is paper, not caffe. Give the"),
        ([*ALL_FOLDS, "--output", parts, "--spacing", 1, 1, 2], "fold1: its --spacing is 1.5 1.5 2.0, not 1.0 1.0 2.0"),
        ([*TINY, "--output", parts], "parts: holds a run already"),
    ):
        code, _, err = run_verb(train, *common, *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    assert [path.name for path in parts.iterdir()] == ["fold1"]
    assert run_verb(train, *common, *ALL_FOLDS, "--output", parts)[0] == 0
    for arguments, message in (
        (["--resume", parts, "--fold", 1], "--fold: is 1 here and all in"),
        ([*common, *ALL_FOLDS, "--output", parts, "--folds", 3], "parts: its --folds is 2, not 3"),
        (["--resume", single, "--fold", "all"], "--fold: is all here and 0 in"),
    ):
        code, _, err = run_verb(train, *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1


def test_bad_data_leaves_nothing(cases, tmp_path, run_verb):
    (cases / "Case02.zraw").unlink()
    code, _, err = run_verb(train, "--data", cases, *ALL_FOLDS, "--folds", 2, "--output", tmp_path / "run")
    assert code == 2
    assert "Case02.mhd: its data file Case02.zraw is missing" in err
    assert not (tmp_path / "run").exists()


def test_several_processes_are_told_what_to_do(cases, tmp_path, run_verb, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = run_verb(train, "--data", cases, *ALL_FOLDS, "--output", tmp_path / "run")
    assert code == 2
    assert err.startswith("error: --fold: all under torchrun. Give each fold's number and --output RUN/foldN")
    assert err.count("\n") == 1


def test_check(cases, tmp_path, run_verb):
    code, out, err = run_verb(train, "--data", cases, *ALL_FOLDS, "--check", "--output", tmp_path / "run")
    assert code == 0, err
    assert "6 of 6 cases can be read" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_a_result_without_a_checkpoint_is_not_trained_over(cases, tmp_path, run_verb):
    """Of a fold only `best.pt` and its result are kept, and the result is an older version's."""
    run, common = tmp_path / "run", ["--data", cases, *TINY, "--folds", 3, "--iterations", 1]
    assert run_verb(train, *common, "--fold", 0, "--output", run / "fold0")[0] == 0
    for name in ("last.pt", "previous.pt"):
        (run / "fold0" / name).unlink(missing_ok=True)
    summary = json_of(run / "fold0" / "summary.json")
    del summary["val_dice_per_case_and_class"]
    (run / "fold0" / "summary.json").write_text(json.dumps(summary))
    best = (run / "fold0" / "best.pt").read_bytes()
    code, _, err = run_verb(train, *common, "--fold", "all", "--output", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "fold0/summary.json: not a run's result" in err
    assert (run / "fold0" / "best.pt").read_bytes() == best
    code, _, err = run_verb(train, *common, "--fold", 0, "--output", run / "fold0")
    assert code == 2
    assert "holds a run already" in err


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a", "b"]},
        pytest.param({"network_grid_dice_per_case_and_class": None}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_folds_that_do_not_belong_together(cases, tmp_path, run_verb, change):
    run, common = tmp_path / "run", ["--data", cases, *TINY, "--folds", 2, "--iterations", 1]
    assert run_verb(train, *common, "--fold", "all", "--output", run)[0] == 0
    summary = json_of(run / "fold1" / "summary.json")
    (run / "fold1" / "summary.json").write_text(json.dumps(summary | change))
    code, _, err = run_verb(train, "--resume", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "fold1/summary.json: " in err
