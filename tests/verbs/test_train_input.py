"""What `train` refuses, each in one line: data, options, folders, and a run changed by hand."""

import json

import pytest
import torch

from tests.verbs.test_train import ON_DATA, TINY
from tests.volumes import write_case
from vnet_fast import train
from vnet_fast.errors import InputError
from vnet_fast.run.configure import configure


def in_header(path, old, new):
    """Changes message of a header that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def write_image_of(folder, name, other):
    """Replaces the image of one case by that of another."""
    for suffix in (".mhd", ".zraw"):
        (folder / f"{name}{suffix}").write_bytes(
            (folder / f"{other}{suffix}").read_bytes().replace(other.encode(), name.encode())
        )


BAD_DATA = {
    "missing data": (lambda f: (f / "Case02.zraw").unlink(), "Case02.mhd: its data file Case02.zraw is missing"),
    "truncated": (
        lambda f: (f / "Case02.zraw").write_bytes(b"x" * 9),
        "Case02.zraw: truncated: 9 compressed bytes can't hold the 11520",
    ),
    "no mask": (lambda f: (f / "Case02_segmentation.mhd").unlink(), "Case02.mhd: no mask for this image"),
    "mask of another place": (
        lambda f: in_header(f / "Case02_segmentation.mhd", "Offset = 0 0 0", "Offset = 0 5 0"),
        "Case02_segmentation.mhd: its origin is 0 5 0, that of Case02.mhd is 0 0 0",
    ),
    "mask of another size": (
        lambda f: write_case(f, "Case02", size=(18, 18, 18)) and write_image_of(f, "Case02", "Case03"),
        "Case02_segmentation.mhd: its size is 18 18 18, that of Case02.mhd is 20 18 16",
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_is_one_line(cases, tmp_path, run_verb, kind):
    change, message = BAD_DATA[kind]
    change(cases)
    code, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *ON_DATA)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_bad_data_without_debug_shows_no_traceback(cases, tmp_path, run_verb):
    (cases / "Case02.zraw").unlink()
    for arguments, shown in (([], False), (["--debug"], True)):
        _, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *ON_DATA, *arguments)
        assert ("Traceback" in err) == shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--iterations", "0"], "argument --iterations: must be a whole number above 0; got '0'"),
        (["--learning-rate", "nan"], "argument --learning-rate: must be a number above 0; got 'nan'"),
        (["--learning-rate", "inf"], "must be a number above 0; got 'inf'"),
        (["--volume", "64", "-1", "64"], "argument --volume"),
        (["--levels", "5", "--volume", "64", "8", "64"], "--volume: must be at least 16 along each axis; got 64 8 64"),
        (["--volume", "64", "4", "64", "--levels", "4"], "--volume: must be at least 8 along each axis; got 64 4 64"),
        (["--levels", "6"], "argument --levels: invalid choice: 6"),
        (["--norm", "layer"], "argument --norm: invalid choice: 'layer'"),
        (["--spacing", "1", "0", "1"], "argument --spacing"),
        (["--fold", "5"], "--fold: must be below --folds (5); got 5"),
        (["--fold", "each"], "argument --fold: must be all or a whole number, 0 or more; got 'each'"),
        (["--folds", "1"], "--folds: must be at least 2; got 1"),
        (["--momentum", "1"], "--momentum: must be below 1; got 1.0"),
        (["--topology", "unet"], "argument --topology: invalid choice: 'unet'"),
        (["--amp", "fp8"], "argument --amp: invalid choice: 'fp8'"),
        (["--iteration", "5"], "unrecognized arguments: --iteration 5"),
        (["--labels", "x"], "--labels: given without --data"),
        (["--regions", "a: 1 2"], "--regions: given without --data"),
        (["--ignore-label", "3"], "--ignore-label: given without --data"),
        (["--patches", "on"], "--patches: on without --data"),
        (["--data", ""], "argument --data: must be a path; got ''"),
        (["--seed", "99999999999999999999999"], "--seed: must be below 2^63"),
        (["--folds", "150", "--fold", "120"], "the phantoms: 100 cases for 150 folds. Give --folds 100 or less"),
        (["--data", "/nowhere"], "/nowhere: no such folder"),
        (["--resume", "/nowhere"], "/nowhere/config.json: no such file"),
        (["--device", "cuda"], "--device: no CUDA device is available. Use --device cpu"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_options_are_one_line(tmp_path, run_verb, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, err = run_verb(train, *arguments, "--output", tmp_path / "run")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_written(tmp_path, run_verb):
    (tmp_path / "file").write_text("x")
    code, _, err = run_verb(train, "--output", tmp_path / "file" / "run", *TINY)
    assert code == 2
    assert "can't be made (Not a directory). Choose another --output" in err


def test_fewer_cases_than_folds(cases, tmp_path, run_verb):
    code, _, err = run_verb(train, "--data", cases, "--output", tmp_path / "run", *TINY, "--folds", 7)
    assert code == 2
    assert "6 cases for 7 folds. Give --folds 6 or less, or add cases" in err


@pytest.mark.parametrize(
    "change",
    [
        {"volume": 5},
        *(
            pytest.param(of, marks=pytest.mark.exhaustive)
            for of in ({"topology": "unet"}, {"seed": -1}, {"learning_rate": "x"})
        ),
    ],
    ids=str,
)
def test_a_config_changed_by_hand(cases, tmp_path, run_verb, change):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    stored = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**stored, **change}))
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "config.json: not what a run stores" in err


def test_a_damaged_log(cases, tmp_path, run_verb):
    run = tmp_path / "run"
    assert run_verb(train, "--data", cases, "--output", run, *ON_DATA)[0] == 0
    (run / "log.csv").write_text("nonsense\n1\n")
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "log.csv: not a log" in err
    (run / "log.csv").unlink()
    (run / "log.csv").mkdir()
    code, _, err = run_verb(train, "--resume", run, "--iterations", 9)
    assert code == 2
    assert "log.csv: Is a directory" in err


def test_resumed_config_must_be_readable(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: can't be read"):
        configure({"resume": str(tmp_path)})
