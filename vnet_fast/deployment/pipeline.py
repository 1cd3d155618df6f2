"""Writes a pipeline folder: a network with programs that segment volumes without this package and without PyTorch."""

import json
from pathlib import Path
from typing import Any

from vnet_fast import __version__
from vnet_fast.data.channels import Channel
from vnet_fast.data.classes import title_of
from vnet_fast.data.intensity import HIGH_PERCENTILE, LOW_PERCENTILE
from vnet_fast.deployment.folder import check_folder, copy_programs, name_of, new_folder, write_page
from vnet_fast.deployment.network_file import ONNX, check_packages, checked_content
from vnet_fast.deployment.standalone.network import FORMAT
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.components import IS_INSIDE
from vnet_fast.prediction.inference import OVERLAP
from vnet_fast.prediction.task import Task
from vnet_fast.prediction.windows import SIGMA
from vnet_fast.regions import label_table, written_names

NETWORK_FILE, SETTINGS_FILE = "network.onnx", "pipeline.json"
REQUIREMENTS = "numpy>=1.26\nSimpleITK>=2.4\nonnxruntime>=1.20\n"


def check_output(output: str, checkpoint: str) -> Path:
    """The path of the folder to write, after all checks that are possible before anything is read.

    Raises:
        InputError: if nothing can be exported there.
    """
    path = check_folder(output)
    check_packages(ONNX, path)
    return path


def export(model: VNet, task: Task, path: Path) -> str:
    """Writes a pipeline folder.

    Args:
        model: on the CPU, in evaluation mode; its weights need no gradient.
        task: of the network.
        path: what `check_output` returned.

    Returns:
        what was written, and how the ONNX file's logits compare with the network's.

    Raises:
        InputError: if the logits differ, or the folder can't be written.
    """
    content, result = checked_content(model, task, path / NETWORK_FILE)
    settings = settings_of(model, task)
    with new_folder(path) as folder:
        (folder / NETWORK_FILE).write_bytes(content[ONNX])
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "requirements.txt").write_text(REQUIREMENTS, "utf-8")
        copy_programs("standalone", folder)
        write_page("pipeline.md.j2", folder / "README.md", settings=settings, name=name_of(path))
    return f"run {path / 'predict.py'} with numpy, SimpleITK and onnxruntime; {result}"


def settings_of(model: VNet, task: Task) -> dict[str, Any]:
    """The content of `pipeline.json`: all that lies between a volume's file and its mask, beside the network."""
    return {
        "format": FORMAT,
        "producer": f"vnet_fast {__version__}",
        "spacing": list(task.spacing),
        "size": list(task.size),
        "channels": [channel_facts(channel) for channel in task.channels],
        "windows": {"always": task.patches, "overlap": OVERLAP, "sigma": SIGMA},
        "labels": {str(label): name for label, name in label_names(model, task).items()},
        "regions": [{"name": region.name, "labels": list(region.labels)} for region in task.regions],
        "threshold": IS_INSIDE,
        "label_of_regions": label_table(task.regions).tolist() if task.regions else [],
    }


def channel_facts(channel: Channel) -> dict[str, Any]:
    """Name and normalisation of a channel: percentiles of the volume itself, or the data set's scaling."""
    if channel.scaling is None:
        return {"name": channel.name, "percentiles": [LOW_PERCENTILE, HIGH_PERCENTILE], "scaling": None}
    scaling = dict(zip(("low", "high", "mean", "deviation"), channel.scaling, strict=True))
    return {"name": channel.name, "percentiles": None, "scaling": scaling}


def label_names(model: VNet, task: Task) -> dict[int, str]:
    """The names of a mask's labels, 1 and up."""
    if task.regions:
        return written_names(task.regions)
    return {label: title_of(label, task.class_names) for label in range(1, model.num_classes)}
