"""The validations of a run: of which cases, in how many processes, and how long they take."""

from functools import partial

import torch

from vnet_fast.data.training_data import Data
from vnet_fast.distributed import Processes
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.passes import Passes
from vnet_fast.progress import track
from vnet_fast.run.configuration import Config
from vnet_fast.training.validation import chosen, passes_of, seconds_of_a_validation, validate


class Validator:
    """Validates the network of a run.

    Args:
        model: the network, without what several processes wrap around it.
        data: of the run.
        config: of the run.
        autocast: the dtype of mixed precision, or None.
        processes: that train together, and share the cases.

    Attributes:
        cases: that are validated.
    """

    def __init__(
        self,
        model: VNet,
        data: Data,
        config: Config,
        autocast: torch.dtype | None,
        processes: Processes,
    ) -> None:
        self.model, self.data, self.autocast, self.processes = model, data, autocast, processes
        # in which larger volumes are predicted
        self.window = config.shape if data.patches else None
        self.passes = Passes(not config.no_graph)
        self.limit(config.val_cases)

    def limit(self, count: int | None) -> None:
        """Validates so many of the held-out cases from now on, or all."""
        self.cases = chosen(self.data.validation, count)

    @property
    def num_windows(self) -> int:
        """How many windows, or cases in one piece, a validation predicts."""
        return passes_of(self.cases, self.window)

    def seconds(self) -> float:
        """How long a validation takes, at most; it is found with one of the cases, without a graph."""
        share, classes = self.processes.share(self.cases), self.data.num_classes
        how = self.autocast, self.window, self.data.regions, Passes(graph=False)
        return seconds_of_a_validation(self.model, share, classes, *how)

    def dice(self, shows_progress: bool) -> dict[str, list[float]]:
        """Dice of each class, by the name of the case, of all processes in each of them."""
        # the network that is measured is the one that is saved
        self.processes.share_buffers(self.model)
        share, classes = self.processes.share(self.cases), self.data.num_classes
        progress = partial(track, description="validating", unit="cases") if shows_progress else iter
        how = self.window, self.data.regions, self.data.ignored is not None, self.passes
        mine = validate(self.model, share, classes, self.autocast, progress, *how)
        found = {name: values for part in self.processes.gathered(mine) for name, values in part.items()}
        return {case.name: found[case.name] for case in self.cases}
