"""The Dice of a finished run on the volumes' own grids, which is that of the masks that it predicts."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vnet_fast.devices import is_out_of_memory
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.progress import note, say, track
from vnet_fast.regions import Region


def own_grid_dice(
    run: str | Path,
    device: str,
    num_classes: int,
    binary: bool,
    interrupted: Callable[[], bool],
    regions: Sequence[Region] = (),
    ignored: int | None = None,
) -> dict[str, list[float]] | None:
    """Predicts the cases that a run held out, into RUN/predictions, and measures the masks.

    Args:
        run: folder of the run.
        device: to predict on, see `vnet_fast.devices.find_device`.
        num_classes: background included.
        binary: whether all labels above 0 are one class.
        interrupted: asked between two volumes.
        regions: the classes, if they are regions of labels.
        ignored: the label of the references whose voxels do not count.

    Returns:
        Dice of each foreground class by the name of the case, NaN where neither mask has the class; or None, after a
        line that says why, if the files of the cases can't be read any more, memory is short or SimpleITK is missing.

    Raises:
        KeyboardInterrupt: if `interrupted` said so.
    """
    try:
        # imported here, because training from the cache needs no image library
        from vnet_fast.evaluation.evaluation import dice_of_pair
        from vnet_fast.prediction.held_out import held_out
    except ImportError as error:
        say(f"no predictions: {error.name} is not installed")
        return None
    try:
        return {
            case.name: dice_of_pair(case.prediction, case.reference, num_classes, binary, regions, ignored)
            for case in track(held_out(run, device, interrupted), "measuring", "cases")
        }
    except (InputError, InputErrors, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        # the run is finished in spite of it
        note(f"no Dice on the volumes' own grids: {str(error) or 'out of memory'}")
        return None
