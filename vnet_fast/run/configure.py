"""From the options that are given to the settings of a run: a new one, or one that is resumed."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from vnet_fast.devices import HOST, choose_precision, default_precision, find_device
from vnet_fast.errors import InputError
from vnet_fast.run.augmentation import check_off
from vnet_fast.run.configuration import FREE_ON_RESUME, Config, check_memory, check_settings, stored_config
from vnet_fast.run.fold_options import ALL
from vnet_fast.run.folder import best_checkpoints
from vnet_fast.run.initial import inherited_settings
from vnet_fast.run.recipes import FAST, PAPER, demonstration, settings_of, with_levels


def configure(given: dict[str, Any]) -> Config:
    """The Config of the options that are given on the command line.

    Args:
        given: dict from option to value, without the options that are not given.

    Raises:
        InputError: if options contradict each other or the run to resume, or can't fit in memory.
    """
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    config = _resumed(given) if "resume" in given else _new(given)
    check_settings(config)
    check_memory(config)
    return config


def with_checkpoint(given: dict[str, Any]) -> dict[str, Any]:
    """The options, with the `best.pt` of a run whose folder is given as `init`.

    Raises:
        InputError: if it is no run's folder, or has no `best.pt` yet, or several.
    """
    path = given.get("init")
    if not path or not Path(path).is_dir():
        return given
    first, *others = best_checkpoints(path)
    if others:
        raise InputError("--init", f"{path} is a cross-validation", f"Name one of its folds, such as {first.parent}")
    return {**given, "init": str(first)}


def _new(given: dict[str, Any]) -> Config:
    if "minutes" in given and "iterations" in given:
        raise InputError("--minutes", "given with --iterations", "Give one of them")
    check_off(given)
    device = find_device(given.get("device", Config.device))
    settings: dict[str, Any] = {"recipe": PAPER}
    if given.get("data") is None:
        # only a CPU's settings depend on the precision
        dtype = choose_precision(given.get("amp"), device)[0] if device == HOST else None
        settings = {"recipe": FAST, **demonstration(device, dtype)}
        if "minutes" in given:
            # of another length
            settings.pop("val_every", None)
    if given.get("init"):
        settings |= inherited_settings(given["init"], given)
    settings |= given if given.get("init") else with_levels(given)
    volume, spacing = settings.get("volume", Config.volume), settings.get("spacing", Config.spacing)
    of_recipe = settings_of(settings["recipe"], volume, spacing, device, settings.get("levels"))
    config = Config(**{**of_recipe, **settings})
    if config.amp is None:
        # resuming on another device keeps the precision
        config = replace(config, amp=default_precision(device))
    if config.output is None:
        config = replace(config, output=str(Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")))
    return config


def _resumed(given: dict[str, Any]) -> Config:
    stored = stored_config(given["resume"])
    for name, value in given.items():
        if name not in FREE_ON_RESUME | {"resume", "output"} and getattr(stored, name) != value:
            flag = "--" + name.replace("_", "-")
            cause = f"is {value} here and {getattr(stored, name)} in {given['resume']}"
            raise InputError(flag, cause, "Leave it out, or start a new run")
    if given.get("init") and stored.init is None:
        cause = "given to a run that started from nothing"
        raise InputError("--init", cause, "Leave it out, or start a new run")
    if given.get("split") and stored.split is None:
        cause = "given to a run whose folds were drawn"
        raise InputError("--split", cause, "Leave it out, or start a new run")
    if stored.minutes is not None and "iterations" in given:
        if stored.fold == ALL:
            cause = f"given to folds that train for {stored.minutes:g} minutes each"
            raise InputError("--iterations", cause, "Leave it out, or resume one fold")
        stored = replace(stored, minutes=None)
    if Path(given.get("output", given["resume"])) != Path(given["resume"]):
        raise InputError("--output", "given with --resume", "Leave it out: a resumed run stays in its folder")
    return replace(stored, **{**given, "output": given["resume"]})
