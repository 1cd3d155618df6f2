import base64
import hashlib
import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from tests.reporting.page_reader import PageReader
from vnet_fast.evaluation.evaluation import Evaluation
from vnet_fast.evaluation.figures import CaseFigure
from vnet_fast.io.grid import Grid
from vnet_fast.io.label_names import colour_of
from vnet_fast.regions import Region
from vnet_fast.reporting import html, viewer
from vnet_fast.reporting.viewer import CaseInView, make_viewer, pack

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
# of the classes that are shown
LABELS = (1, 2)


def make_figure(shape=(12, 40, 50), spacing=(1.0, 2.0, 4.0), origin=(-10.0, 5.0, 100.0)):
    """A volume whose intensities rise along x, with a block of two labels, and a prediction that lacks a slice."""
    image = np.broadcast_to(np.arange(shape[2], dtype=np.float32) * 10, shape).copy()
    reference = np.zeros(shape, np.uint8)
    reference[5:8, 20:24, 24:30], reference[5:8, 20:24, 30:32] = 1, 2
    prediction = reference.copy()
    prediction[7] = 0
    grid = Grid(shape[::-1], spacing, origin, IDENTITY)
    return CaseFigure("A: worst", image, reference, {"": prediction}, grid)


def unpacked(content, name):
    """The bytes of a packed array, (z, y, x)."""
    return np.frombuffer(zlib.decompress(base64.b64decode(name)), np.uint8).reshape(content["size"][::-1])


def test_the_box_around_the_structures_is_kept():
    figure = make_figure()
    prediction = figure.predictions[""]
    content = pack(figure, [prediction, None], 1, LABELS)
    # 10 mm are 10 columns, 5 rows and 3 slices
    box = (slice(2, 11), slice(15, 29), slice(14, 42))
    assert content["size"] == (28, 14, 9)
    assert content["first"] == [14, 15, 2]
    assert (content["slices"], content["step"]) == ((50, 40, 12), (1, 1, 1))
    assert content["origin"] == [-10, 5, 100]
    reference, predicted, none = content["masks"]
    assert none is None
    np.testing.assert_array_equal(unpacked(content, reference), figure.reference[box])
    np.testing.assert_array_equal(unpacked(content, predicted), prediction[box])
    # the intensities, but for a step of the 255 and for the highest and lowest thousandth
    low, high = content["range"]
    image = low + unpacked(content, content["image"]) * (high - low) / 255
    np.testing.assert_allclose(image, figure.image[box], atol=(high - low) / 255 + 1)
    # the first slices with most of the structure
    assert content["start"] == [24 - 14, 20 - 15, 5 - 2]


def test_the_reference_is_seen_first():
    """Even if there is more of the prediction elsewhere; the prediction where there is no reference."""
    figure = make_figure()
    prediction = np.zeros_like(figure.reference)
    prediction[1, 2:12, 3:30] = 1
    content = pack(figure, [prediction], 1, LABELS)
    assert [first + at for first, at in zip(content["first"], content["start"], strict=True)] == [24, 20, 5]
    content = pack(CaseFigure("A", figure.image, figure.reference * 0, {}, figure.grid), [prediction], 1, LABELS)
    assert [first + at for first, at in zip(content["first"], content["start"], strict=True)] == [3, 2, 1]


def test_labels_of_no_class_that_is_shown_are_no_structure():
    """As the ignored one: the box does not grow to it, and the slices with most of it are not seen first."""
    figure = make_figure()
    expected = pack(figure, [figure.predictions[""]], 1, LABELS)
    reference, prediction = figure.reference.copy(), figure.predictions[""].copy()
    reference[1, :, :], prediction[11, :, :] = 3, 3
    content = pack(CaseFigure("A", figure.image, reference, {}, figure.grid), [prediction], 1, LABELS)
    for name in ("first", "size", "start"):
        assert content[name] == expected[name]
    only_ignored = CaseFigure("A", figure.image, figure.reference * 0 + 3, {}, figure.grid)
    content = pack(only_ignored, [figure.reference], 1, LABELS)
    assert [first + at for first, at in zip(content["first"], content["start"], strict=True)] == [24, 20, 5]


def test_the_labels_of_the_classes():
    assert evaluation([1, 4]).mask_labels == [1, 4]
    unions = (Region("whole", (1, 2, 5)), Region("core", (2,)))
    assert replace(evaluation([1, 2]), unions=unions).mask_labels == [1, 2, 5]


def test_a_volume_without_structures_is_shown_whole():
    figure = make_figure()
    nothing = figure.reference * 0
    content = pack(CaseFigure("A", figure.image, nothing, {}, figure.grid), [], 1, LABELS)
    assert (content["size"], content["first"], content["start"]) == ((50, 40, 12), [0, 0, 0], [25, 20, 6])


def test_a_constant_volume_has_a_window():
    figure = make_figure()
    content = pack(CaseFigure("A", figure.image * 0 + 7, figure.reference, {}, figure.grid), [], 1, LABELS)
    assert content["window"][0] < content["window"][1]
    assert not unpacked(content, content["image"]).any()


@pytest.mark.parametrize("number", [1, 40, 200])
def test_all_cases_together_have_room(monkeypatch, number):
    """Voxels are shown together along the finest axis first, and the masks keep their place."""
    monkeypatch.setattr(viewer, "TOTAL_VOXELS", 40_000)
    figure = make_figure((40, 60, 80), spacing=(1, 1, 3))
    content = pack(figure, [], number, LABELS)
    voxels = np.prod(content["size"])
    assert voxels <= 40_000 / number
    x, y, z = content["step"]
    assert x >= z
    assert abs(x - y) <= 1
    assert content["spacing"] == [1 * x, 1 * y, 3 * z]
    mask = unpacked(content, content["masks"][0])
    places = [
        [min(first + n * step, last) for n in range(size)]
        for first, step, last, size in zip(
            content["first"], content["step"], content["last"], content["size"], strict=True
        )
    ]
    np.testing.assert_array_equal(mask, figure.reference[np.ix_(*places[::-1])])


@pytest.mark.parametrize("depth", range(1, 12))
def test_a_structure_at_the_end_of_the_volume_is_shown_to_its_end(monkeypatch, depth):
    """The last block of voxels that are shown as one may have fewer, and its middle is one of them."""
    monkeypatch.setattr(viewer, "TOTAL_VOXELS", 4)
    reference = np.zeros((depth, 8, 8), np.uint8)
    reference[depth // 2 :] = 1
    grid = Grid((8, 8, depth), (1, 1, 1), (0, 0, 0), IDENTITY)
    content = pack(CaseFigure("A", reference.astype(np.float32), reference, {}, grid), [], 1, LABELS)
    assert all(last < length for last, length in zip(content["last"], content["slices"], strict=True))
    assert content["last"][2] >= depth - content["step"][2]
    assert unpacked(content, content["masks"][0])[-1].all()


@pytest.mark.parametrize("number", [2, 40, viewer.MAX_CASES])
def test_a_page_of_noise_has_room(number):
    """Intensities that can't be compressed, and a structure that fills the volume."""
    shape = (60, 120, 120)
    image = np.random.default_rng(0).random(shape, np.float32)
    reference = np.ones(shape, np.uint8)
    grid = Grid(shape[::-1], (1, 1, 1), (0, 0, 0), IDENTITY)
    content = pack(CaseFigure("A", image, reference, {}, grid), [], number, LABELS)
    assert len(json.dumps(content)) * number < 11.4e6


def test_means_of_blocks():
    image = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    means = viewer._block_means(image, (2, 1, 3))
    assert means.shape == (3, 2, 1)
    assert means[0, 0, 0] == pytest.approx(image[0:2, 0].mean())
    # the last block has one slice
    assert means[2, 1, 0] == pytest.approx(image[4, 1].mean())


@pytest.mark.parametrize("turned", [False, True])
def test_places_are_along_the_axes_of_the_volume(turned):
    """As 3D Slicer shows them, also in a volume whose axes are oblique."""
    cos, sin = (np.cos(0.3), np.sin(0.3)) if turned else (1.0, 0.0)
    grid = Grid((50, 40, 12), (1.0, 2.0, 4.0), (3.0, 4.0, 5.0), (cos, -sin, 0, sin, cos, 0, 0, 0, 1))
    figure = make_figure()
    content = pack(CaseFigure("A", figure.image, figure.reference, {}, grid), [], 1, LABELS)
    assert content["origin"] == pytest.approx([3 * cos + 4 * sin, -3 * sin + 4 * cos, 5], abs=1e-4)


def evaluation(labels, **names):
    measures = {label: {"whole": {"dice": 0.5}} for label in labels}
    return Evaluation("a", {"A": measures}, class_names={int(key[1:]): name for key, name in names.items()})


def test_classes_have_the_colours_of_the_masks_files():
    shown = make_viewer([evaluation([1, 2], _2="Tail")], (), [])
    assert [c.title for c in shown.classes] == ["class 1", "Tail"]
    assert shown.classes[1].colour == "#" + "".join(f"{round(255 * value):02x}" for value in colour_of(2))
    assert shown.masks == ["reference", "prediction"]


def test_regions_are_classes_of_several_labels():
    unions = (Region("whole", (1, 2, 3)), Region("core", (2, 3)))
    shown = make_viewer([evaluation([1, 2], _1="whole", _2="core")], unions, [])
    assert [c.labels for c in shown.classes] == [(1, 2, 3), (2, 3)]


def test_a_single_class_has_the_colours_of_the_pictures():
    shown = make_viewer([evaluation([1]), evaluation([1])], (), [])
    assert shown.classes[0].colour == ""
    assert len(set(shown.colours)) == len(shown.masks) == 3


def test_the_page_runs_this_script_only():
    """Its policy has the digest of the script; what a case is called ends no block of JSON."""
    figure, name = make_figure(), "</script><script>alert(1)</script>"
    classes = evaluation([1, 2], _1=name)
    shown = make_viewer([classes], (), [CaseInView(name, name, pack(figure, [figure.predictions[""]], 1, LABELS))])
    text = html.page("t", "s", [html.Section("h", viewer=shown)])
    page = PageReader(text)
    settings, case, script = page.scripts
    assert json.loads(settings[1])["classes"][0]["title"] == name
    assert json.loads(case[1])["size"] == [28, 14, 9]
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert script[0] == {}
    assert "alert" not in script[1]
    assert not re.search(r"https?:|src=|url\(|<link|@import|fetch\(|import\(", text)
    assert {"axial slice", "coronal slice", "sagittal slice"} <= set(page.labels)
    # without scripts, the viewer is hidden
    assert '<div class="viewer" hidden>' in text
