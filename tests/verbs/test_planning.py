"""The grid of a run that is planned from its data."""

import json

import pytest

from tests.volumes import write_case
from vnet_fast import VNet, predict, train
from vnet_fast.run import checkpoint

TINY = ["--base-channels", 1, "--device", "cpu", "--folds", 3, "--iterations", 1]

pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture
def data(tmp_path):
    """Cases of 48 x 44 x 40 mm with a structure of about 12 x 12 x 8 voxels of 2 mm."""
    folder = tmp_path / "data"
    folder.mkdir()
    for index in range(6):
        write_case(folder, f"Case{index:02d}", seed=index, size=(24, 22, 20), spacing=(2, 2, 2))
    return folder


def stored(run):
    config = json.loads((run / "config.json").read_text())
    return tuple(config["volume"]), tuple(config["spacing"]), config["levels"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--recipe", "fast"], ((24, 24, 20), (2.0, 2.0, 2.0), 3)),
        pytest.param(
            ["--recipe", "fast", "--volume", 16, 16, 16],
            ((16, 16, 16), (2.0, 2.0, 2.0), 3),
            marks=pytest.mark.exhaustive,
        ),
        (["--recipe", "fast", "--spacing", 3, 3, 3, "--volume", "auto"], ((16, 16, 16), (3.0, 3.0, 3.0), 3)),
        (["--volume", "auto", "--spacing", 3, 3, 3], ((32, 32, 32), (3.0, 3.0, 3.0), 5)),
        pytest.param(
            ["--volume", 16, 16, 16, "--spacing", "auto"],
            ((16, 16, 16), (2.0, 2.0, 2.0), 5),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_the_grid_of_a_run(data, tmp_path, run_verb, options, expected):
    run = tmp_path / "run"
    code, out, err = run_verb(train, "--data", data, *TINY, *options, "--output", run)
    assert code == 0, err
    assert out.startswith("plan: ")
    assert "volumes measure 48 x 44 x 40 mm in the median, and their smallest structure" in out.splitlines()[0]
    assert stored(run) == expected
    code, out, err = run_verb(train, "--resume", run, "--iterations", 2, "--volume", "auto")
    assert code == 0, err
    assert "plan:" not in out
    assert stored(run) == expected


def test_the_paper_has_its_own_grid(data, tmp_path, run_verb):
    code, out, _ = run_verb(train, "--data", data, "--folds", 3, "--device", "cpu", "--check")
    assert code == 0
    assert "plan:" not in out


def test_a_check_prints_the_plan(data, run_verb):
    code, out, _ = run_verb(train, "--data", data, "--folds", 3, "--device", "cpu", "--recipe", "fast", "--check")
    assert code == 0
    assert out.startswith("plan: 24 x 24 x 20 voxels of 2 x 2 x 2 mm: ")
    assert "6 of 6 cases can be read, 0 warnings" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--volume", "auto"], "--volume: is auto without --data. Give numbers, or the folder of the volumes"),
        (["--spacing", "auto", "--recipe", "fast"], "--spacing: is auto without --data"),
        (["--data", "{data}", "--volume", 16, 16], "--volume: must be three numbers; got 16 16. Give x, y and z"),
        (["--data", "{data}", "--spacing", 1, "auto", 1], "--spacing: must be three numbers; got 1.0 auto 1.0"),
        (
            ["--data", "{data}", "--recipe", "fast", "--spacing", 1, 1],
            "--spacing: must be three numbers; got 1.0 1.0",
        ),
        (
            ["--data", "{data}", "--recipe", "fast", "--volume", "auto", "auto", "auto"],
            "--volume: must be three numbers",
        ),
        (
            ["--data", "{data}", "--recipe", "fast", "--spacing", 1e-20, 1, 1],
            "--spacing: must be from 1e-06 to 1e+06",
        ),
        (["--data", "{data}", "--volume", 16, 16, 0], "argument --volume: must be a whole number above 0; got '0'"),
    ],
)
def test_grids_that_are_none(data, tmp_path, run_verb, options, message):
    options = [str(option).format(data=data) for option in options]
    code, _, err = run_verb(train, *options, "--device", "cpu", "--output", tmp_path / "run")
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_no_case_can_be_read(data, tmp_path, run_verb):
    for path in data.glob("*_segmentation.mhd"):
        path.write_text("no header")
    code, _, err = run_verb(train, "--data", data, *TINY, "--recipe", "fast", "--output", tmp_path / "run")
    assert code == 2
    # a line for each
    assert err.count("error: ") == err.count("_segmentation.mhd: ") == 6
    assert not (tmp_path / "run").exists()


def test_slices_that_lie_far_apart_are_halved_less_often(tmp_path, run_verb):
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    for index in range(4):
        write_case(folder, f"Case{index}", seed=index, size=(32, 30, 9), spacing=(1, 1, 4))
    code, _, err = run_verb(
        train, "--data", folder, *TINY, "--recipe", "fast", "--spacing", 1, 1, 4, "--folds", 2, "--output", run
    )
    assert code == 0, err
    # 9 slices, which need not be a multiple of 8
    assert stored(run) == ((32, 32, 10), (1.0, 1.0, 4.0), 4)
    config = json.loads((run / "config.json").read_text())
    assert config["halvings"] == [3, 3, 1]
    masks = tmp_path / "masks"
    code, _, err = run_verb(predict, "--checkpoint", run / "best.pt", "--input", folder, "--output", masks)
    assert code == 0, err
    assert len(list(masks.glob("*.mhd"))) == 4
    code, _, err = run_verb(train, "--resume", run, "--iterations", 2)
    assert code == 0, err
    for given, message in (
        ((0, 0, 0), "must be from 0 to 4, the steps of 5 levels, and 4 along one axis; got 0 0 0"),
        ((4, 4, 5), "must be from 0 to 4, the steps of 5 levels, and 4 along one axis; got 4 4 5"),
    ):
        code, _, err = run_verb(train, "--data", folder, "--halvings", *given, "--output", tmp_path / "no")
        assert (code, err) == (2, f"error: --halvings: {message}. Leave it out for all steps\n")


def test_windows_are_planned_for_the_grid_of_a_checkpoint(data, tmp_path, run_verb):
    source = tmp_path / "source.pt"
    model = VNet(base_channels=1, levels=3, kernel_size=3)
    checkpoint.save(source, model, spacing=[3.0, 3.0, 3.0], volume=[48, 48, 48], validation=[])
    run = tmp_path / "run"
    given = "--init", source, "--volume", "auto", "--halvings", 2, 2, 2
    code, out, err = run_verb(train, "--data", data, *given, *TINY, "--recipe", "fast", "--output", run)
    assert code == 0, err
    # 48 x 44 x 40 mm, in multiples of 4 voxels
    assert out.startswith("plan: 16 x 16 x 16 voxels of 3 x 3 x 3 mm: ")
    assert stored(run) == ((16, 16, 16), (3.0, 3.0, 3.0), 3)
