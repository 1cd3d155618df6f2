"""From the options of a run whose grid depends on its data to those of any run."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from vnet_fast.command_line import AUTO
from vnet_fast.data.cases import pair_cases
from vnet_fast.data.classes import Classes
from vnet_fast.data.folds import chosen_cases
from vnet_fast.data.planning import Plan, find_geometries, make_plan
from vnet_fast.devices import HOST, find_device
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.nn.topology import DOWN_FACTOR, LEVELS
from vnet_fast.run.configuration import Config
from vnet_fast.run.grid_options import check_grid_options
from vnet_fast.run.initial import inherited_settings
from vnet_fast.run.memory import Load
from vnet_fast.run.recipes import CPU_CHANNELS, FAST, PAPER, fitting_levels, multiples_of, with_levels

GRID = ("spacing", "volume")
# the options that say what labels stand for
CLASSES = ("data", "labels", "binary", "regions", "ignore_label")
# voxels of a window: on a CPU as many as take about half a second a step; on a GPU nnU-Net's 128 x 128 x 128. Those of
# Apple and Intel, on which no kernels run, have the CPU's.
VOXELS = {"cpu": 96 * 96 * 32, "cuda": 128**3}
# of the memory that a step may take, because its estimate is low
SHARE = 1 / 4


def planned(given: dict[str, Any]) -> tuple[dict[str, Any], Plan | None]:
    """The options with the grid that is planned from the data, where that is asked for.

    It is asked for by `auto`, and for data on which the fast recipe trains from nothing it is the default.

    Args:
        given: dict from option to value, without the options that are not given.

    Returns:
        the options, and the plan or None.

    Raises:
        InputError, InputErrors: if there is no data to plan for.
    """
    asked = [name for name in GRID if _is_auto(given.get(name))]
    others = {name: value for name, value in given.items() if name not in asked}
    if "resume" in given:
        # the run has its grid
        return others, None
    if given.get("recipe", PAPER) == FAST and given.get("data") is not None and not given.get("init"):
        asked = [name for name in GRID if name not in others]
    # before anything is measured
    check_grid_options(others.get("volume", Config.volume), others.get("spacing", Config.spacing))
    if not asked:
        return others, None
    if given.get("data") is None:
        raise InputError(f"--{asked[0]}", f"is {AUTO} without --data", "Give numbers, or the folder of the volumes")
    plan = _plan({**_inherited(others, asked), **others}, given["data"])
    return {**others, "spacing": plan.spacing, "volume": plan.size}, plan


def _inherited(given: dict[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """What a run that starts from a checkpoint has of it, without what is planned."""
    if not given.get("init"):
        return {}
    return {name: value for name, value in inherited_settings(given["init"], given).items() if name not in asked}


def _is_auto(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and list(value) == [AUTO]


def _plan(given: dict[str, Any], data: str) -> Plan:
    given, device = with_levels(given), find_device(given.get("device", Config.device))
    settings = {name: given[name] for name in CLASSES if name in given}
    classes = Classes.of(Config(**settings))
    cases, unpaired = pair_cases(data, given.get("labels"))
    if given.get("split") is not None:
        cases = chosen_cases(cases, unpaired, given["split"], data)
    if not cases:
        raise InputErrors(unpaired)
    geometries = find_geometries(cases, classes)
    spacing, size = (tuple(given[name]) if name in given else None for name in GRID)
    voxels = _voxels(given, device)
    levels = given.get("levels", LEVELS)
    while True:
        plan = make_plan(geometries, voxels, partial(_multiples, given, levels), device == HOST, spacing, size)
        fitting = min(levels, fitting_levels(plan.size, plan.spacing))
        # a coarsest resolution without an extent is left out, and with it some of the multiple
        if "levels" in given or given.get("recipe", PAPER) != FAST or fitting == levels:
            return plan
        levels = fitting


def _multiples(given: dict[str, Any], levels: int, spacing: Sequence[float]) -> tuple[int, ...]:
    """What the lengths of a window are multiples of."""
    if given.get("halvings"):
        return tuple(DOWN_FACTOR**count for count in given["halvings"])
    # only the fast recipe looks at the spacing
    return multiples_of(levels, spacing if given.get("recipe", PAPER) == FAST else (1.0,) * 3)


def _voxels(given: dict[str, Any], device: torch.device) -> int:
    """Voxels of a window for which a step has room."""
    channels = given.get("base_channels", CPU_CHANNELS if device == HOST else Config.base_channels)
    load = Load(device, max(2, given.get("batch_size", Config.batch_size)), channels, device != HOST, phantoms=False)
    voxels = VOXELS.get(device.type, VOXELS["cpu"])
    while voxels > 1 and not load.fits((math.ceil(voxels ** (1 / 3)),) * 3, SHARE):
        voxels //= 2
    return voxels
