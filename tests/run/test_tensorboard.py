import csv
import json
import sys

import pytest

from tests.volumes import write_case
from vnet_fast import train
from vnet_fast.run.tensorboard import Board

TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]

pytestmark = pytest.mark.usefixtures("quick_training")


def scalars_of(run):
    """What TensorBoard shows: dict from tag to dict from step to value."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulators.EventAccumulator(str(run / "tensorboard"), size_guidance={accumulators.SCALARS: 0}).Reload()
    events = {tag: shown.Scalars(tag) for tag in shown.Tags()["scalars"]}
    assert all(len({event.step for event in of_tag}) == len(of_tag) for of_tag in events.values())
    return {tag: {event.step: event.value for event in of_tag} for tag, of_tag in events.items()}


def column(run, name):
    with open(run / "log.csv", newline="") as file:
        return {int(row["iteration"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def test_scalars_are_those_of_the_log_also_after_a_kill_and_a_resumption(tmp_path, run_verb):
    cases, run = tmp_path / "cases", tmp_path / "run"
    cases.mkdir()
    for index in range(3):
        write_case(cases, f"c{index}", index, labels=2)
    arguments = ["--data", cases, "--output", run, *TINY, "--tensorboard", "--iterations", 2, "--lr-step", 1]
    code, _, err = run_verb(train, *arguments, "--val-every", 1)
    assert code == 0, err
    # a run that went on and was killed before it saved
    lost = Board(run / "tensorboard", 2, ["class 1", "class 2"])
    for iteration in range(3, 8):
        lost.add_update(iteration, 9.0, 9.0)
        lost.add_validation(iteration, {"c0": [0.9, 0.9]})
    lost.close()
    code, _, err = run_verb(train, "--resume", run, "--iterations", 4)
    assert code == 0, err
    shown = scalars_of(run)
    names = {"loss": "loss", "learning_rate": "learning_rate", "validation_dice/mean": "validation_dice"}
    for tag, name in {**names, "volumes_per_second": "volumes_per_second"}.items():
        logged = column(run, name)
        assert shown[tag].keys() <= logged.keys() == {1, 2, 3, 4}
        assert shown[tag] == pytest.approx({step: logged[step] for step in shown[tag]}, rel=1e-5)
        assert tag == "volumes_per_second" or len(shown[tag]) == 4
    assert shown["volumes_per_second"]
    # the best of them is the summary's
    summary = json.loads((run / "summary.json").read_text())
    per_class = [shown[f"validation_dice/class_{label}"][summary["best_iteration"]] for label in (1, 2)]
    assert sum(per_class) / 2 == pytest.approx(summary["network_grid_dice"], abs=1e-6)
    assert "validation_dice/class_3" not in shown


def test_a_run_has_it_only_where_it_is_asked_for(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *TINY, "--iterations", 1)[0] == 0
    assert not (run / "tensorboard").exists()
    assert run_verb(train, "--resume", run, "--iterations", 2, "--tensorboard")[0] == 0
    assert list(scalars_of(run)["loss"]) == [2]
    assert run_verb(train, "--resume", run, "--iterations", 3, "--no-tensorboard")[0] == 0
    assert list(scalars_of(run)["loss"]) == [2]


def test_without_tensorboard_one_line_before_training(cases, tmp_path, run_verb, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    arguments = ["--data", cases, "--output", tmp_path / "run", *TINY, "--iterations", 1]
    code, _, err = run_verb(train, *arguments, "--tensorboard")
    assert code == 2
    expected = "error: --tensorboard: TensorBoard is not installed. pip install 'vnet_fast[tensorboard]'\n"
    assert err == expected
    assert not (tmp_path / "run").exists()
    assert run_verb(train, *arguments)[0] == 0
