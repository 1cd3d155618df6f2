"""The options of augmentation."""

from dataclasses import asdict, fields

import pytest

from vnet_fast.command_line import parse_stored, parser_of
from vnet_fast.errors import InputError
from vnet_fast.run.augmentation import Augmentation, changes_to_the_papers, check_augmentation
from vnet_fast.run.configuration import FREE_ON_RESUME, Config
from vnet_fast.run.configure import configure

GIVEN = [
    "--deformation", "0.2", "--matching", "0", "--rotation", "0.2", "30", "15", "--scaling", "0.2", "0.7", "1.4",
    "--flip", "--brightness", "0.15", "0.75", "1.25", "--contrast", "0.15", "0.75", "1.25", "--gamma", "0.3", "0.7",
    "1.5", "--noise", "0.1", "0.3", "--low-resolution", "0.25", "2",
]  # fmt: skip


def given_by(arguments):
    given = vars(parser_of(Config, "vnet_fast.train").parse_args(arguments))
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name != "debug"
    }


def test_the_defaults_are_the_papers():
    assert not Config().transforms
    assert (Config().deformation, Config().matching) == (0.5, 1.0)


def test_options_become_settings():
    config = Config(**given_by(GIVEN))
    assert config.transforms
    assert (config.deformation, config.matching, config.flip) == (0.2, 0.0, "x")
    assert config.rotation == (0.2, 30.0, 15.0)
    assert config.low_resolution == (0.25, 2.0)
    assert {field.name for field in fields(Augmentation)} <= given_by(GIVEN).keys()
    check_augmentation(config)


@pytest.mark.parametrize("arguments", ["--flip z", "--rotation 0.1 9 0", "--low-resolution 0.1 2", "--noise 1 0.1"])
def test_each_switches_transforms_on(arguments):
    assert Config(**given_by(arguments.split())).transforms
    assert not Config(**given_by(["--noise", "0", "0.3", "--deformation", "1", "--matching", "0"])).transforms


@pytest.mark.parametrize("arguments", ["--flip", "--noise 0.1 0.3", "--deformation 0.2"])
def test_none_contradicts_what_is_given(arguments, tmp_path):
    """What is given to be off agrees with it, and what a recipe sets is turned off."""
    common = ["--data", str(tmp_path), "--recipe", "fast", "--device", "cpu", "--no-augment"]
    flag = arguments.split()[0]
    with pytest.raises(InputError, match=f"^{flag}: given with --no-augment. Give one of them"):
        configure(given_by([*common, *arguments.split()]))
    assert configure(given_by([*common, "--flip", "none", "--matching", "0", "--noise", "0", "0.3"])).no_augment


def test_stored_settings_are_read_again():
    config = Config(**given_by(GIVEN))
    stored = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    stored = {name: value for name, value in stored.items() if value is not None}
    assert parse_stored(Config, stored, "config.json") == config


def test_old_settings_without_them_are_the_papers():
    old = {name: value for name, value in asdict(Config(seed=3)).items() if name == "seed"}
    assert parse_stored(Config, old, "config.json") == Config(seed=3)


def test_what_differs_from_the_paper_is_named():
    assert changes_to_the_papers(asdict(Config())) == ""
    given = given_by(["--flip", "--rotation", "0.25", "30", "0", "--deformation", "0", "--low-resolution", "1", "2"])
    expected = "deformation 0.0, rotation 0.25 30 0, flip x, low resolution 1 2"
    assert changes_to_the_papers(asdict(Config(**given))) == expected


def test_a_resumed_run_keeps_them():
    assert not FREE_ON_RESUME & {field.name for field in fields(Augmentation)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--deformation 1.5", "--deformation: must have a probability from 0 to 1; got 1.5"),
        ("--rotation 2 10 10", "--rotation: must have a probability from 0 to 1; got 2"),
        ("--rotation 0.5 10 200", "--rotation: must be at most 180; got 200"),
        ("--scaling 0.5 1.4 0.7", "--scaling: must be from 0.1 to 10, the lower one first; got 1.4 0.7"),
        ("--gamma 0.5 0 1", "--gamma: must be from 0.1 to 10, the lower one first; got 0 1"),
        ("--noise 0.5 11", "--noise: must be at most 10; got 11"),
        ("--low-resolution 0.5 0.5", "--low-resolution: must be at least 1; got 0.5"),
    ],
)
def test_what_is_out_of_range_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        check_augmentation(Config(**given_by(arguments.split())))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [["--flip", "lr"], ["--rotation", "0.5", "10"], ["--noise", "0.5", "-1"]], ids=str
)
def test_what_has_another_form_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        parser_of(Config, "vnet_fast.train").parse_args(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument ")
