import csv

import matplotlib.image
import numpy as np
import pytest

from vnet_fast import figures


def write_log(path, count):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["iteration", "loss", "learning_rate", "validation_dice", "volumes_per_second"])
        for i in range(1, count + 1):
            validated = 0.9 * (1 - np.exp(-i / 30)) if i % 10 == 0 else ""
            writer.writerow([i, 0.9 * np.exp(-i / 40) + 0.05, 1e-4 if i < 80 else 1e-5, validated, 3.0])


@pytest.mark.parametrize("count", [1, 9, 120])
def test_curves(tmp_path, count):
    write_log(tmp_path / "log.csv", count)
    figures.curves(tmp_path / "log.csv", tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")
    assert picture.shape[:2] == (480, 1080)
    assert np.ptp(picture[..., :3]) > 0.5


def colour_count(picture, colour):
    return int((np.abs(picture[..., :3] - colour) < 0.1).all(-1).sum())


@pytest.mark.parametrize("empty", [False, True])
def test_overlay(tmp_path, empty):
    generator = np.random.default_rng(0)
    image = generator.normal(size=(20, 40, 40)).astype(np.float32)
    reference = np.zeros(image.shape, np.uint8)
    reference[5:15, 10:30, 10:30] = 1
    prediction = np.zeros_like(reference) if empty else np.roll(reference, 4, axis=2)
    figures.overlay(image, reference, prediction, (1, 1, 1.5), "a case", tmp_path / "overlay.png")
    picture = matplotlib.image.imread(tmp_path / "overlay.png")
    amber, blue = (1.0, 0.69, 0.0), (0.25, 0.78, 1.0)
    assert colour_count(picture, amber) > 1000
    # the dashed contour of the prediction, or of an empty one only its place in the legend
    assert (colour_count(picture, blue) > 1000) == (not empty)


def test_overlay_without_a_structure(tmp_path):
    empty = np.zeros((4, 8, 8), np.uint8)
    figures.overlay(empty.astype(float), empty, empty, (1, 1, 1), "empty", tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").stat().st_size > 0
