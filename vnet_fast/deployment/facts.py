"""What a user of an exported network has to know: grid, channels, normalisation and classes."""

from vnet_fast import __version__
from vnet_fast.data.channels import Channel
from vnet_fast.data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.task import Task

SOFTMAX = "a softmax over axis 1 gives probabilities, class 0 is background"


def about(model: VNet, task: Task) -> dict[str, str]:
    """What a user of the file has to know, as texts by name."""
    x, y, z = task.size
    channels, regions = task.channels, task.regions
    return {
        "producer": f"vnet_fast {__version__}",
        "topology": model.topology,
        "levels": str(model.levels),
        "kernel_size": str(model.kernel_size),
        "halvings": "" if model.halvings is None else " ".join(map(str, reversed(model.halvings))),
        "spacing": " ".join(f"{s:g}" for s in task.spacing),
        "volume": " ".join(map(str, task.size)),
        "classes": str(model.num_classes),
        "regions": "; ".join(f"{region.name}: {' '.join(map(str, region.labels))}" for region in regions),
        "input": f"(N, {model.in_channels}, {z}, {y}, {x}) float32, resampled to spacing (mm, x y z), "
        "x to the left, y to the back, z to the head",
        "channels": ", ".join(channel.name or str(number) for number, channel in enumerate(channels)),
        "normalisation": "; ".join(dict.fromkeys(map(_normalisation, channels)))
        if len({channel.scaling for channel in channels}) == 1
        else "; ".join(f"channel {number}: {_normalisation(channel)}" for number, channel in enumerate(channels)),
        "output": f"(N, {model.num_classes}, {z}, {y}, {x}) logits; "
        + ("a sigmoid gives the probability of each region" if regions else SOFTMAX),
    }


def _normalisation(channel: Channel) -> str:
    if channel.scaling is None:
        return (
            f"intensities clipped at percentiles {LOW_PERCENTILE} and {HIGH_PERCENTILE} of the voxels brighter than "
            "the darkest, then zero mean and unit variance over those; outside of the image the darkest"
        )
    low, high, mean, deviation = channel.scaling
    return (
        f"outside of the image the darkest intensity; intensities clipped at {low:g} and {high:g}, less {mean:g}, "
        f"divided by {deviation:g}"
    )
