"""The TOML file that says more about the segments of DICOM Segmentations."""

import pytest

from vnet_fast.errors import InputError
from vnet_fast.prediction.segments import TISSUE, read_segments

TITLES = {1: "prostate", 2: "a\\b\nc" + "x" * 80}
CODE = '{ scheme = "SCT", value = "41216001", meaning = "Prostate" }'


@pytest.fixture
def read(tmp_path):
    """Reads segments from a text."""

    def read(text):
        path = tmp_path / "x.toml"
        path.write_text(text, encoding="utf-8")
        return read_segments(path, TITLES)

    return read


def test_defaults():
    first, second = read_segments(None, TITLES)
    assert (first.name, first.category, first.kind, first.tracking_id) == ("prostate", TISSUE, TISSUE, "")
    assert first.colour != second.colour
    # what DICOM has no room for is left out of a name that the data set gives
    assert second.name == "a/b c" + "x" * 59


def test_all_entries(read):
    text = f"""
    [prostate]
    name = "Prostata, männlich"
    category = {{ scheme = "SCT", value = "123037004", meaning = "Anatomical Structure" }}
    type = {CODE}
    colour = [0, 128, 255]
    tracking_id = "p"
    tracking_uid = "1.2.3"
    description = "gland"
    """
    first, second = read(text)
    assert (first.name, first.colour, first.description) == ("Prostata, männlich", (0, 128, 255), "gland")
    assert (first.category.value, first.kind.meaning) == ("123037004", "Prostate")
    assert (first.tracking_id, first.tracking_uid) == ("p", "1.2.3")
    assert second.kind == TISSUE
    assert read(f"[2]\ntype = {CODE}")[1].kind.scheme == "SCT"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[heart]", r"'heart' is no class of the network. Choose from prostate \(1\)"),
        ("[3]", "'3' is no class of the network"),
        ("[1]\n[prostate]", "describes prostate twice"),
        ("1 = 2", "1 must be a table; got 2"),
        ("[1]\ncolor = [1, 2, 3]", "1 has 'color', which is not known. Choose from name, category"),
        ("[1]\ncolour = [1, 2]", "colour of prostate must be red, green and blue"),
        ("[1]\ncolour = [1, 2, 256]", "colour of prostate must be numbers from 0 to 255"),
        ("[1]\ncolour = [1, 2, 0.5]", "colour of prostate must be numbers from 0 to 255"),
        ("[1]\ncolour = [true, true, true]", "colour of prostate must be numbers from 0 to 255"),
        ('[1]\ntype = "Prostate"', 'type of prostate must have scheme, value, meaning. Write { scheme = "SCT"'),
        ('[1]\ntype = { scheme = "SCT", value = "1" }', "type of prostate must have scheme, value, meaning"),
        ('[1]\ntype = { scheme = "", value = "1", meaning = "x" }', "type of prostate must have scheme, value"),
        ('[1]\ntype = { scheme = "SCT", value = 41216001, meaning = "x" }', "value must be a text of up to 64"),
        (f'[1]\ntype = {{ scheme = "{"S" * 17}", value = "1", meaning = "x" }}', "scheme must be a text of up to 16"),
        (f'[1]\nname = "{"n" * 65}"', "name must be a text of up to 64 characters on one line"),
        ('[1]\nname = "a\\\\b"', "name must be a text of up to 64 characters on one line"),
        ('[1]\ndescription = "a\\nb"', "description must be a text of up to 1024 characters on one line"),
        ('[1]\ntracking_uid = "1.2"', "tracking_uid of prostate must be numbers with dots, beside a tracking_id"),
        ('[1]\ntracking_id = "a"\ntracking_uid = "1.02"', "tracking_uid of prostate must be numbers with dots"),
        ("[1", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
    ids=lambda value: value[:30],
)
def test_what_can_not_be_used_is_one_line(read, text, message):
    with pytest.raises(InputError, match=rf"x\.toml: {message}") as raised:
        read(text)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"x\.toml: no such file"):
        read_segments(tmp_path / "x.toml", TITLES)
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"x\.toml: not TOML \(not in UTF-8\)"):
        read_segments(tmp_path / "x.toml", TITLES)
    with pytest.raises(InputError, match="can't be read"):
        read_segments(tmp_path, TITLES)
