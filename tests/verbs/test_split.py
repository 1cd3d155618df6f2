"""Training on the folds of a file."""

import json

import pytest

from vnet_fast import train
from vnet_fast.run import checkpoint

TINY = ["--volume", 16, 16, 16, "--spacing", 1.5, 1.5, 2, "--base-channels", 1, "--device", "cpu", "--iterations", 2]
# two scans of a patient each are Case00 and Case01, Case02 and Case03; Case05 is in no fold
FOLDS = [
    {"train": ["Case00", "Case01"], "val": ["Case02", "Case03"]},
    {"train": ["Case03", "Case04"], "val": ["Case00", "Case01"]},
]

pytestmark = [pytest.mark.usefixtures("quick_training"), pytest.mark.exhaustive]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(FOLDS))
    return path


def cases_of(folder):
    content = checkpoint.load(folder / "last.pt")
    return {"train": content["training"], "val": content["validation"]}


def test_folds_of_a_file_are_trained_and_collected(cases, path, tmp_path, run_verb):
    run = tmp_path / "run"
    # Case05 is not read
    (cases / "Case05.zraw").unlink()
    code, out, err = run_verb(train, "--data", cases, *TINY, "--split", path, "--fold", "all", "--output", run)
    assert code == 0, err
    assert [cases_of(run / f"fold{fold}") for fold in range(2)] == FOLDS
    assert "data: 5 cases in" in out
    assert "2 to train on, 2 to validate, 1 in neither part of the fold, 1 class" in out
    summary = json.loads((run / "summary.json").read_text())
    assert sorted(summary["val_dice_per_case"]) == ["Case00", "Case01", "Case02", "Case03"]
    assert len(list((run / "predictions").glob("*.mhd"))) == 4


def test_other_seeds_have_the_same_cases(cases, path, tmp_path, run_verb):
    for seed in (1, 2):
        options = ["--split", path, "--seed", seed, "--output", tmp_path / f"seed{seed}"]
        assert run_verb(train, "--data", cases, *TINY, *options)[0] == 0
    assert cases_of(tmp_path / "seed1") == cases_of(tmp_path / "seed2") == FOLDS[0]


def test_a_run_is_resumed_with_its_split(cases, path, tmp_path, run_verb):
    run, more = tmp_path / "run", ["--resume", tmp_path / "run", "--iterations", 3]
    assert run_verb(train, "--data", cases, *TINY, "--split", path, "--output", run)[0] == 0
    # elsewhere now
    moved = path.rename(tmp_path / "moved.json")
    code, _, err = run_verb(train, *more)
    assert (code, f"error: {path}: can't be read (No such file or directory). Check the path" in err) == (2, True)
    for content, message in (
        (FOLDS[::-1], f"{run}: its cases have changed: Case02, Case04. Restore them, or start a new run"),
        (FOLDS[:1], f"{moved}: has 1 fold, and the run 2. Restore it, or start a new run"),
    ):
        moved.write_text(json.dumps(content))
        code, _, err = run_verb(train, *more, "--split", moved)
        assert (code, f"error: {message}" in err) == (2, True), err
    moved.write_text(json.dumps(FOLDS))
    code, _, err = run_verb(train, *more, "--split", moved)
    assert (code, cases_of(run)) == (0, FOLDS[0]), err


def test_a_run_with_drawn_folds_takes_no_split(cases, path, tmp_path, run_verb):
    assert run_verb(train, "--data", cases, *TINY, "--folds", 3, "--output", tmp_path / "run")[0] == 0
    code, _, err = run_verb(train, "--resume", tmp_path / "run", "--iterations", 3, "--split", path)
    assert (code, err.count("error: --split: given to a run whose folds were drawn. Leave it out")) == (2, 1)


def test_a_single_fold_is_a_fixed_set_to_validate_on(cases, path, tmp_path, run_verb):
    path.write_text(json.dumps(FOLDS[:1]))
    code, _, err = run_verb(train, "--data", cases, *TINY, "--split", path, "--output", tmp_path / "run")
    assert (code, cases_of(tmp_path / "run")) == (0, FOLDS[0]), err


def test_the_check_looks_at_the_cases_of_the_split(cases, path, run_verb):
    (cases / "Case05.zraw").unlink()
    code, out, err = run_verb(train, "--data", cases, *TINY, "--split", path, "--check")
    assert (code, "5 of 5 cases can be read" in out) == (0, True), err
    path.write_text(json.dumps([{"train": ["Case00"], "val": ["Case77"]}]))
    code, _, err = run_verb(train, "--data", cases, *TINY, "--split", path, "--check")
    assert (code, f"error: {path}: names cases that {cases} does not have: Case77. Name them" in err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", 3], "--folds: is 3, and {path} has 2. Leave it out"),
        (["--fold", 2], "--fold: must be below the 2 of {path}; got 2. Folds count from 0"),
        (
            ["--fold", "all"],
            "{path}: fold 1 holds out cases that a fold before it does: Case02. Hold each case out once",
        ),
    ],
)
def test_options_that_contradict_the_split(cases, path, tmp_path, run_verb, options, message):
    if "all" in options:
        path.write_text(json.dumps([FOLDS[0], {"train": ["Case00"], "val": ["Case02"]}]))
    run = tmp_path / "run"
    code, _, err = run_verb(train, "--data", cases, *TINY, "--split", path, *options, "--output", run)
    assert (code, f"error: {message.format(path=path)}" in err, run.exists()) == (2, True, False), err


def start_with_fold_0(run_verb, cases, folder, *options):
    """Trains the first fold of a cross-validation; returns the command of all folds."""
    common = ["--data", cases, *TINY]
    assert run_verb(train, *common, *options, "--output", folder / "fold0")[0] == 0
    return [train, *common, "--fold", "all", "--output", folder]


def test_folds_are_all_of_the_split_or_all_drawn(cases, path, tmp_path, run_verb):
    command = start_with_fold_0(run_verb, cases, tmp_path / "ours", "--split", path)
    code, _, err = run_verb(*command, "--folds", 2)
    message = f"error: {tmp_path / 'ours' / 'fold0'}: its folds are those of {path}. Give them with --split"
    assert (code, message in err, (tmp_path / "ours" / "fold1").exists()) == (2, True, False), err
    command = start_with_fold_0(run_verb, cases, tmp_path / "drawn", "--folds", 2)
    code, _, err = run_verb(*command, "--split", path)
    message = f"error: {tmp_path / 'drawn' / 'fold0'}: its folds were drawn. Leave --split out"
    assert (code, message in err, (tmp_path / "drawn" / "fold1").exists()) == (2, True, False), err


def test_a_fold_that_is_finished_is_one_of_the_split(cases, path, tmp_path, run_verb):
    command = [*start_with_fold_0(run_verb, cases, tmp_path / "run", "--split", path), "--split", path]
    path.write_text(json.dumps([{"train": ["Case02"], "val": ["Case05"]}, FOLDS[1]]))
    code, _, err = run_verb(*command)
    message = f"error: {tmp_path / 'run' / 'fold0'}: was trained on other cases than those of fold 0 in {path}. Restore"
    assert (code, message in err, (tmp_path / "run" / "fold1").exists()) == (2, True, False), err
    path.write_text(json.dumps(FOLDS))
    assert run_verb(*command)[0] == 0
    # nothing is left to train, so that it is not needed any more
    path.unlink()
    code, out, err = run_verb(train, "--resume", tmp_path / "run")
    assert (code, out.count("finished at iteration 2")) == (0, 2), err


def test_a_case_that_is_in_no_fold_needs_no_mask(cases, path, tmp_path, run_verb):
    (cases / "Case05_segmentation.mhd").unlink()
    assert run_verb(train, "--data", cases, *TINY, "--split", path, "--output", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("option", ["--check", "--recipe"])
def test_a_wrong_name_is_found_before_anything_is_read(cases, path, tmp_path, run_verb, option):
    path.write_text(json.dumps([{"train": ["Case00.mhd"], "val": ["Case01.mhd"]}]))
    options = ["--check"] if option == "--check" else ["--recipe", "fast"]
    cache = tmp_path / "cache"
    code, out, err = run_verb(train, "--data", cases, "--split", path, "--cache", cache, "--device", "cpu", *options)
    message = f"error: {path}: names cases that {cases} does not have: Case00.mhd, Case01.mhd. Name them"
    assert (code, message in err, "preparing" in out, cache.exists()) == (2, True, False, False), err


def test_a_check_of_all_folds_finds_what_two_hold_out(cases, path, run_verb):
    path.write_text(json.dumps([FOLDS[0], {"train": ["Case00"], "val": ["Case02"]}]))
    code, _, err = run_verb(train, "--data", cases, *TINY, "--split", path, "--fold", "all", "--check")
    assert (code, "fold 1 holds out cases that a fold before it does: Case02" in err) == (2, True)


def test_a_plan_is_of_the_cases_of_the_split(cases, path, run_verb):
    """A damaged mask of a case that no fold names is not read."""
    (cases / "Case05_segmentation.mhd").write_text("damaged")
    options = ["--recipe", "fast", "--device", "cpu", "--check"]
    code, out, err = run_verb(train, "--data", cases, "--split", path, *options)
    assert (code, "plan: " in out, "5 of 5 cases can be read" in out) == (0, True, True), err
    assert run_verb(train, "--data", cases, *options)[0] == 2


def test_phantoms_have_no_split(path, run_verb):
    code, _, err = run_verb(train, *TINY, "--split", path)
    assert (code, "error: --split: given without --data. Give the folder of the volumes too" in err) == (2, True)
