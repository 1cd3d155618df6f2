"""The names of a data set's classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vnet_fast.data.labels import DESCRIPTION, declared_ignored, declared_labels, declared_regions, described_in
from vnet_fast.data.settings import ClassSettings
from vnet_fast.errors import InputError
from vnet_fast.io.dicom_elements import check_installed
from vnet_fast.io.dicom_meta import is_segmentation
from vnet_fast.io.dicom_seg import read_names
from vnet_fast.regions import IGNORE_LABEL, REGIONS, Region, check_ignored, parse_regions


@dataclass(frozen=True)
class Classes:
    """What the labels of a data set's masks stand for.

    Args:
        binary: whether all labels above 0, but the ignored one, are one class.
        declared: dict from label to name, if the data set names its labels and they are the classes.
        regions: the classes, if they are regions of labels.
        ignored: the label whose voxels do not count; None if all do.
        regions_from: what declares the regions, for messages.
    """

    binary: bool = False
    declared: Mapping[int, str] | None = None
    regions: tuple[Region, ...] = ()
    ignored: int | None = None
    regions_from: str | Path = REGIONS

    @classmethod
    def of(cls, settings: ClassSettings) -> "Classes":
        """Those of a data set to train on, by the settings of the run and what the data set declares.

        Raises:
            InputError: if the data set's `dataset.json` can't be read, or the settings can't be.
        """
        folder = described_in(settings.data, settings.labels)
        binary, ignored, regions = settings.binary, settings.ignore_label, parse_regions(settings.regions or ())
        ignored = declared_ignored(folder) if ignored is None else ignored
        regions_from = REGIONS if regions else folder / DESCRIPTION
        regions = regions or (() if binary else declared_regions(folder))
        declared = declared_labels(folder, allow_regions=binary or bool(regions))
        check_ignored(ignored, regions, regions_from)
        return cls(binary, _counted(declared, None if binary or regions else ignored), regions, ignored, regions_from)

    def named_by(self, masks: Iterable[Path]) -> "Classes":
        """These classes with the names of segments, if all masks are DICOM Segmentations and nothing else has names.

        Args:
            masks: of the data set; one that can't be read is left out here, and reported when it is prepared.

        Raises:
            InputError: if two masks give one label different names, or pydicom is not installed.
        """
        paths = list(masks)
        if self.binary or self.regions or self.declared or not paths or not all(map(is_segmentation, paths)):
            return self
        names = {label: name for label, name in _segment_names(paths).items() if label != self.ignored}
        # without gaps, as those of `dataset.json`
        return replace(self, declared=names) if sorted(names) == list(range(1, len(names) + 1)) else self

    @property
    def names(self) -> dict[int, str]:
        """The names of the labels above 0, if labels are the classes."""
        return {} if self.binary else foreground(self.declared)

    def merged(self, label: int) -> list[int]:
        """The numbers of the classes that a label above 0 belongs to."""
        if label == self.ignored:
            return []
        if self.regions:
            return [number for number, region in enumerate(self.regions, start=1) if label in region.labels]
        return [1 if self.binary else label]


def _counted(declared: Mapping[int, str] | None, ignored: int | None) -> Mapping[int, str] | None:
    """The declared labels without the ignored one, which can only be the last: classes are numbered without gaps."""
    if ignored is None or not declared or ignored not in declared:
        return declared
    if ignored < max(declared):
        cause = f"{ignored} is {declared[ignored]} in dataset.json, which names labels above it"
        raise InputError(IGNORE_LABEL, cause, "Number the labels without a gap, and the ignored one last")
    return {label: name for label, name in declared.items() if label != ignored}


def _segment_names(paths: Sequence[Path]) -> dict[int, str]:
    """The names of the segments by number, in which all masks agree but for capital letters."""
    check_installed(paths[0], "pydicom")
    first: dict[int, tuple[str, Path]] = {}
    for path in paths:
        try:
            found = read_names(path)
        except InputError:
            continue
        for label, name in found.items():
            known, other = first.setdefault(label, (name, path))
            if known.casefold() != name.casefold():
                cause = f"its segment {label} is {name}, that of {other} is {known}"
                raise InputError(path, cause, "Number the segments alike, or name the labels in dataset.json")
    return {label: name for label, (name, _) in first.items()}


def names_of_checkpoint(content: Mapping[str, Any]) -> dict[int, str]:
    """The names of the classes of a checkpoint's network by label, 1 and up; none if it does not say any.

    Args:
        content: what `vnet_fast.run.checkpoint.load` returned.
    """
    return {label: name for label, name in enumerate(content.get("classes", ()), start=1) if name}


def foreground(declared: Mapping[int, str] | None) -> dict[int, str]:
    """The declared labels without the background."""
    return {label: name for label, name in (declared or {}).items() if label > 0}


def title_of(label: int, names: Mapping[int, str]) -> str:
    """What a class is called in a text: its name, or its number if it has none."""
    return names.get(label) or f"class {label}"
