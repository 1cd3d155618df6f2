"""Patches from the command line: when they are trained on, what they find off the centre, and where a run goes on."""

import json
import signal

import numpy as np
import pytest
import SimpleITK as sitk

from tests.verbs.test_recipe import assert_same_run, stop_at
from tests.volumes import write_case
from vnet_fast import VNet, evaluate, predict, train
from vnet_fast.run import checkpoint

TINY = ["--volume", 16, 16, 16, "--spacing", 1.2, 1.1, 2, "--base-channels", 1, "--device", "cpu", "--folds", 3]
FAST = ["--recipe", "fast", "--iterations", 4, "--val-every", 2]

pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture
def large(tmp_path):
    """Cases of up to 40 voxels along an axis."""
    folder = tmp_path / "large"
    folder.mkdir()
    for index in range(6):
        write_case(folder, f"Case{index:02d}", seed=index, size=(40 - index, 20, 20 + index))
    return folder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--recipe", "fast"], True),
        (["--recipe", "fast", "--patches", "off"], False),
        (["--recipe", "paper"], False),
        (["--recipe", "paper", "--patches", "on"], True),
        # larger by less than an eighth
        (["--recipe", "fast", "--volume", 36, 18, 24], False),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else str(value),
)
def test_when_patches_are_trained_on(large, tmp_path, run_verb, options, expected):
    run = tmp_path / "run"
    code, out, err = run_verb(train, "--data", large, *TINY, "--iterations", 1, *options, "--output", run)
    assert code == 0, err
    assert ("patches: of whole volumes, of up to 35 x 20 x 25 voxels\n" in out) == expected
    assert checkpoint.load(run / "best.pt")["patches"] is expected


@pytest.mark.exhaustive
def test_phantoms_have_no_patches(tmp_path, run_verb):
    code, out, _ = run_verb(train, *TINY, "--iterations", 1, "--output", tmp_path / "run")
    assert code == 0
    assert "patches:" not in out


def test_a_run_of_patches_predicts_whole_volumes(large, tmp_path, run_verb):
    run, masks = tmp_path / "run", tmp_path / "masks"
    code, out, err = run_verb(train, "--data", large, *TINY, *FAST, "--output", run)
    assert code == 0, err
    code, out, err = run_verb(
        predict, "--checkpoint", run / "best.pt", "--input", large, "--output", masks, "--device", "cpu",
        "--probabilities",
    )  # fmt: skip
    assert code == 0, err
    assert "6 of 6 volumes are larger than the network's 19.2 x 17.6 x 32 mm: in windows, overlap 0.5\n" in out
    held_out = list((run / "predictions").glob("*.mhd"))
    assert held_out
    for mask in held_out:
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (mask, masks / mask.name))
        np.testing.assert_array_equal(ours, theirs)
    # nothing is background for sure, as it is beyond a centre
    probability = sitk.GetArrayFromImage(sitk.ReadImage(str(masks / "Case00_probability.mhd")))
    assert probability.shape == (20, 20, 40)
    assert (probability > 0).all()
    assert run_verb(evaluate, "--predictions", masks, "--labels", large, "--output", tmp_path / "x.json")[0] == 0


def test_a_run_of_patches_stopped_and_resumed_is_the_whole_run(large, tmp_path, run_verb, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--data", large, *TINY, *FAST]
    assert run_verb(train, *arguments, "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    assert run_verb(train, "--resume", parts)[0] == 0
    assert_same_run(parts, whole)


def test_a_run_from_before_there_were_patches_goes_on_without(large, tmp_path, run_verb, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = ["--data", large, *TINY, *FAST, "--patches"]
    assert run_verb(train, *arguments, "off", "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        assert run_verb(train, *arguments, "off", "--output", parts)[0] == 128 + signal.SIGTERM
    config = json.loads((parts / "config.json").read_text())
    del config["patches"]
    (parts / "config.json").write_text(json.dumps(config))
    code, out, err = run_verb(train, "--resume", parts)
    assert code == 0, err
    assert "patches:" not in out
    assert_same_run(parts, whole)


def test_networks_of_patches_and_of_centres_are_not_averaged(tmp_path, large, run_verb):
    for name, patches in (("a", True), ("b", False)):
        checkpoint.save(
            tmp_path / f"{name}.pt", VNet(base_channels=1), spacing=[1.0, 1.0, 1.0], volume=[16, 16, 16],
            validation=[], patches=patches,
        )  # fmt: skip
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    code, _, err = run_verb(predict, "--checkpoint", *paths, "--input", large, "--output", tmp_path / "masks")
    assert code == 2
    assert err.startswith(f"error: {paths[1]}: its training on patches is off, that of {paths[0]} is on. Name check")
