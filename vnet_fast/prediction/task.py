"""What a checkpoint says about the volumes of its network and about the masks that it predicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vnet_fast.data.channels import Channel, of_checkpoint
from vnet_fast.data.classes import names_of_checkpoint, title_of
from vnet_fast.regions import Region, stored_regions, written_names
from vnet_fast.run import checkpoint


@dataclass(frozen=True)
class Task:
    """From a volume to a network's input, and from its output to a mask.

    Args:
        spacing: of the network's grid, mm, x y z.
        size: of the network's grid, voxels, x y z.
        patches: whether the network was trained on patches of whole volumes, and so covers all of a larger one.
        channels: of the volumes.
        class_names: dict from label to name, of the classes that have one; masks tell them.
        regions: the classes, if they are regions of labels.
        classes: their number, without the background.
    """

    spacing: tuple[float, float, float]
    size: tuple[int, int, int]
    patches: bool = False
    channels: tuple[Channel, ...] = (Channel(),)
    class_names: Mapping[int, str] = field(default_factory=dict)
    regions: tuple[Region, ...] = ()
    classes: int = 1

    @property
    def label_names(self) -> dict[int, str]:
        """The names of all labels of the masks; none if no class has a name."""
        if self.regions:
            return written_names(self.regions)
        labels = range(1, self.classes + 1)
        return {label: title_of(label, self.class_names) for label in labels} if self.class_names else {}

    @classmethod
    def of(cls, content: dict[str, Any], path: str | Path) -> "Task":
        """The task of a checkpoint.

        Args:
            content: what `vnet_fast.run.checkpoint.load` returned.
            path: of the checkpoint, for messages.

        Raises:
            InputError: if it does not say its grid, or a volume of the grid's size does not fit in memory.
        """
        spacing, size = checkpoint.grid_of(content, path)
        patches = bool(content.get("patches"))
        regions = stored_regions(content)
        classes = checkpoint.foreground_classes(content)
        return cls(spacing, size, patches, of_checkpoint(content), names_of_checkpoint(content), regions, classes)
