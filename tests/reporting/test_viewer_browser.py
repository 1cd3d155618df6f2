"""The viewer of a report's cases in Chromium; VNET_FAST_CHROMIUM names one that is not on the path."""

import io

import matplotlib.image
import numpy as np
import pytest

from tests.reporting.browser import chromium, find_chromium
from tests.reporting.test_viewer import evaluation, make_figure
from vnet_fast.evaluation.figures import CaseFigure
from vnet_fast.reporting import html
from vnet_fast.reporting.viewer import CaseInView, make_viewer, pack

pytestmark = pytest.mark.exhaustive
PROGRAM = find_chromium()
SLICES = "[...document.querySelectorAll('canvas')].map((canvas) => canvas.getAttribute('aria-valuetext'))"
READY = "document.querySelector('canvas')?.hasAttribute('aria-valuetext')"
# orange and blue of the labels 1 and 2
ORANGE, BLUE = (230, 158, 0), (87, 181, 232)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no Chromium (VNET_FAST_CHROMIUM names one)")
    with chromium(PROGRAM, tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A page with two cases, the second of which is mirrored."""
    figure = make_figure()
    mirrored = CaseFigure("B", figure.image, figure.reference[:, :, ::-1], {}, figure.grid)
    cases = [
        CaseInView("A", "A, Dice 0.500", pack(figure, [figure.predictions[""]], 2, (1, 2))),
        CaseInView("B", "B, Dice 0.600", pack(mirrored, [None], 2, (1, 2))),
    ]
    shown = make_viewer([evaluation([1, 2], _1="Head", _2="Tail")], (), cases)
    path = tmp_path_factory.mktemp("page") / "report.html"
    table = html.Table(["case"], [["B"], ["C"], ["A"]], "y", of_cases=True)
    sections = [
        html.Section("Before", text="x"),
        html.Section("Slice by slice", viewer=shown),
        html.Section("After", [table]),
    ]
    path.write_text(html.page("t", "s", sections), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, report):
    """The report, newly opened."""
    browser.emulate(1200)
    browser.open(report)
    browser.wait(READY)
    yield browser
    loaded = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in loaded if not url.startswith(("file:", "data:"))] == []
    wrong = [event for event in browser.events if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert wrong == []


def box(page, plane=0):
    """The place of a plane's picture in the window: left, top, width, height."""
    return page.evaluate(
        f"(({{left, top, width, height}}) => [left, top, width, height])"
        f"(document.querySelectorAll('canvas')[{plane}].getBoundingClientRect())"
    )


def settle(page):
    """Waits until what has changed is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")


def pixels(page, plane=0):
    """The picture of a plane, (height, width, 3)."""
    settle(page)
    left, top, width, height = (round(value) for value in box(page, plane))
    picture = matplotlib.image.imread(io.BytesIO(page.screenshot()))
    return np.round(picture[top : top + height, left : left + width, :3] * 255).astype(int)


def has_colour(picture, colour):
    return bool((np.abs(picture - colour).max(-1) < 12).any())


def shown(page):
    settle(page)
    return page.evaluate(SLICES)


def test_the_first_slices(page):
    """Those with most of the structure, by their numbers in the volume and places in mm."""
    assert shown(page) == ["slice 6 of 12, 120.0 mm S", "slice 21 of 40, 45.0 mm P", "slice 25 of 50, 14.0 mm L"]
    texts = page.evaluate("[...document.querySelectorAll('.place')].map((place) => place.textContent)")
    assert texts == shown(page)


def test_pictures_have_the_shape_of_what_they_show(page):
    """The box has 28 x 14 x 9 voxels of 1 x 2 x 4 mm."""
    for plane, aspect in ((0, 28 / 28), (1, 28 / 36), (2, 28 / 36)):
        _, _, width, height = box(page, plane)
        assert width / height == pytest.approx(aspect, rel=0.01)


def test_keys(page):
    """The first slice is the third of the volume, the last is the eleventh; Tab leads from plane to plane."""
    page.evaluate("document.querySelector('canvas').focus()")
    for key, times, slice_ in (
        ("ArrowUp", 1, 7), ("ArrowRight", 1, 8), ("ArrowDown", 1, 7), ("ArrowLeft", 2, 5), ("PageUp", 1, 10),
        ("PageUp", 1, 11), ("Home", 1, 3), ("PageDown", 1, 3), ("End", 1, 11),
    ):  # fmt: skip
        page.press(key, times)
        assert shown(page)[0].startswith(f"slice {slice_} of 12,"), key
    assert page.evaluate("scrollY") == 0
    page.press("Tab")
    page.press("Home")
    assert shown(page)[1].startswith("slice 16 of 40,")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_the_wheel(page):
    x, y = box(page)[0] + 50, box(page)[1] + 50
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=120)
    page.wait(f"{SLICES}[0].startsWith('slice 7 ')")
    for _ in range(4):
        # a trackpad sends less at a time
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-20)
    page.wait(f"{SLICES}[0].startsWith('slice 5 ')")
    assert page.evaluate("scrollY") == 0


def test_the_wheel_scrolls_the_page_at_the_last_slice(page):
    page.emulate(1200, 300)
    page.evaluate("document.querySelector('canvas').focus()")
    page.press("End")
    page.evaluate("new Promise((done) => setTimeout(() => done(1), 400))")
    before = page.evaluate("scrollY")
    left, top, _, _ = box(page)
    page.mouse("mouseWheel", left + 50, max(top, 0) + 20, deltaX=0, deltaY=120)
    page.wait(f"scrollY > {before}")


def test_a_click_moves_the_other_planes(page):
    left, top, width, height = box(page, 1)
    # in the coronal plane: the first column and the lowest row, where the feet are
    page.click(left + 1, top + height - 2)
    assert shown(page) == ["slice 3 of 12, 108.0 mm S", "slice 21 of 40, 45.0 mm P", "slice 15 of 50, 4.0 mm L"]
    page.click(left + width - 2, top + 1)
    assert [text.partition(",")[0] for text in shown(page)] == ["slice 11 of 12", "slice 21 of 40", "slice 42 of 50"]


def test_a_finger(page):
    """A horizontal swipe moves a slice each 8 pixels, and a tap moves the other planes."""
    page.emulate(390, touch=True)
    settle(page)
    left, top, width, _ = box(page)
    before = shown(page)
    page.swipe([(left + 40 + step, top + 30) for step in range(0, 36, 4)])
    assert shown(page)[0].startswith("slice 10 of 12")
    assert shown(page)[1:] == before[1:]
    page.swipe([(left + width - 3, top + 30)])
    assert shown(page)[2].startswith("slice 42 of 50")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_contours_can_be_switched_off(page):
    page.evaluate("document.querySelector('.position').click()")
    assert has_colour(pixels(page), ORANGE)
    assert has_colour(pixels(page), BLUE)
    page.evaluate("document.querySelectorAll('.class')[1].click()")
    assert has_colour(pixels(page), ORANGE)
    assert not has_colour(pixels(page), BLUE)
    # the reference; the prediction is the same in this slice, but dashed
    full = (np.abs(pixels(page) - ORANGE).max(-1) < 12).sum()
    page.evaluate("document.querySelectorAll('.mask')[0].click()")
    dashed = (np.abs(pixels(page) - ORANGE).max(-1) < 12).sum()
    assert 0.3 * full < dashed < 0.9 * full
    page.evaluate("document.querySelectorAll('.mask')[1].click()")
    assert not has_colour(pixels(page), ORANGE)


def test_contours_run_around_the_voxels(page):
    """The block of label 1 is columns 24 to 29 and rows 20 to 23 of the volume; the box begins at 14 and 15."""
    page.evaluate("document.querySelector('.position').click(); document.querySelectorAll('.class')[1].click()")
    picture = pixels(page)
    rows, columns = np.nonzero(np.abs(picture - ORANGE).max(-1) < 40)
    height, width = picture.shape[:2]
    assert columns.min() / width == pytest.approx(10 / 28, abs=0.01)
    assert columns.max() / width == pytest.approx(16 / 28, abs=0.01)
    assert rows.min() / height == pytest.approx(5 / 14, abs=0.01)
    assert rows.max() / height == pytest.approx(9 / 14, abs=0.01)


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (["...", ".#.", "..."], [4]),
        (["##", "##"], [8]),
        (["###", "#.#", "###"], [4, 12]),
        (["#.", ".#"], [4, 4]),
        ([".#", "#."], [4, 4]),
        (["#..", "###", "..#", "..."], [12]),
        (["..", ".."], []),
    ],
    ids=["voxel", "block at the edge", "ring", "diagonal", "other diagonal", "steps", "nothing"],
)
def test_borders_are_closed(page, rows, lengths):
    """One for each connected border, of a point for each side of a voxel; else dashes would begin again and again."""
    inside = f"(column, row) => ({rows}[row] ?? '')[column] === '#'"
    found = page.evaluate(f"borders({inside}, {len(rows[0])}, {len(rows)})")
    assert sorted(map(len, found)) == lengths
    for border in found:
        steps = np.abs(np.diff(np.array([*border, border[0]]), axis=0))
        # from the middle of one side of a cell to that of another
        assert set(map(tuple, steps)) <= {(1, 1), (2, 0), (0, 2)}


def test_the_window(page):
    """Brightness, contrast, and back."""
    page.evaluate("for (const box of document.querySelectorAll('.mask, .position')) box.click()")
    before, text = pixels(page), page.evaluate("document.querySelector('.window').textContent")
    page.evaluate("document.querySelector('.brightness').focus()")
    page.press("ArrowRight", 30)
    assert pixels(page).mean() > before.mean() + 30
    page.evaluate("document.querySelector('.reset').click()")
    np.testing.assert_array_equal(pixels(page), before)
    page.evaluate("document.querySelector('.contrast').focus()")
    page.press("ArrowRight", 30)
    # intensities rise from left to right, now from black to white in less of the picture
    assert pixels(page).std() > before.std() + 10
    assert page.evaluate("document.querySelector('.window').textContent") != text
    page.evaluate("document.querySelector('.reset').click()")
    settle(page)
    assert page.evaluate("document.querySelector('.window').textContent") == text


def test_another_case(page):
    """It is chosen by the keyboard; it has no prediction, and its structure is on the other side."""
    page.evaluate("document.querySelector('select').focus()")
    page.press("ArrowDown")
    page.wait("document.querySelectorAll('.mask')[1].disabled")
    assert shown(page)[2] == "slice 19 of 50, 8.0 mm L"
    assert page.evaluate("document.querySelector('select').value") == "B"


def test_a_name_in_the_table_of_cases(page):
    """It leads to the viewer; the keys then move its slices. A case that the viewer lacks has no button."""
    buttons = page.evaluate("[...document.querySelectorAll('.cases button')].map((button) => button.textContent)")
    assert buttons == ["B", "A"]
    page.emulate(1200, 300)
    page.evaluate("scrollTo(0, document.body.scrollHeight); document.querySelector('.cases button').click()")
    page.wait("document.querySelectorAll('.mask')[1].disabled")
    assert page.evaluate("scrollY") < page.evaluate("document.querySelector('.cases').offsetTop")
    page.press("Home")
    assert shown(page)[0].startswith("slice 3 of 12,")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_is_wider_than_the_window(page, scheme, width):
    page.emulate(width, scheme=scheme)
    settle(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 24, 29)"}[scheme]


def test_without_scripts(browser, report):
    """There is a sentence instead of the viewer."""
    browser.emulate(1200, scripts=False)
    browser.open(report)
    # what the page has can only be asked from outside
    document = browser.call("DOM.getDocument", depth=-1)["root"]["nodeId"]
    for selector in ("noscript p", ".viewer[hidden]"):
        assert browser.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"], selector
