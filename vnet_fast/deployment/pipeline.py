"""Writes a pipeline folder: a network with programs that segment volumes without this package and without PyTorch."""

import json
from collections.abc import Sequence
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

SETTINGS_FILE = "pipeline.json"
REQUIREMENTS = "numpy>=1.26\nSimpleITK>=2.4\nonnxruntime>=1.20\n"


def check_output(output: str, checkpoints: Sequence[str]) -> Path:
    """The path of the folder to write, after all checks that are possible before anything is read.

    Raises:
        InputError: if nothing can be exported there.
    """
    path = check_folder(output)
    check_packages(ONNX, path)
    return path


def export(models: Sequence[VNet], task: Task, path: Path, tta: bool = False) -> str:
    """Writes a pipeline folder.

    Args:
        models: one, or several whose probabilities are averaged; on the CPU, in evaluation mode; their weights need no
            gradient.
        task: of the networks.
        path: what `check_output` returned.
        tta: whether it averages with the prediction of the volume mirrored left to right, unless it is told otherwise.

    Returns:
        what was written, and how the logits of each ONNX file compare with its network's.

    Raises:
        InputError: if the logits differ, or the folder can't be written.
    """
    names = [f"network{_number(index, len(models))}{ONNX}" for index in range(len(models))]
    checked = [checked_content(model, task, path / name) for model, name in zip(models, names, strict=True)]
    settings = settings_of(models[0], task, names, tta)
    with new_folder(path) as folder:
        for name, (content, _) in zip(names, checked, strict=True):
            (folder / name).write_bytes(content[ONNX])
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (folder / "requirements.txt").write_text(REQUIREMENTS, "utf-8")
        copy_programs("standalone", folder)
        write_page("pipeline.md.j2", folder / "README.md", settings=settings, name=name_of(path))
    results = [result for _, result in checked]
    if len(models) > 1:
        results = [f"{name}: {result}" for name, result in zip(names, results, strict=True)]
    return f"run {path / 'predict.py'} with numpy, SimpleITK and onnxruntime; {', '.join(results)}"


def _number(index: int, count: int) -> str:
    return f"_{index}" if count > 1 else ""


def settings_of(model: VNet, task: Task, networks: Sequence[str], tta: bool) -> dict[str, Any]:
    """The content of `pipeline.json`: all that lies between a volume's file and its mask, beside the networks.

    Args:
        model: the first of the networks.
        task: of all.
        networks: the names of their files.
        tta: see `export`.
    """
    return {
        "format": FORMAT,
        "producer": f"vnet_fast {__version__}",
        "networks": list(networks),
        "tta": tta,
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
