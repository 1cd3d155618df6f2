import json
import os
import re
import shutil

import pytest

from tests.reporting.page_reader import PageReader
from tests.volumes import write_case
from vnet_fast import evaluate, plotting, report, train

TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 2, "--device", "cpu", "--seed", 1]
TINY += ["--folds", 3, "--iterations", 2, "--optimizer", "adamw", "--learning-rate", 0.02]
PICTURES = {"distribution", "curves-0", "worst", "best"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on the same six cases, one with each loss."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "cases").mkdir()
    for index in range(6):
        write_case(folder / "cases", f"Case{index:02d}", seed=index)
    for name, loss in (("a", "dice"), ("b", "weighted-ce")):
        options = ["--data", folder / "cases", "--output", folder / name, "--loss", loss, "--cache", folder / "cache"]
        parser = train.command_line.parser_of(train.Config, "vnet_fast.train")
        given = vars(parser.parse_args([str(argument) for argument in [*options, *TINY]]))
        given.pop("debug", None)
        assert train.main(given) == 0
    return folder


def test_a_page_of_one_run(runs, run_verb):
    code, out, err = run_verb(report, "--run", runs / "a", "--device", "cpu")
    assert code == 0, err
    folder = runs / "a" / "report"
    assert f"report: {folder / 'report.html'}" in out
    assert {path.stem for path in folder.glob("*.png")} == PICTURES | {f"{name}-dark" for name in PICTURES}
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = PageReader(text)
    # the page contains its pictures in both colour schemes, and loads nothing
    shown = {page.content(picture.get("srcset") or picture["src"]) for picture in page.pictures}
    assert shown == {path.read_bytes() for path in folder.glob("*.png")}
    assert all(picture["alt"] for picture in page.pictures if "src" in picture)
    without = re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert not re.search(r"https?:|src=\"[^\"]|url\(|<link", without)
    # its own script, and the volumes of the two cases
    assert [attributes.get("class", "") for attributes, _ in page.scripts] == ["settings", "case", "case", ""]

    result, cases, settings = page.tables
    assert result[0][:4] == ["run", "class", "region", "cases"]
    assert result[1][:4] == ["a (Dice loss)", "1", "whole", "2"]
    validation = json.loads((runs / "a" / "summary.json").read_text())["val_dice_per_case"]
    assert {row[0] for row in cases[1:]} == validation.keys()
    dice = [float(row[1]) for row in cases[1:]]
    assert dice == sorted(dice)
    assert float(result[1][4].partition(" ")[0]) == pytest.approx(sum(dice) / 2, abs=1e-4)
    assert ["loss", "dice"] in settings
    assert ["volume", "16 x 16 x 16"] in settings
    assert page.headings[0] == "Result"


def test_two_runs_side_by_side(runs, tmp_path, run_verb):
    code, _, err = run_verb(
        report, "--run", runs / "a", "--run", runs / "b", "--output", tmp_path / "page", "--device", "cpu", "--regions"
    )
    assert code == 0, err
    page = PageReader((tmp_path / "page" / "report.html").read_text(encoding="utf-8"))
    result, compared, cases, settings = page.tables
    names = ["a (Dice loss)", "b (weighted cross-entropy)"]
    assert [row[0] for row in result[1:]] == [name for name in names for _ in range(3)]
    assert [row[2] for row in result[1:4]] == ["whole", "base", "apex"]
    assert compared[1][:3] == [f"{names[1]} less {names[0]}", "1", "Dice"]
    first, second = ([float(row[column]) for row in cases[1:]] for column in (1, 2))
    assert first == sorted(first)
    median = sum(b - a for a, b in zip(first, second, strict=True)) / 2
    assert float(compared[1][3]) == pytest.approx(median, abs=2e-4)
    assert ["loss", "dice", "weighted-ce"] in settings
    assert {path.stem for path in (tmp_path / "page").glob("curves-?.png")} == {"curves-0", "curves-1"}


@pytest.mark.exhaustive
def test_calibration_of_the_held_out_cases(runs, tmp_path, run_verb):
    """The probabilities are predicted once; the errors are those that evaluate measures of the same files."""
    run = copy_run(runs / "a", tmp_path / "run")
    common = ["--run", run, "--device", "cpu", "--calibration"]
    code, out, err = run_verb(report, *common)
    assert code == 0, err
    assert "predicting 2 cases held out" in out
    page = PageReader((run / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.headings[:3] == ["Result", "Dice over the cases", "Calibration"]
    code, out, err = run_verb(
        evaluate, "--predictions", run / "predictions", "--labels", runs / "cases", "--calibration"
    )
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("expected calibration error: class 1 0.")]
    assert any(line in picture.get("alt", "") for picture in page.pictures)
    assert "predicting" not in run_verb(report, *common)[1]


def copy_run(run, folder):
    """Copies the folder of a run, without its report."""
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("report"))
    return folder


def test_runs_of_other_cases_are_refused(runs, tmp_path, run_verb):
    """The cases have the same names, but other volumes."""
    other = copy_run(runs / "a", tmp_path / "other")
    shutil.copytree(runs / "cases", tmp_path / "cases")
    held = next(iter(json.loads((other / "summary.json").read_text())["val_dice_per_case"]))
    write_case(tmp_path / "cases", held, seed=77)
    stored = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(stored | {"data": str(tmp_path / "cases")}))
    code, _, err = run_verb(
        report, "--run", runs / "a", "--run", other, "--device", "cpu", "--output", tmp_path / "page"
    )
    assert code == 2
    assert f"{other}: held out other cases than {runs / 'a'}. Report them one by one" in err
    assert not (tmp_path / "page").exists()


@pytest.mark.exhaustive
def test_a_volume_that_was_replaced_is_predicted_again(runs, tmp_path, run_verb):
    run = copy_run(runs / "a", tmp_path / "run")
    common = ["--run", run, "--device", "cpu"]
    assert run_verb(report, *common)[0] == 0
    name = next(iter(json.loads((run / "summary.json").read_text())["val_dice_per_case"]))
    os.utime(runs / "cases" / f"{name}.mhd")
    code, out, _ = run_verb(report, *common)
    assert code == 0
    assert "predicting 1 cases held out" in out


@pytest.mark.parametrize(
    ("log", "code"), [("iteration,loss,learning_rate,validation_dice,volumes_per_second\n", 0), ("x\n1\n", 2)],
    ids=["without rows", "damaged"],
)  # fmt: skip
def test_logs_that_show_nothing(runs, tmp_path, run_verb, log, code):
    run = copy_run(runs / "a", tmp_path / "run")
    (run / "log.csv").write_text(log)
    exit_code, _, err = run_verb(report, "--run", run, "--device", "cpu")
    assert exit_code == code
    assert err.count("\n") == (1 if code else 0)
    assert ("not a log" in err) == bool(code)


def test_what_was_predicted_is_not_predicted_again(runs, tmp_path, run_verb):
    common = ["--run", runs / "b", "--output", tmp_path / "page", "--device", "cpu"]
    run_verb(report, *common)
    code, out, _ = run_verb(report, *common)
    assert code == 0
    assert "predicting" not in out


def test_bad_input_is_one_line(runs, tmp_path, run_verb, monkeypatch):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    other = tmp_path / "binary"
    other.mkdir()
    stored = json.loads((runs / "a" / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(stored | {"binary": True}))
    for arguments, message in (
        (["--run", tmp_path / "nowhere"], "nowhere/config.json: no such file. Name the folder of a run"),
        (["--run", tmp_path / "damaged"], "damaged/config.json: can't be read"),
        (["--run", runs / "a", "--run", runs / "a"], "--run: names a run twice"),
        (["--run", runs / "a", "--run", other], "has --binary and the other has not"),
        (["--run", other], "has no best.pt yet"),
        ([], "the following arguments are required: --run"),
    ):
        code, _, err = run_verb(report, *arguments)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    monkeypatch.setattr(plotting, "available", lambda: False)
    code, _, err = run_verb(report, "--run", runs / "a")
    assert (code, err.count("\n")) == (2, 1)
    assert "matplotlib is not installed" in err
