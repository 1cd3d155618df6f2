"""Finds, splits and prepares the cases that a run trains and validates on."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import Case, pair_cases
from vnet_fast.data.channels import Channel, describe, find_channels, find_errors, fitted, scale_case
from vnet_fast.data.classes import Classes, title_of
from vnet_fast.data.extent import exceed, headers_exceed
from vnet_fast.data.folds import check_folds, chosen_cases, divide, named_cases
from vnet_fast.data.labels import count_classes, labels_of_no_region, without_ignored
from vnet_fast.data.phantom import phantoms
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.data.settings import DataSettings
from vnet_fast.distributed import Processes
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.progress import say, track, warn
from vnet_fast.regions import Region, ambiguities

NUM_PHANTOMS = 100


@dataclass(frozen=True)
class Data:
    """The data of a run.

    Args:
        training: prepared cases to train on.
        validation: prepared cases to validate on.
        num_classes: number of labels, background included.
        class_names: dict from label to name, of the classes that have one.
        patches: whether the cases keep their whole extent, of which patches are trained on.
        channels: of the volumes.
        regions: the classes, if they are regions of labels.
        ignored: the label of the masks' files whose voxels do not count, which are IGNORED here; None if all count.
    """

    training: list[PreparedCase]
    validation: list[PreparedCase]
    num_classes: int
    class_names: Mapping[int, str] = field(default_factory=dict)
    patches: bool = False
    channels: tuple[Channel, ...] = (Channel(),)
    regions: tuple[Region, ...] = ()
    ignored: int | None = None

    @property
    def titles(self) -> list[str]:
        """What the foreground classes are called in texts."""
        if self.regions:
            return [region.name for region in self.regions]
        return [title_of(label, self.class_names) for label in range(1, self.num_classes)]

    @property
    def outputs(self) -> int:
        """The channels of a network's output: one for each region, or for each label."""
        return len(self.regions) or self.num_classes

    @property
    def description(self) -> dict[str, Any]:
        """What a checkpoint says about the volumes and the classes."""
        labels = range(1, self.num_classes)
        return {
            "patches": self.patches,
            # empty for those without
            "classes": self.titles if self.regions else [self.class_names.get(label, "") for label in labels],
            "channels": [asdict(channel) for channel in self.channels],
            "ignored": self.ignored,
            "regions": [{"name": region.name, "labels": list(region.labels)} for region in self.regions],
            **self.names,
        }

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of the cases, as a checkpoint stores them: dict with `training` and `validation`."""
        return {
            "training": [case.name for case in self.training],
            "validation": [case.name for case in self.validation],
        }

    def check_unchanged(self, stored: Mapping[str, Sequence[str]], run: str | Path) -> None:
        """Raises an InputError unless the cases are those with which a run was started.

        Args:
            stored: the `names` when the run was started.
            run: folder of the run.
        """
        if stored == self.names:
            return
        before, now = ({str(name) for part in names.values() for name in part} for names in (stored, self.names))
        changed = sorted(before ^ now)
        cause = f"its cases have changed: {', '.join(changed[:5])}"
        if not changed:
            cause = "its cases are divided into others to train on and to validate"
        raise InputError(run, cause, "Restore them, or start a new run")


def load_data_once(settings: DataSettings, processes: Processes) -> Data:
    """`load_data` in several processes: the first one prepares the cases, and the others find them in the cache."""
    if processes.is_first:
        data = load_data(settings)
    processes.wait()
    return data if processes.is_first else load_data(settings)


def load_data(settings: DataSettings) -> Data:
    """Finds, splits and prepares the cases of a run, and prints their numbers.

    Args:
        settings: of the run, with a single fold.

    Returns:
        Data.

    Raises:
        InputError, InputErrors: if there are too few cases, or any can't be used.
    """
    if settings.data is None:
        check_folds("the phantoms", NUM_PHANTOMS, settings.folds)
        cases = phantoms(settings.seed, NUM_PHANTOMS, settings.volume, settings.spacing)
        training, validation = divide(cases, settings)
        say(f"data: {NUM_PHANTOMS} synthetic phantoms, {len(training)} to train on, {len(validation)} to validate")
        return Data(training, validation, 2)
    classes, channels = Classes.of(settings), find_channels(settings.data, settings.labels)
    paired = named_cases(pair_cases(settings.data, settings.labels)[0], settings.split)
    classes = classes.named_by(case.mask for case in paired)
    prepared, num_classes, patches = _prepare_cases(settings, settings.data, classes, channels)
    # of all cases, as in nnU-Net, so that the folds of a cross-validation agree
    channels = fitted(channels or (Channel(),) * prepared[0].channels, prepared, settings.data, classes.ignored)
    training, validation = divide(prepared, settings)
    training, validation = ([scale_case(case, channels) for case in cases] for cases in (training, validation))
    rest = len(prepared) - len(training) - len(validation)
    say(
        f"data: {len(prepared)} cases in {settings.data}, {len(training)} to train on, {len(validation)} to validate, "
        f"{f'{rest} in neither part of the fold, ' if rest else ''}{_count(num_classes - 1, classes.regions)}"
        f"{', ' + describe(channels) if len(channels) > 1 else ''} (prepared volumes in {_find_cache(settings)})"
    )
    if patches:
        largest = max((case.covering_size for case in prepared), key=math.prod)
        say(f"patches: of whole volumes, of up to {' x '.join(map(str, largest))} voxels")
    regions, ignored = classes.regions, classes.ignored
    return Data(training, validation, num_classes, classes.names, patches, channels, regions, ignored)


def _count(classes: int, regions: Sequence[Region]) -> str:
    if regions:
        return f"regions {', '.join(region.name for region in regions)}"
    return "1 class" if classes == 1 else f"{classes} classes"


def _prepare_cases(
    settings: DataSettings,
    data: str,
    classes: Classes,
    channels: Sequence[Channel],
) -> tuple[list[PreparedCase], int, bool]:
    """Returns the prepared cases, the number of classes and whether they are whole, and prints warnings."""
    cases, errors = find_run_cases(settings, data)
    patches, raw = settings.wants_patches, [channel.is_ct for channel in channels]
    if patches is None:
        patches = _expects_patches(settings, cases, raw)
    prepared, several = _load(settings, cases, patches, raw)
    # what was read decides; a header may state two directions
    if settings.wants_patches is None and not several and exceed(prepared, settings.volume) != patches:
        patches = not patches
        prepared, several = _load(settings, cases, patches, raw)
    errors += several
    errors += find_errors(prepared, {case.name: case.image for case in cases}, channels, data)
    errors += find_duplicates(cases, prepared)
    if errors:
        raise InputErrors(errors)
    prepared = [without_ignored(case, classes.ignored) for case in prepared]
    declared = classes.declared, classes.regions, classes.regions_from
    num_classes = count_classes(prepared, cases, classes.binary, *declared)
    stray = labels_of_no_region(prepared, classes.regions)
    if stray:
        warn(f"labels of masks that are in no region: {', '.join(map(str, stray))}")
    for text in ambiguities(classes.regions):
        warn(text)
    for warning in find_warnings(cases, prepared):
        warn(str(warning))
    return prepared, num_classes, patches


def _expects_patches(settings: DataSettings, cases: Sequence[Case], raw: Sequence[bool]) -> bool:
    """Whether patches will be trained on, so that the cases are prepared only once, in the form that is needed."""
    # what is in the cache was decided before; without an image library, all cases are
    for whole in (True, False):
        if any(_cache_of(settings, whole, raw).holds(case) for case in cases[:1]):
            return whole
    return headers_exceed(cases, settings.spacing, settings.volume)


def _cache_of(settings: DataSettings, whole: bool, raw: Sequence[bool]) -> Cache:
    return Cache(_find_cache(settings), settings.spacing, settings.volume, whole, raw)


def _load(
    settings: DataSettings, cases: Sequence[Case], whole: bool, raw: Sequence[bool]
) -> tuple[list[PreparedCase], list[InputError]]:
    """The prepared cases, and the errors of those that can't be prepared."""
    cache = _cache_of(settings, whole, raw)
    try:
        return cache.load(cases, partial(track, description="preparing", unit="cases", total=len(cases))), []
    except InputErrors as several:
        return list(several.results), several.errors


def find_run_cases(settings: DataSettings, data: str) -> tuple[list[Case], list[InputError]]:
    """Finds the cases of a run.

    Args:
        settings: of the run.
        data: folder of the volumes.

    Returns:
        Cases that are paired, and that the split names if there is one; and without it an InputError for each image or
        mask that is not paired, or for too few cases.

    Raises:
        InputError, InputErrors: if the folders can't be listed, or have no volumes, or not what the split names.
    """
    cases, errors = pair_cases(data, settings.labels)
    if settings.split is not None:
        return chosen_cases(cases, errors, settings.split, data), []
    try:
        check_folds(data, len(cases), settings.folds)
    except InputError as error:
        # once the unpaired files are corrected, there may be enough cases
        errors += [] if errors else [error]
    return cases, errors


def _find_cache(settings: DataSettings) -> Path:
    return Path(settings.cache or Path.home() / ".cache" / "vnet_fast")


def find_duplicates(cases: Sequence[Case], prepared: Sequence[PreparedCase]) -> list[InputError]:
    """Finds cases with the same image, also under another name or in another format.

    A duplicate in the validation of a case that was trained on would falsify the Dice.

    Args:
        cases: Cases.
        prepared: the prepared cases of all or some of them.

    Returns:
        an InputError for each case whose image occurs before.
    """
    by_name = {case.name: case for case in cases}
    first: dict[bytes, Case] = {}
    errors = []
    # copies have the same table, which is in memory; the ranks of a large case would be read from its entry
    tables = [hashlib.blake2b(entry.table.tobytes()).digest() for entry in prepared]
    numbers = Counter(tables)
    for entry in (entry for entry, table in zip(prepared, tables, strict=True) if numbers[table] > 1):
        case = by_name[entry.name]
        original = first.setdefault(entry.fingerprint, case)
        if original is not case:
            remedy = "Keep one of the two: a duplicate would falsify the validation"
            errors.append(InputError(case.image, f"the same volume as {original.image.name}", remedy))
    return errors


def find_warnings(cases: Sequence[Case], prepared: Sequence[PreparedCase], are_parts: bool = False) -> list[InputError]:
    """Returns warnings, as InputErrors that are never raised, about masks that can be used but may be wrong.

    Args:
        cases: Cases.
        prepared: they, prepared.
        are_parts: whether they are parts of what will be used, so that a label may be elsewhere.
    """
    warnings = []
    for case, entry in zip(cases, prepared, strict=True):
        # plane by plane, because NumPy widens what it counts to eight bytes
        present = {label for plane in entry.mask for label in np.flatnonzero(np.bincount(plane.reshape(-1))).tolist()}
        lost = sorted(set(entry.labels) - present - {0})
        if not any(entry.labels):
            warnings.append(InputError(case.mask, "the mask is empty", "Check that there is nothing to segment"))
        if lost and not are_parts:
            cause = f"label {' '.join(map(str, lost))} is lost on the network's grid"
            warnings.append(InputError(case.mask, cause, "Enlarge --volume, or choose a finer --spacing"))
    return warnings
