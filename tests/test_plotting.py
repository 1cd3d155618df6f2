import csv

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from vnet_fast import plotting, slices
from vnet_fast.plotting import DARK, LIGHT
from vnet_fast.run.log import read_log

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def write_log(path, count):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "loss", "learning_rate", "validation_dice", "volumes_per_second"])
        for i in range(1, count + 1):
            validated = 0.9 * (1 - np.exp(-i / 30)) if i % 10 == 0 else ""
            writer.writerow([i, 0.9 * np.exp(-i / 40) + 0.05, 1e-4 if i < 80 else 1e-5, validated, 3.0])


def colour_count(picture, colour):
    return int((np.abs(picture[..., :3] - matplotlib.colors.to_rgb(colour)) < 0.02).all(-1).sum())


def read_picture(path, theme):
    """Reads a picture, and checks that its background has the theme's colour."""
    picture = matplotlib.image.imread(path)
    assert colour_count(picture[:3], theme.face) == picture[:3].shape[0] * picture.shape[1]
    return picture


def contrast(a, b):
    """The contrast of two colours, as WCAG defines it."""
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
              for c in (np.array(matplotlib.colors.to_rgb(x)) for x in (a, b))]  # fmt: skip
    light, dark = sorted((float(c @ [0.2126, 0.7152, 0.0722]) for c in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@THEMES
def test_colours_stand_out(theme):
    """WCAG requires a contrast of 4.5 for text and 3 for graphics."""
    assert contrast(theme.text, theme.face) >= 7
    assert contrast(theme.faint, theme.face) >= 3
    assert all(contrast(colour, theme.face) >= 3 for colour in theme.series[:2])


@THEMES
@pytest.mark.parametrize("count", [1, 9, 120])
def test_curves(tmp_path, count, theme):
    write_log(tmp_path / "log.csv", count)
    plotting.curves(read_log(tmp_path / "log.csv"), tmp_path / "curves.png", theme, "a run")
    picture = read_picture(tmp_path / "curves.png", theme)
    assert picture.shape[:2] == (528, 840)
    # the validation Dice, and below it the learning rate with its step down
    assert (colour_count(picture[:350], theme.series[0]) > 20) == (count >= 10)
    rate = (np.abs(picture[350:, :, :3] - matplotlib.colors.to_rgb(theme.series[1])) < 0.02).all(-1)
    assert rate.any() or count == 1
    heights = np.flatnonzero(rate.any(1))
    assert (np.ptp(heights) > 20 if heights.size else False) == (count > 80)


@THEMES
@pytest.mark.parametrize("empty", [False, True], ids=["prediction", "empty"])
def test_overlay(tmp_path, empty, theme):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(20, 40, 40)).astype(np.float32)
    reference = np.zeros(image.shape, np.uint8)
    reference[5:15, 10:30, 10:30] = 1
    prediction = np.zeros_like(reference) if empty else np.roll(reference, 4, axis=2)
    plotting.overlay(image, reference, {"": prediction}, (1, 1, 1.5), "a case", tmp_path / "overlay.png", theme)
    picture = read_picture(tmp_path / "overlay.png", theme)
    assert colour_count(picture, plotting.REFERENCE.color) > 1000
    # the dashed contour of the prediction; for an empty prediction only its line in the legend
    assert (colour_count(picture, plotting.PREDICTION.color) > 1000) == (not empty)


def test_overlay_of_two_predictions(tmp_path):
    """Each prediction has a row, with the same slices."""
    image = np.random.default_rng(0).normal(size=(6, 30, 30)).astype(np.float32)
    reference = np.zeros(image.shape, np.uint8)
    reference[1:5, 10:20, 10:20] = 1
    rows = {"one": np.roll(reference, 2, axis=2), "other": reference * 0}
    plotting.overlay(image, reference, rows, (1, 1, 3), "a case", tmp_path / "overlay.png")
    picture = matplotlib.image.imread(tmp_path / "overlay.png")
    upper, lower = picture[: len(picture) // 2], picture[len(picture) // 2 : -60]
    for half in (upper, lower):
        assert colour_count(half, plotting.REFERENCE.color) > 1000
    assert colour_count(upper, plotting.PREDICTION.color) > 500
    assert colour_count(lower, plotting.PREDICTION.color) == 0


def test_overlay_shows_the_structure_large(tmp_path):
    """A small structure fills about half of the picture, even at the volume's border."""
    image, reference = np.zeros((4, 200, 300), np.float32), np.zeros((4, 200, 300), np.uint8)
    reference[:, :20, 280:] = 1
    rows, columns = slices.crop_around([reference], [1], (1, 1, 1))
    assert (rows, columns) == (slice(0, 32), slice(268, 312))
    plotting.overlay(image, reference, {"": reference}, (1, 1, 1), "a corner", tmp_path / "overlay.png")
    picture = matplotlib.image.imread(tmp_path / "overlay.png")
    assert colour_count(picture, plotting.PREDICTION.color) > 500


def test_overlay_without_a_structure(tmp_path):
    empty = np.zeros((4, 8, 8), np.uint8)
    plotting.overlay(empty.astype(float), empty, {"": empty}, (1, 1, 1), "empty", tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").stat().st_size > 0


@THEMES
def test_distribution(tmp_path, theme):
    dice = {"one": [0.5, 0.81, 0.82, 0.83], "other": [0.2, 1.0]}
    plotting.distribution(dice, tmp_path / "distribution.png", theme)
    picture = read_picture(tmp_path / "distribution.png", theme)
    bars = [colour_count(picture, colour) for colour in theme.series[:2]]
    # the first series has bars of three cases and one case, the second has two hatched bars of one case
    assert bars[0] > 1.5 * bars[1] > 500


def test_a_set_without_rated_cases_has_no_median(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(plotting, "add_legend", lambda *_, **arguments: labels.extend(arguments["labels"]))
    plotting.distribution({"one": [0.5], "other": []}, tmp_path / "distribution.png")
    assert labels == ["one: median 0.500 of 1 cases", "other: no cases"]


@THEMES
def test_differences(tmp_path, theme):
    values = {f"case {i}": value for i, value in enumerate([0.3, -0.1, 0.0, 0.2])}
    plotting.differences(values, "of something", tmp_path / "differences.png", theme)
    picture = read_picture(tmp_path / "differences.png", theme)
    higher, lower = (colour_count(picture, colour) for colour in theme.series[:2])
    assert higher > 3 * lower > 1000


@THEMES
@pytest.mark.filterwarnings("error")
def test_cases_without_a_difference(tmp_path, theme):
    plotting.differences({"case 1": 0.0, "case 2": 0.0}, "of something", tmp_path / "differences.png", theme)
    picture = read_picture(tmp_path / "differences.png", theme)
    assert [colour_count(picture, colour) for colour in theme.series[:2]] == [0, 0]
    # their number is below the axes
    assert colour_count(picture[-40:], theme.text) > 20


def test_names_are_no_formulas(tmp_path):
    """Dollar signs stay dollar signs; an underscore, with which matplotlib hides a series, hides none."""
    mask = np.ones((2, 8, 8), np.uint8)
    plotting.overlay(mask.astype(float), mask, {"a$_{$": mask}, (1, 1, 1), "c$_{$x", tmp_path / "overlay.png")
    plotting.differences({"c$_{$x": 0.1, "d": -0.1}, "$_{$", tmp_path / "differences.png")
    plotting.distribution({"_one": [0.1]}, tmp_path / "hidden.png")
    plotting.distribution({"one": [0.1]}, tmp_path / "shown.png")
    with_name, without = (matplotlib.image.imread(tmp_path / f"{name}.png")[-40:] for name in ("shown", "hidden"))
    assert abs(colour_count(with_name, LIGHT.series[0]) - colour_count(without, LIGHT.series[0])) < 40
    assert colour_count(without, LIGHT.series[0]) > 100
