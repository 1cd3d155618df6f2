"""Results of `evaluate` that can't be written or drawn."""

import json
import os

import pytest
import SimpleITK as sitk

from tests.volumes import make_image
from vnet_fast import command_line, evaluate, plotting
from vnet_fast.evaluation import evaluation as evaluation_module


@pytest.fixture
def sets(cases, tmp_path):
    """Folders of predictions, which lack more and more of the references, of these, and of their volumes."""
    folders = [tmp_path / name for name in ("predictions", "labels", "images")]
    for folder in folders:
        folder.mkdir()
    for number, path in enumerate(sorted(cases.glob("*_segmentation.mhd"))):
        name = path.name.removesuffix("_segmentation.mhd")
        mask = sitk.ReadImage(str(path))
        sitk.WriteImage(mask, str(folders[1] / f"{name}.nii.gz"))
        mask[: 8 + number, :, :] = 0
        sitk.WriteImage(mask, str(folders[0] / f"{name}.nii.gz"))
        sitk.WriteImage(sitk.ReadImage(str(cases / f"{name}.mhd")), str(folders[2] / f"{name}.nii.gz"))
    return folders


@pytest.fixture
def unmeasured(monkeypatch):
    """Fails where masks are measured."""

    def fail(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(evaluation_module, "compare", fail)


@pytest.fixture
def empty_pictures(monkeypatch):
    """Makes the files of pictures without what they show."""
    monkeypatch.setattr(plotting, "overlay", lambda *arguments: arguments[5].touch())
    monkeypatch.setattr(plotting, "distribution", lambda *arguments: arguments[1].touch())


def evaluate_sets(run_verb, sets, *options):
    return run_verb(evaluate, "--predictions", sets[0], "--labels", sets[1], *options)


@pytest.mark.usefixtures("empty_pictures")
@pytest.mark.parametrize("lost", ["missing", "on another grid"])
def test_a_case_that_cannot_be_drawn_loses_no_result(sets, tmp_path, run_verb, lost):
    """Nor the pictures of the other cases."""
    worst = sets[2] / "Case05.nii.gz"
    if lost == "missing":
        worst.unlink()
    else:
        image = sitk.ReadImage(str(worst))
        sitk.WriteImage(make_image(sitk.GetArrayFromImage(image), (9, 9, 9)), str(worst))
    report, figures = tmp_path / "report.json", tmp_path / "figures"
    code, out, err = evaluate_sets(run_verb, sets, "--output", report, "--figures", figures, "--images", sets[2])
    assert (code, err.count("\n")) == (2, 1)
    assert "Case05" in err
    assert "mean ± SD" in out
    assert json.loads(report.read_text())["predictions"]
    assert {path.name for path in figures.iterdir()} == {"distribution.png", "best.png", "median.png"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--output", "/proc/x.json"], "/proc/x.json: can't be written"),
        (["--csv", "/proc/x.csv"], "/proc/x.csv: can't be written"),
        (["--figures", "/proc"], "distribution.png: can't be written"),
        (["--calibration"], "no probabilities beside it"),
    ],
)
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder that nobody can write to")
@pytest.mark.usefixtures("unmeasured")
def test_what_is_in_the_way_is_said_before_anything_is_measured(sets, run_verb, option, message):
    images = ["--images", sets[2]] if option[0] == "--figures" else []
    code, _, err = evaluate_sets(run_verb, sets, *option, *images)
    assert code == 2
    assert message in err


@pytest.mark.usefixtures("unmeasured")
def test_images_that_are_not_those_of_the_cases(sets, tmp_path, run_verb):
    figures = ["--figures", tmp_path / "figures", "--images"]
    code, _, err = evaluate_sets(run_verb, sets, *figures, sets[2] / "Case00.nii.gz")
    assert (code, err.count("\n")) == (2, 1)
    assert "Case00.nii.gz: one volume for 6 cases. Name the folder of the volumes with --images" in err
    for path in sets[2].iterdir():
        path.rename(path.with_name(f"other{path.name}"))
    code, _, err = evaluate_sets(run_verb, sets, *figures, sets[2])
    assert (code, err.count("\n")) == (2, 1)
    assert "images: no volume of any of the cases, such as Case00. Name the folder" in err


def test_a_file_that_is_there_stays_until_the_new_one_is_complete(sets, tmp_path, run_verb):
    report = tmp_path / "report.json"
    report.write_text("of before")
    code, _, _ = evaluate_sets(run_verb, sets, "--output", report, "--calibration")
    assert code == 2
    assert report.read_text() == "of before"


@pytest.mark.parametrize("flag", ["--output", "--csv"])
@pytest.mark.parametrize(
    "name",
    [
        "predictions/Case00.nii.gz", "labels/Case00.nii.gz", "images/Case00.nii.gz", "labels/dataset.json",
        "observer.toml", "link", "raw/Case00.raw", "predictions/Case00_probability.nii.gz",
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unmeasured")
def test_no_input_is_replaced(sets, tmp_path, run_verb, flag, name):
    (sets[1] / "dataset.json").write_text("{}")
    (tmp_path / "observer.toml").write_text("[dice]\nwhole = 0.5\n")
    (tmp_path / "link").symlink_to(sets[1] / "Case01.nii.gz")
    (sets[0] / "Case00_probability.nii.gz").touch()
    (tmp_path / "raw").mkdir()
    sitk.WriteImage(sitk.ReadImage(str(sets[2] / "Case00.nii.gz")), str(tmp_path / "raw" / "Case00.mhd"))
    path = tmp_path / name
    before = path.read_bytes()
    images = tmp_path / "raw" if name.startswith("raw") else sets[2]
    options = ["--observer", tmp_path / "observer.toml", "--figures", tmp_path / "figures", "--images", images]
    code, _, err = evaluate_sets(run_verb, sets, flag, path, *options)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{path}: would replace" in err
    assert f"Choose another {flag}" in err
    assert path.read_bytes() == before


def test_results_of_before_are_replaced(sets, tmp_path, run_verb):
    (tmp_path / "report.json").write_text("of before")
    code, _, err = evaluate_sets(run_verb, sets, "--output", tmp_path / "report.json")
    assert code == 0, err
    assert json.loads((tmp_path / "report.json").read_text())["predictions"]


def test_predictions_may_be_named_one_by_one():
    arguments = ["--predictions", "A", "--labels", "L", "--predictions", "B", "C"]
    given = vars(command_line.parser_of(evaluate.Config, "evaluate").parse_args(arguments))
    assert given["predictions"] == ["A", "B", "C"]
