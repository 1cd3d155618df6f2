"""The settings of a run that determine its data."""

from typing import Protocol


class ClassSettings(Protocol):
    """The settings that determine what labels stand for."""

    @property
    def data(self) -> str | None:
        """Folder of volumes and masks; None for phantoms."""

    @property
    def labels(self) -> str | None:
        """Folder of the masks; None if they are beside the volumes."""

    @property
    def binary(self) -> bool:
        """Whether all labels above 0 are one class."""

    @property
    def regions(self) -> tuple[str, ...] | None:
        """The regions that are classes, as texts; None if the labels are, or the data set declares regions."""

    @property
    def ignore_label(self) -> int | None:
        """The label whose voxels do not count; None if there is none, or the data set declares it."""


class DataSettings(ClassSettings, Protocol):
    """The settings that this room needs, for example those of `vnet_fast.run.configuration.Config`."""

    @property
    def cache(self) -> str | None:
        """Folder of the prepared volumes; None for the user's cache."""

    @property
    def volume(self) -> tuple[int, int, int]:
        """Size of the network's grid, voxels, x y z."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Spacing of the network's grid, mm, x y z."""

    @property
    def wants_patches(self) -> bool | None:
        """Whether patches of whole volumes are trained on; None if that depends on the volumes."""

    @property
    def split(self) -> str | None:
        """File of the cases of each fold; None if they are drawn."""

    @property
    def folds(self) -> int:
        """Number of folds."""

    @property
    def fold(self) -> int | str:
        """The fold to validate on, counted from 0; a text if there is no single one."""

    @property
    def seed(self) -> int:
        """Seed of the folds that are drawn, and of the phantoms."""
