"""The comparison of learning: its runs, what it stores and goes on with, and its table."""

import itertools
import json

import pytest
import torch

from benchmarks import learners, learning, learning_table
from benchmarks.learners import Learner
from vnet_fast.run.configure import configure

SMALL = "--seconds 0.5 --seeds 0 --folds 3 --volume 16 20 16 --spacing 1.5 1.5 2"


@pytest.fixture
def small_learners(monkeypatch):
    """V-Net, and a network of one convolution that takes lengths of multiples of 8 only."""
    monkeypatch.setattr(learners, "STEPS", 1)
    networks = {
        "ours": Learner({"recipe": "fast", "base_channels": 1, "device": "cpu"}),
        "other": Learner(
            {"recipe": "fast", "device": "cpu"}, lambda classes: torch.nn.Conv3d(1, classes, 3, padding=1), 8
        ),
    }
    monkeypatch.setattr(learning, "LEARNERS", networks)
    return networks


def run(monkeypatch, tmp_path, arguments):
    monkeypatch.setattr(learning, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["learning.py", "some", "--work", str(tmp_path / "work"), *arguments.split()])
    code = learning.main()
    return code, json.loads((tmp_path / "results" / "some.json").read_text())


@pytest.mark.usefixtures("quick_training")
def test_every_learner_is_measured_on_the_same_cases(cases, tmp_path, monkeypatch, small_learners, capsys):
    given = f"--data {cases} {SMALL} --learners"
    code, first = run(monkeypatch, tmp_path, f"{given} ours")
    assert code == 0
    code, content = run(monkeypatch, tmp_path, f"{given} ours other")
    assert code == 0
    assert content["about"]["command"].endswith(f"--data {cases.name} {SMALL} --learners ours other")
    # what was done is kept
    assert content["runs"][0] == first["runs"][0]
    assert [entry["learner"] for entry in content["runs"]] == ["ours", "other"]
    assert [entry["volume"] for entry in content["runs"]] == [[16, 20, 16], [16, 24, 16]]
    for entry in content["runs"]:
        assert [len(entry["metrics"]["whole"][metric]) for metric in learners.METRICS] == [2, 2]
        assert entry["iterations"] >= 1
        assert entry["curve"][-1][0] <= entry["seconds"] + 0.1
        assert all(0 <= dice <= 1 for dice in entry["metrics"]["whole"]["dice"])
    assert "| other | 1 |" in capsys.readouterr().out


def test_what_another_process_stored_meanwhile_is_kept(tmp_path, monkeypatch, small_learners):
    """And the learners are in the order of their table."""
    learned = learners.Learned(1.0, 1, "float32", (8, 8, 8), {"whole": {key: [0.5] for key in learners.METRICS}}, [])
    path = tmp_path / "results" / "some.json"

    def learn(learner, given, output):
        path.parent.mkdir()
        path.write_text(json.dumps({"runs": [entry("other", 0, [0.5])]}))
        return learned

    monkeypatch.setattr(learning, "learn", learn)
    code, content = run(monkeypatch, tmp_path, f"--data nowhere {SMALL} --learners ours")
    assert code == 0
    assert [stored["learner"] for stored in content["runs"]] == ["ours", "other"]


def test_an_unknown_learner_ends_before_anything_is_trained(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["learning.py", "some", "--data", "nowhere", "--learners", "nobody"])
    with pytest.raises(SystemExit) as stopped:
        learning.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "there is no 'nobody'. Give some of: 'vnet_fast, fast', " in error


def entry(name, seed, dice, curve=()):
    metrics = {"whole": {"dice": dice, "hausdorff_95_mm": [1.0, None]}}
    numbers = {"seconds": 480.2, "iterations": 100, "precision": "x"}
    return {"learner": name, "seed": seed, **numbers, "metrics": metrics, "curve": curve}


ENTRIES = [
    entry("a", 0, [0.8, 0.9], [(1.0, 0.5), (3.0, 0.7)]),
    entry("a", 1, [0.9, 0.9], [(2.0, 0.6), (3.0, 0.8)]),
    entry("b", 0, [0.5, None], [(2.0, 0.4), (4.0, 0.5)]),
]


def test_the_table():
    assert learning_table.table(ENTRIES)[2:] == [
        "| a | 2 | 480 | 100 | x | 0.8750 (0.8500–0.9000) | 1.00 (1.00–1.00) |",
        "| b | 1 | 480 | 100 | x | 0.5000 | 1.00 |",
    ]


def test_the_section_and_the_picture(tmp_path):
    about = {"command": "python learning.py some", "processor": "Some CPU", "device": "CPU, 2 threads"}
    about |= {"torch": "2.13", "date": "2026-01-01"}
    (tmp_path / "some.json").write_text(json.dumps({"about": about, "runs": ENTRIES}))
    # no comparison, and so in the section alone
    (tmp_path / "short.json").write_text(json.dumps({"about": about, "runs": ENTRIES[:2]}))
    results = learning_table.load(tmp_path)
    assert list(learning_table.comparisons(results)) == ["some"]
    assert "Short" not in learning_table.highlights(results)
    text = learning_table.section(results)
    assert "`python learning.py some`: 2 cases that were not trained on, on Some CPU, CPU, 2 threads, torch" in text
    assert "\n| a | 2 |" in text
    in_short = learning_table.highlights(results)
    assert in_short.startswith("Some, 2 cases that were not trained on, after about 8 minutes of training on Some CPU")
    assert "\n| a | 2 | 0.875 (0.850–0.900) |" in in_short
    runs = learning_table.by_learner(ENTRIES)
    assert learning_table.curve(runs["a"]) == [(1.5, 0.55, 0.5, 0.6), (3.0, 0.75, 0.7, 0.8)]
    images = []
    for _ in range(2):
        learning_table.draw(results, tmp_path / "learning.svg")
        images.append((tmp_path / "learning.svg").read_bytes())
    assert images[0] == images[1]
    assert b"seconds of training" in images[0]


def test_the_ablation():
    runs = [{**run, "learner": name} for run, name in zip(ENTRIES, ("whole", "whole", "changed"), strict=True)]
    about = {"command": "c", "processor": "p", "device": "d", "torch": "t", "date": "2026"}
    lines = learning_table.ablation({"x": {"about": about, "runs": runs}}).splitlines()
    assert lines[0].endswith("Dice on the files' own grids, 2 seeds:")
    assert lines[-2:] == ["| whole | 0.8750 |  |", "| changed | 0.5000 | -0.3750 |"]


def test_every_change_is_one_of_the_recipe():
    given = {"data": "x", "volume": (32, 48, 40), "output": "y"}
    configs = {name: configure({**given, **learner.settings}) for name, learner in learners.ABLATION.items()}
    assert len(set(map(repr, configs.values()))) == len(configs)


class Garbled(torch.autograd.Function):
    """Loses a part of a gradient in bfloat16, as a library that leaves it unwritten."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        garbled = grad.clone()
        garbled[:, 1:] = float("nan") if grad.dtype == torch.bfloat16 else grad[:, 1:]
        return garbled


class Garbling(torch.nn.Conv3d):
    def forward(self, x):
        return Garbled.apply(super().forward(x))


@pytest.mark.parametrize(("network", "precision"), [(Garbling, "off"), (torch.nn.Conv3d, "auto")])
def test_a_peer_has_no_precision_with_wrong_gradients(network, precision, monkeypatch):
    monkeypatch.setattr(learners, "STEPS", 1)
    # on any processor
    monkeypatch.setattr(learners, "choose_precision", lambda amp, _: (None if amp == "off" else torch.bfloat16, amp))
    # mixed precision takes half the time
    readings = itertools.accumulate(itertools.cycle((0, 2, 0, 1)))
    monkeypatch.setattr(learners.time, "perf_counter", lambda: next(readings))
    config = configure({"data": "x", "device": "cpu", "recipe": "fast", "volume": (16, 16, 8)})
    assert learners.faster_precision(lambda classes: network(1, classes, 3, padding=1), config) == precision


def test_seconds_of_a_curve(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("iteration,volumes_per_second,validation_dice\n1,4,\n2,2,0.5\n3,1,0.75\n")
    assert learners.curve_of(path, 2) == [(1.5, 0.5), (3.5, 0.75)]
