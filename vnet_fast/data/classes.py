"""The names of a data set's classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vnet_fast.data.labels import declared_ignored, declared_labels, declared_regions, described_in
from vnet_fast.data.settings import ClassSettings
from vnet_fast.regions import Region, parse_regions


@dataclass(frozen=True)
class Classes:
    """What the labels of a data set's masks stand for.

    Args:
        binary: whether all labels above 0, but the ignored one, are one class.
        declared: dict from label to name, if the data set names its labels and they are the classes.
        regions: the classes, if they are regions of labels.
        ignored: the label whose voxels do not count; None if all do.
    """

    binary: bool = False
    declared: Mapping[int, str] | None = None
    regions: tuple[Region, ...] = ()
    ignored: int | None = None

    @classmethod
    def of(cls, settings: ClassSettings) -> "Classes":
        """Those of a data set to train on, by the settings of the run and what the data set declares.

        Raises:
            InputError: if the data set's `dataset.json` can't be read, or the settings can't be.
        """
        folder = described_in(settings.data, settings.labels)
        binary, ignored, regions = settings.binary, settings.ignore_label, parse_regions(settings.regions or ())
        ignored = declared_ignored(folder) if ignored is None else ignored
        regions = regions or (() if binary else declared_regions(folder))
        declared = declared_labels(folder, allow_regions=binary or bool(regions))
        return cls(binary, declared, regions, ignored)

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
