import json
from types import SimpleNamespace

import pytest

from vnet_fast.data.folds import check_disjoint, chosen_cases, divide, named_cases, read_split
from vnet_fast.errors import InputError, InputErrors

CASES = [SimpleNamespace(name=name) for name in ("a1", "a2", "b1", "b2", "c1")]
FOLDS = [{"train": ["b1", "b2", "a1"], "val": ["c1"]}, {"train": ["c1", "b1"], "val": ["a2", "a1"]}]


def settings(path, **others):
    return SimpleNamespace(**{"data": "DIR", "split": str(path), "folds": 2, "fold": 0, "seed": 0, **others})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "splits_final.json"


def names(cases):
    return [case.name for case in cases]


def test_a_file_says_the_cases_of_each_fold(path):
    path.write_text(json.dumps(FOLDS))
    # in the order of the cases, so that a run does not depend on that of the file; a2 is in neither part
    assert [names(part) for part in divide(CASES, settings(path))] == [["a1", "b1", "b2"], ["c1"]]
    assert [names(part) for part in divide(CASES, settings(path, fold=1))] == [["b1", "c1"], ["a1", "a2"]]
    # neither the seed nor the number of cases matters
    assert [names(part) for part in divide(CASES[2:], settings(path, seed=9))] == [["b1", "b2"], ["c1"]]


def test_cases_that_no_fold_names_are_left_out(path):
    path.write_text(json.dumps(FOLDS[:1]))
    assert names(chosen_cases(CASES, [], str(path), "DIR")) == ["a1", "b1", "b2", "c1"]
    assert names(named_cases(CASES, None)) == names(CASES)
    # nor does it matter that their files are not paired
    unpaired = [InputError(f"DIR/{name}.mhd", "no mask for this image", "Add it") for name in ("a2", "c1")]
    with pytest.raises(InputErrors) as raised:
        chosen_cases(CASES, unpaired, str(path), "DIR")
    assert raised.value.errors == unpaired[1:]


@pytest.mark.parametrize(
    ("file", "is_named"),
    [
        ("c1.nii.gz", True), ("c1_0000.nii.gz", True), ("c1_seg.nrrd", True), ("c1_segmentation.mhd", True),
        ("c10.nii.gz", False), ("c1b_0000.nii.gz", False), ("c1_left.nrrd", False), ("c10_segmentation.mhd", False),
    ],
)  # fmt: skip
def test_unpaired_files_of_other_names_do_not_matter(path, file, is_named):
    path.write_text(json.dumps(FOLDS[:1]))
    unpaired = [InputError(f"DIR/{file}", "no mask for this image", "Add it")]
    if is_named:
        with pytest.raises(InputErrors):
            chosen_cases(CASES, unpaired, str(path), "DIR")
    else:
        assert names(chosen_cases(CASES, unpaired, str(path), "DIR")) == ["a1", "b1", "b2", "c1"]


def test_names_of_no_case(path):
    path.write_text(json.dumps([{"train": ["a1", *(f"x{i}" for i in range(6))], "val": ["c1"]}]))
    message = r"names cases that DIR does not have: x0, x1, x2, x3, x4 and 1 more. Name them"
    with pytest.raises(InputErrors, match=message):
        chosen_cases(CASES, [], str(path), "DIR")


def test_another_number_of_folds_than_that_of_the_run(path):
    path.write_text(json.dumps(FOLDS))
    with pytest.raises(InputError, match=r"has 2 folds, and the run 3. Restore it"):
        divide(CASES, settings(path, folds=3))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (None, "can't be read"),
        ("{", "no split into folds: "),
        ('{"train": ["a1"], "val": ["c1"]}', "no split into folds: must be a list"),
        ("[]", "has no folds"),
        ('[["a1", "c1"]]', "no split into folds: fold 0 has no list 'train'"),
        ('[{"train": ["a1"], "validation": ["c1"]}]', "no split into folds: fold 0 has no list 'val'"),
        (
            '[{"train": ["a1"], "val": ["c1"]}, {"train": ["a1"], "val": "c1"}]',
            "no split into folds: fold 1 has no list",
        ),
        ('[{"train": ["a1"], "val": ["c1"], "val": ["b1"]}]', "no split into folds: an object has the key 'val' twice"),
        ('[{"train": [1], "val": ["c1"]}]', "no split into folds: fold 0 names 1 in 'train'"),
        ('[{"train": ["a1"], "val": []}]', "fold 0 has no cases in 'val'"),
        ('[{"train": ["a1", "b1"], "val": ["b1", "c1"]}]', "fold 0 trains on cases that it holds out: b1. Name"),
    ],
)
def test_files_that_are_no_split(path, content, cause):
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as raised:
        read_split(str(path))
    assert str(raised.value).startswith(f"{path}: {cause}")


def test_a_case_that_two_folds_hold_out(path):
    path.write_text(json.dumps(FOLDS))
    check_disjoint(str(path))
    path.write_text(json.dumps([*FOLDS, {"train": ["b1"], "val": ["b2", "a1"]}]))
    with pytest.raises(InputError, match=r"fold 2 holds out cases that a fold before it does: a1. Hold each"):
        check_disjoint(str(path))
