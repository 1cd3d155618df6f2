"""Segments volumes with trained networks."""

import os
import threading
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import torch

from vnet_fast.devices import choose_precision, find_device
from vnet_fast.interface.options import PathLike
from vnet_fast.interface.result import Result
from vnet_fast.interface.volumes import Volume, read
from vnet_fast.prediction.inference import LEFT_RIGHT, NO_FLIP, OVERLAP
from vnet_fast.prediction.networks import Networks, load_networks
from vnet_fast.prediction.passes import Passes
from vnet_fast.prediction.segmentation import Segmentation, segment, segment_images
from vnet_fast.prediction.task import Task
from vnet_fast.progress import quiet, warn

PRECISIONS = (None, "auto", "bf16", "fp16", "off")


class Segmenter:
    """A trained network, or several whose probabilities are averaged, with which volumes are segmented.

    Several threads may use it at once: they read volumes and make masks at the same time, and use the network one after
    the other. It can be sent to other processes. It prints nothing; what the user should know is a warning of Python's.

    Args:
        networks: what `vnet_fast.prediction.networks.load_networks` returned; see also `load`.
        amp: mixed precision: `auto`, `bf16`, `fp16` or `off`; None is `auto` on a GPU and `off` on a CPU.
        overlap: covers larger volumes by windows that overlap by this share, 0 to below 1. With None only the centre is
            predicted, unless the network was trained on patches.
        tta: whether to average with the prediction of the volume mirrored left to right, which takes twice the time.
        all_components: whether masks keep all connected components, and not only the largest one of each class.
        graph: whether a GPU may replay the network's kernels as one CUDA graph, which keeps the memory of a pass.

    Raises:
        ValueError: if an argument has a value that it can't have.
    """

    def __init__(
        self,
        networks: Networks,
        amp: str | None = None,
        overlap: float | None = None,
        tta: bool = False,
        all_components: bool = False,
        graph: bool = True,
    ) -> None:
        if amp not in PRECISIONS:
            raise ValueError(f"amp must be one of {', '.join(map(str, PRECISIONS))}; got {amp!r}")
        if overlap is not None and not (isinstance(overlap, Real) and 0 <= overlap < 1):
            raise ValueError(f"overlap must be a number, 0 or more and below 1; got {overlap!r}")
        self.networks, self.overlap, self.all_components = networks, overlap, all_components
        self.autocast, self.precision = choose_precision(amp, networks.device)
        self.flips = LEFT_RIGHT if tta else NO_FLIP
        self._passes = Passes(graph)
        # convolutions are timed when they are first met, where two threads could choose different ones
        self._network_in_use = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # neither a lock nor a CUDA graph can be copied or sent to another process
        state = self.__dict__ | {"_passes": self._passes.wants_graph}
        return {name: value for name, value in state.items() if name != "_network_in_use"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_passes": Passes(state["_passes"]), "_network_in_use": threading.Lock()}

    @classmethod
    def load(
        cls,
        checkpoints: PathLike | Sequence[PathLike],
        *,
        device: str | torch.device = "auto",
        amp: str | None = None,
        overlap: float | None = None,
        tta: bool = False,
        all_components: bool = False,
        graph: bool = True,
    ) -> "Segmenter":
        """Loads the networks of checkpoints.

        Args:
            checkpoints: `best.pt` or `last.pt` of a run, or the folder of a run or of a cross-validation, whose folds
                are averaged; or several of these.
            device: `auto`, `cpu`, `cuda`, `mps` or `xpu`, or a device of PyTorch without a number.
            amp, overlap, tta, all_components, graph: see the class.

        Raises:
            InputError: if a checkpoint can't be used or differs from the first in classes, channels or grid, or there
                is no such device.
            ValueError: if an argument has a value that it can't have.
        """
        paths = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
        if not paths:
            raise ValueError("checkpoints must name at least one")
        with quiet():
            networks = load_networks([os.fspath(path) for path in paths], find_device(str(device)))
        return cls(networks, amp, overlap, tta, all_components, graph)

    def __call__(self, volume: Volume, spacing: Sequence[float] | None = None) -> Result:
        """Segments a volume.

        Args:
            volume: a path of a file or of a folder of DICOM slices; a SimpleITK image; or an array (z, y, x), or
                (C, z, y, x) of several channels. A sequence of paths or images has one for each channel. The axes of an
                array point to the patient's left (x), posterior (y) and superior (z). A MetaTensor of MONAI,
                (C, x, y, z), lies where its affine says.
            spacing: of the voxels of an array, mm, (x, y, z); of files and images it is known.

        Returns:
            the result on the volume's own grid.

        Raises:
            InputError, InputErrors: if the volume can't be read, has another number of channels than the network, or
                can't be segmented.
            TypeError, ValueError: if it is nothing that is listed above.
            MemoryError, torch.OutOfMemoryError: if the memory does not suffice.
        """
        with quiet():
            channels = read(volume, spacing, self.networks.task.channels)
            with self._network_in_use:
                model, images, names = self.networks.model, channels.images, channels.names
                segmentation = segment_images(model, images, names, *self._how, **self._options)
            if segmentation.is_larger and not self._covers:
                warn(f"{channels.names[0]}: {self.larger.replace('--', '')}")
            return Result(segmentation, channels.images[0], channels.files, self.all_components)

    def segmentation_of(self, files: Path | Sequence[Path]) -> Segmentation:
        """Segments the volume of some files, and shows the progress, as the command does.

        Raises:
            InputError: see `vnet_fast.prediction.segmentation.segment`.
        """
        return segment(self.networks.model, files, *self._how, **self._options)

    @property
    def _how(self) -> tuple[Task, torch.dtype | None, float | None]:
        return self.networks.task, self.autocast, self.overlap

    @property
    def _options(self) -> dict[str, Any]:
        return {"flips": self.flips, "passes": self._passes}

    @property
    def _covers(self) -> bool:
        """Whether larger volumes are covered by windows."""
        return self.networks.task.patches or self.overlap is not None

    @property
    def larger(self) -> str:
        """What happens to volumes that are larger than the network's grid, for the log."""
        task = self.networks.task
        extent = " x ".join(f"{n * s:g}" for n, s in zip(task.size, task.spacing, strict=True))
        treatment = "background beyond, unless --overlap is given"
        if self._covers:
            treatment = f"in windows, overlap {OVERLAP if self.overlap is None else self.overlap:g}"
        return f"larger than the network's {extent} mm: {treatment}"

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.networks.device

    def __repr__(self) -> str:
        task = self.networks.task
        size, spacing = (" x ".join(f"{value:g}" for value in values) for values in (task.size, task.spacing))
        count = f"{self.networks.count} networks" if self.networks.count > 1 else "1 network"
        return f"Segmenter({count}, {size} voxels of {spacing} mm, {self.networks.device}, {self.precision})"
