"""What `dataset.json` may say of the labels."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vnet_fast.data.labels import declared_ignored, declared_labels, declared_regions, without_ignored
from vnet_fast.data.preparation import IGNORED, prepare
from vnet_fast.errors import InputError
from vnet_fast.regions import Region


def declared(folder, labels, **more):
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, **more}))
    return declared_labels(folder)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "gland"}, {0: "background", 1: "gland"}),
        ({"background": 0, "gland": 1}, {0: "background", 1: "gland"}),
        ({"background": 0, "größe 前列腺": 255}, {0: "background", 255: "größe 前列腺"}),
        # nnU-Net's names may be numbers
        ({"0": 0, "2": 1, "1": 2}, {0: "0", 1: "2", 2: "1"}),
        ({"background": "0", "gland": "01"}, {0: "background", 1: "gland"}),
        # numbers of other programs, and any text
        (
            {"a": 1.0, "left\u00a0lung": 2, "左\u3000肺": 3, "a\tb\u200b": 4},
            {1: "a", 2: "left\u00a0lung", 3: "左\u3000肺", 4: "a\tb\u200b"},
        ),
        ({}, None),
        (None, None),
    ],
)
def test_sound_labels(tmp_path, labels, expected):
    assert declared(tmp_path, labels) == expected


def test_a_label_to_ignore(tmp_path):
    for labels in ({"background": 0, "gland": 1, "ignore": 3}, {"0": "background", "1": "gland", "3": "Ignore"}):
        assert declared(tmp_path, labels) == {0: "background", 1: "gland"}
        assert declared_ignored(tmp_path) == 3
    declared(tmp_path, {"background": 0, "gland": 1})
    assert declared_ignored(tmp_path) is None
    assert declared_ignored(tmp_path / "nothing") is None
    declared(tmp_path, {"gland": 1, "ignore": 0})
    with pytest.raises(InputError, match="its label to ignore must be above 0"):
        declared_ignored(tmp_path)


def test_voxels_to_ignore_are_marked():
    mask = np.arange(24).reshape(2, 3, 4) % 4
    case = prepare("A", np.arange(24.0).reshape(2, 3, 4), mask, [0, 1, 2, 3])
    assert without_ignored(case, None) is case
    marked = without_ignored(case, 3)
    np.testing.assert_array_equal(marked.mask, np.where(mask == 3, IGNORED, mask))
    assert marked.labels == (0, 1, 2)
    assert without_ignored(prepare("A", np.arange(24.0).reshape(2, 3, 4), mask, [3]), 3).labels == (0,)


def test_regions(tmp_path):
    labels = {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "active": 3, "ignore": 4}
    message = r"dataset.json: its label 'whole tumor' is a region of several labels. Give"
    with pytest.raises(InputError, match=message):
        declared(tmp_path, labels, regions_class_order=[1, 2, 3])
    regions = declared_regions(tmp_path)
    assert regions == (Region("whole tumor", (1, 2, 3)), Region("core", (2, 3)), Region("active", (3,)))
    declared(tmp_path, {"background": 0, "gland": 1})
    assert declared_regions(tmp_path) == declared_regions(tmp_path / "nothing") == ()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": [1, "x"]}, "its region 'a' must have whole numbers; got"),
        ({"a": [1, 2], "b": [2, 1]}, "b has the same labels as a"),
        ({"a": [1, 256]}, "a must have labels from 1 to 255"),
        ({"a": []}, "a must have labels from 1 to 255"),
        ({"a": [1, 2], "b": 1.5}, "its region 'b' must have whole numbers; got 1.5"),
    ],
)
def test_regions_that_are_none(tmp_path, labels, message):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(InputError, match=message):
        declared_regions(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"1000000000": "x"}, "its label '1000000000' must be from 0 to 255; got '1000000000'"),
        ({"x": 10**9}, "its label 'x' must be from 0 to 255; got 1000000000"),
        ({"x": 10**4000}, r"its label 'x' must be from 0 to 255; got a number of too many digits"),
        ({"9" * 5000: "x"}, "its label '999*… must be from 0 to 255"),
        ({"x": -1}, "its label 'x' must be from 0 to 255; got -1"),
        ({"x": 256}, "its label 'x' must be from 0 to 255; got 256"),
        ({"x": True}, "its label 'x' must have a whole number; got True"),
        ({"x": 1.5}, "its label 'x' must have a whole number; got 1.5"),
        ({"x": {"y": 1}}, "its label 'x' must have a whole number; got a dict"),
        ({"x": None}, "its label 'x' must have a whole number; got None"),
        ({"²": "x"}, "its label '²' must have a whole number; got 'x'"),
        ({"a": 1, "b": 1}, "names label 1 twice"),
        ({"1": "a", "01": "b"}, "names label 1 twice"),
        ({"1": "\ud800"}, r"the name of label 1 is no text \('\\ud800'\)"),
        ([], "its labels must be an object with a name for each label"),
        (5, "its labels must be an object with a name for each label"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    with pytest.raises(InputError, match=rf"dataset.json: not a description of a data set \({message}") as raised:
        declared(tmp_path, labels)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"labels": ' * 100_000, "nested too deeply"),
        (b'{"labels": {"x": ' + b"9" * 5000 + b"}}", "a number of too many digits"),
        (b'{"labels": {"x": 1e999}}', "its label 'x' must have a whole number; got inf"),
        (b'{"labels": {"x": NaN}}', "its label 'x' must have a whole number; got nan"),
        (b'{"labels": "\xff"}', "not in UTF-8"),
        (b'"labels"', "must be an object; got 'labels'"),
        (b" " * (17 << 20), "longer than 16 MB"),
        (b"", "Expecting value"),
        (b'{"labels": {"x": 0, "y": 1, "x": 2}}', "an object has the key 'x' twice"),
    ],
    ids=range(10),
)
def test_files_that_describe_nothing(tmp_path, content, message):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"dataset.json: not a description of a data set \({message}"):
        declared_labels(tmp_path)


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")],
    ids=["folder", "FIFO", "device"],
)
def test_what_is_no_file(tmp_path, make):
    make(tmp_path / "dataset.json")
    with pytest.raises(InputError, match=r"dataset.json: can't be read \((not a regular file|Is a directory)\)"):
        declared_labels(tmp_path)
    assert declared_labels(tmp_path / "elsewhere") is None


def test_a_mark_of_the_order_of_bytes(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"1": "gland"}}', encoding="utf-8-sig")
    assert declared_labels(tmp_path) == {1: "gland"}
