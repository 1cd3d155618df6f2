"""`train --init`: a run that starts from the checkpoint of another one."""

import json
import shutil
import signal

import pytest
import torch

from tests.verbs.test_recipe import assert_same_run, json_of, stop_at
from vnet_fast import VNet, train
from vnet_fast.run import checkpoint
from vnet_fast.run.initial import NETWORK

TINY = ["--device", "cpu", "--folds", 3]
# so small that no weight changes by more than 1e-25
STILL = ["--learning-rate", 1e-30, "--iterations", 1]

pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture
def source(tmp_path):
    """A checkpoint of a network for two classes, unlike that of any recipe."""
    torch.manual_seed(5)
    model = VNet(num_classes=3, base_channels=3, norm="batch", levels=3, kernel_size=3)
    path = tmp_path / "source.pt"
    checkpoint.save(path, model, spacing=[1.5, 1.5, 2.0], volume=[24, 16, 16], validation=[])
    return path


def test_a_run_has_the_weights_the_network_and_the_grid_of_its_checkpoint(cases, source, tmp_path, run_verb):
    run = tmp_path / "run"
    code, out, err = run_verb(train, "--data", cases, "--init", source, *TINY, *STILL, "--output", run)
    assert code == 0, err
    assert f"weights: of {source}; its output layer is new, for 1 class instead of 2\n" in out
    config, content = json_of(run / "config.json"), checkpoint.load(run / "last.pt")
    expected = {"topology": "paper", "norm": "batch", "levels": 3, "kernel_size": 3, "base_channels": 3}
    expected["halvings"] = [2, 2, 2]
    assert {name: config[name] for name in NETWORK} == expected
    assert (config["spacing"], config["volume"], config["init"]) == ([1.5, 1.5, 2.0], [24, 16, 16], str(source))
    stored = checkpoint.load(source)["model"]
    same = [name for name in stored if not name.startswith("head.") and "running" not in name]
    assert len(same) > 30
    assert all(torch.allclose(content["model"][name], stored[name], rtol=0, atol=1e-25) for name in same)
    assert json_of(run / "summary.json")["init"] == str(source)


def test_what_is_given_wins_where_it_may(cases, source, tmp_path, run_verb):
    run = tmp_path / "run"
    options = ["--recipe", "fast", "--volume", 16, 16, 16, "--spacing", 2, 2, 2, "--levels", 3, "--freeze", 2]
    code, out, err = run_verb(
        train, "--data", cases, "--init", source, *TINY, "--iterations", 2, *options, "--output", run
    )
    assert code == 0, err
    assert "recipe: fast, 2 stages frozen, dice-ce" in out
    config, content = json_of(run / "config.json"), checkpoint.load(run / "last.pt")["model"]
    assert (config["spacing"], config["volume"], config["base_channels"]) == ([2, 2, 2], [16, 16, 16], 3)
    stored = checkpoint.load(source)["model"]
    frozen = [name for name in stored if name.startswith(("left.0.", "left.1.", "down.0."))]
    assert all(torch.equal(content[name], stored[name]) for name in frozen)
    assert not torch.equal(content["left.2.layers.0.convolution.weight"], stored["left.2.layers.0.convolution.weight"])


@pytest.mark.parametrize("freeze", [0, 1])
def test_a_run_stopped_and_resumed_is_the_whole_run_without_its_checkpoint(
    cases, source, tmp_path, run_verb, monkeypatch, freeze
):
    arguments = ["--data", cases, "--init", source, "--freeze", freeze, *TINY, "--recipe", "fast", "--iterations", 4]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_verb(train, *arguments, "--output", whole)[0] == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert run_verb(train, *arguments, "--output", parts)[0] == 128 + signal.SIGTERM
    source.unlink()
    code, out, err = run_verb(train, "--resume", parts)
    assert code == 0, err
    assert "weights: of" not in out
    assert_same_run(parts, whole)


def test_held_out_cases_that_the_checkpoint_knows_are_named(cases, source, tmp_path, run_verb):
    content = checkpoint.load(source)
    torch.save(content | {"training": [f"Case{n:02d}" for n in range(6)]}, source)
    code, _, err = run_verb(train, "--data", cases, "--init", source, *TINY, *STILL, "--output", tmp_path / "run")
    assert code == 0
    (line,) = [line for line in err.splitlines() if line.startswith("warning")]
    assert f"warning: {source} was trained on 2 of the 2 cases that this run holds out" in line


@pytest.mark.exhaustive
def test_a_fold_that_has_not_begun_takes_the_checkpoint_from_another_place(cases, source, tmp_path, run_verb):
    folder, moved = tmp_path / "cv", tmp_path / "moved.pt"
    arguments = ["--data", cases, *TINY, *STILL, "--fold", "all", "--output", folder]
    assert run_verb(train, *arguments, "--init", source)[0] == 0
    shutil.rmtree(folder / "fold1")
    source.rename(moved)
    code, _, err = run_verb(train, "--resume", folder)
    assert (code, err.count("no such file. Check the path")) == (2, 1)
    code, out, err = run_verb(train, "--resume", folder, "--init", moved)
    assert code == 0, err
    assert f"weights: of {moved}" in out


@pytest.mark.exhaustive
def test_phantoms_too(source, tmp_path, run_verb):
    code, out, err = run_verb(train, "--init", source, *TINY, "--iterations", 1, "--output", tmp_path / "run")
    assert code == 0, err
    assert "24 x 16 x 16 voxels of 1.5 x 1.5 x 2 mm" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--base-channels", 4], "--base-channels: is 4 here and 3 in SOURCE. Leave it out"),
        (["--norm", "none"], "--norm: is none here and batch in SOURCE. Leave it out"),
        (["--freeze", 4], "--freeze: must be at most 3, the network's levels; got 4. Give fewer"),
        (["--init", "missing.pt"], "missing.pt: no such file. Check the path"),
        (["--init", "other"], "other: damaged, or not a checkpoint"),
        (["--init", "nan.pt"], "nan.pt: some of its weights are NaN or infinite. Use an earlier checkpoint"),
        (["--volume", 3, 16, 16], "--volume: must be at least 4 along each axis; got 3 16 16. Enlarge it"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_said_in_one_line(options, message, cases, source, tmp_path, run_verb, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_text("no checkpoint")
    content = checkpoint.load(source)
    content["model"]["head.bias"][0] = float("nan")
    torch.save(content, tmp_path / "nan.pt")
    code, _, err = run_verb(train, "--data", cases, "--init", source, *TINY, *options, "--output", tmp_path / "run")
    assert code == 2
    assert err.startswith(f"error: {message.replace('SOURCE', str(source))}")
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_freezing_needs_a_checkpoint(cases, tmp_path, run_verb):
    code, _, err = run_verb(train, "--data", cases, "--freeze", 1, "--output", tmp_path / "run")
    assert (code, err) == (2, "error: --freeze: given without --init. Give a checkpoint, or leave it out\n")


def test_a_folder_stands_for_its_best(cases, source, tmp_path, run_verb):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_verb(train, "--data", cases, "--init", source, *TINY, *STILL, "--output", first)[0] == 0
    code, out, err = run_verb(train, "--data", cases, "--init", first, *TINY, *STILL, "--output", second)
    assert code == 0, err
    assert f"weights: of {first / 'best.pt'}\n" in out
    assert json_of(second / "config.json")["init"] == str(first / "best.pt")
    planned = ["--volume", "auto", "--base-channels", 3, "--output", tmp_path / "planned"]
    code, _, err = run_verb(train, "--data", cases, "--init", first, *TINY, *STILL, *planned)
    assert code == 0, err
    for fold in range(2):
        shutil.copytree(first, tmp_path / "all" / f"fold{fold}")
    config = json_of(first / "config.json") | {"fold": "all", "folds": 2}
    (tmp_path / "all" / "config.json").write_text(json.dumps(config))
    code, _, err = run_verb(
        train, "--data", cases, "--init", tmp_path / "all", *TINY, *STILL, "--output", tmp_path / "x"
    )
    assert code == 2
    named = f"Name one of its folds, such as {tmp_path / 'all' / 'fold0'}"
    assert err == f"error: --init: {tmp_path / 'all'} is a cross-validation. {named}\n"
