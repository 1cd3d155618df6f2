import math
from collections import Counter
from dataclasses import asdict

import pytest

from tests.volumes import write_case
from vnet_fast.evaluation.comparison import Comparison, compare_pairs
from vnet_fast.evaluation.evaluation import Evaluation, evaluate
from vnet_fast.io import volumes
from vnet_fast.prediction.held_out import HeldOut
from vnet_fast.reporting import sections as sections_module
from vnet_fast.reporting.sections import SETTINGS, make_sections
from vnet_fast.reporting.subjects import Subject
from vnet_fast.run.augmentation import Augmentation
from vnet_fast.run.log import LogRow

COUNT = 5
ROWS = [LogRow(1, 0.9, 1e-4, None), LogRow(2, 0.8, 1e-4, 0.5)]


@pytest.fixture
def subjects(tmp_path):
    """Two runs with the same cases; the predictions are the masks of other cases, or the references."""
    files = [write_case(tmp_path, f"Case{index}", seed=index) for index in range(COUNT)]
    settings = dict.fromkeys(SETTINGS) | {"binary": False, "loss": "dice", "spacing": (1.5, 1.0, 2.0), "seed": 0}
    settings |= asdict(Augmentation(flip="x", gamma=(0.3, 0.7, 1.5)))
    runs = []
    for name, shift in (("a", 1), ("b", 0)):
        cases = [
            HeldOut(f"Case{index}", image, reference, files[(index + shift) % COUNT][1])
            for index, (image, reference) in enumerate(files)
        ]
        runs.append(Subject(name, tmp_path / name, settings, {}, cases, {"fold 0": ROWS, "fold 1": ROWS}))
    return runs


def make(subjects, folder):
    """The sections of a report by their headings."""
    evaluations = evaluate([run.name for run in subjects], [run.pairs for run in subjects])
    comparisons = compare_pairs(evaluations) if len(evaluations) > 1 else []
    folder.mkdir()
    return {section.heading: section for section in make_sections(subjects, evaluations, comparisons, folder)}


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
def test_each_file_is_read_once_for_both_colour_schemes(subjects, tmp_path, monkeypatch, runs):
    read = Counter()

    def count(function):
        def counting(paths, *arguments):
            read.update(paths if isinstance(paths, list) else [paths])
            return function(paths, *arguments)

        return counting

    subjects = subjects[:runs]
    evaluations = evaluate([run.name for run in subjects], [run.pairs for run in subjects])
    for name in ("read_channels", "read_mask"):
        monkeypatch.setattr(volumes, name, count(getattr(volumes, name)))
    sections = make_sections(subjects, evaluations, [], tmp_path)
    overlays = next(section.pictures for section in sections if section.heading == "Best, median and worst case")
    assert len(overlays) == 3
    assert all(picture.light.exists() and picture.dark.exists() for picture in overlays)
    # a volume, its reference, and the prediction of each run, for the pictures and the viewer
    assert sum(read.values()) == COUNT * (2 + runs)
    assert all(read[case.image] == 1 for case in subjects[0].cases)


@pytest.mark.exhaustive
def test_sections_of_two_runs(subjects, tmp_path):
    sections = make(subjects, tmp_path / "report")
    assert list(sections) == [
        "Result", "Dice over the cases", "Training", "Best, median and worst case", "Slice by slice",
        "All cases, the worst first", "Settings",
    ]  # fmt: skip
    result, compared = sections["Result"].tables
    assert [row[0] for row in result.rows] == ["a", "b"]
    assert compared.rows[0][:3] == ["b less a", "1", "Dice"]
    # the predictions of the second run are the references
    assert compared.rows[0][4:] == [f"{COUNT} / 0 / 0", "0.062"]
    assert [picture.caption for picture in sections["Training"].pictures] == ["fold 0", "fold 1"] * 2
    assert "The cases are chosen by the Dice of a" in sections["Best, median and worst case"].text
    (cases,) = sections["All cases, the worst first"].tables
    assert cases.headings == ["case", "a, Dice", "b, Dice"]
    assert [row[2].text for row in cases.rows] == ["1.0000"] * COUNT
    (settings,) = sections["Settings"].tables
    assert settings.rows == [
        ["loss", "dice", "dice"],
        ["spacing", "1.5 x 1 x 2", "1.5 x 1 x 2"],
        ["seed", "0", "0"],
        ["augmentation", "flip x, gamma 0.3 0.7 1.5", "flip x, gamma 0.3 0.7 1.5"],
    ]
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"difference-0.png", "difference-0-dark.png", "curves-1-fold1.png", "worst-dark.png"} <= files


def test_a_case_of_one_run_only(subjects, tmp_path, monkeypatch):
    """Its cells of the other run have a dash."""
    monkeypatch.setattr(sections_module, "draw_picture", lambda *arguments: None)
    evaluations = evaluate(["a", "b"], [subjects[0].pairs[1:], subjects[1].pairs])
    sections = make_sections(subjects, evaluations, [], tmp_path)
    table = next(section.tables[0] for section in sections if section.heading == "All cases, the worst first")
    assert table.rows[-1][:2] == ["Case0", "-"]
    assert table.rows[-1][2].text == "1.0000"


def test_a_comparison_without_cases_has_no_p_value():
    evaluation = Evaluation("a", {})
    comparisons = [
        Comparison("a", "b", 1, "dice", {}, math.nan, "class 1"),
        Comparison("a", "b", 1, "hausdorff_95_mm", {"A": 1.25}, 1.0, "class 1"),
    ]
    table = sections_module._comparison_table(comparisons, evaluation)
    assert [row[3:] for row in table.rows] == [["-", "0 / 0 / 0", "-"], ["1.25 mm", "1 / 0 / 0", "1"]]
