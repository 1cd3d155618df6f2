"""Writes a MONAI bundle: the network in plain PyTorch, with the way from a volume to its mask in MONAI's transforms.

Source:
    the specification of bundles, https://docs.monai.io/en/stable/mb_specification.html, and the bundles of MONAI's
    model zoo, whose keys MONAI Label looks for.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vnet_fast import __version__
from vnet_fast.deployment.folder import PACKAGE, TEMPLATES, check_folder, copy_programs, name_of, new_folder, write_page
from vnet_fast.deployment.monai_scripts import vnet
from vnet_fast.deployment.network_file import compared
from vnet_fast.deployment.pipeline import channel_facts, label_names
from vnet_fast.nn.vnet import VNet
from vnet_fast.prediction.components import IS_INSIDE
from vnet_fast.prediction.inference import OVERLAP
from vnet_fast.prediction.task import Task
from vnet_fast.prediction.windows import SIGMA
from vnet_fast.regions import label_table, written_names

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
# with which bundles are tested
MONAI_VERSION = "1.6.1"
REQUIRED = {"nibabel": "5.4.2", "pytorch-ignite": "0.5.5", "scikit-image": "0.26.0", "fire": "0.7.1"}
# for what is no NIfTI file
OPTIONAL = {"itk": "5.4.7"}
# the ends of MONAI's axes
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
INTENDED_USE = "Research. This is not a medical device"


def check_output(output: str, checkpoints: Sequence[str]) -> Path:
    """The path of the folder to write; an InputError if nothing can be exported there."""
    return check_folder(output)


def export(model: VNet, task: Task, path: Path) -> str:
    """Writes a MONAI bundle.

    Args:
        model: on the CPU, in evaluation mode; its weights need no gradient. Not of batch norm, which is folded.
        task: of the network.
        path: what `check_output` returned.

    Returns:
        what was written, and how the plain network's logits compare with the network's.

    Raises:
        InputError: if the logits differ, or the folder can't be written.
    """
    architecture, order = architecture_of(model), outputs_by_label(model, task)
    plain = vnet.VNet(**architecture).float().eval().requires_grad_(False)
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    weights |= {name: weights[name][order] for name in ("head.weight", "head.bias")}
    plain.load_state_dict(weights)
    x, y, z = task.size
    places = [order.index(output) for output in range(len(order))]
    example = torch.zeros(2, model.in_channels, z, y, x, dtype=torch.float32)
    result = compared(lambda x: plain(x)[:, places], model, example, path)
    task = replace(task, regions=tuple(task.regions[output] for output in order) if task.regions else ())
    metadata, inference = metadata_of(model, task, name_of(path)), inference_of(architecture, task)
    with new_folder(path) as folder:
        _write_json(folder / "configs" / "metadata.json", metadata)
        _write_json(folder / "configs" / "inference.json", inference)
        (folder / "models").mkdir()
        torch.save(weights, folder / "models" / "model.pt")
        copy_programs("monai_scripts", folder / "scripts", "scripts")
        page = folder / "docs" / "README.md"
        labels = label_names(model, task)
        write_page("bundle.md.j2", page, metadata=metadata, task=task, architecture=architecture, labels=labels)
        with resources.as_file(resources.files(PACKAGE) / TEMPLATES / "LICENSE.txt") as license_file:
            shutil.copyfile(license_file, folder / "LICENSE")
    return f"MONAI bundle, {result}"


def architecture_of(model: VNet) -> dict[str, Any]:
    """The arguments of the plain network."""
    return {
        "in_channels": model.in_channels,
        "out_channels": model.num_classes,
        "base_channels": model.base_channels,
        "topology": model.topology,
        "norm": model.norm,
        "levels": model.levels,
        "kernel_size": model.kernel_size,
        "halvings": None if model.halvings is None else list(model.halvings),
    }


def outputs_by_label(model: VNet, task: Task) -> list[int]:
    """The outputs of a network in the order of the bundle's.

    Regions are in the order of the labels that masks have for them, because MONAI Label and 3D Slicer give the names of
    the outputs to the labels that they find in a mask, one after the other.
    """
    if not task.regions:
        return list(range(model.num_classes))
    names = [region.name for region in task.regions]
    # those without a label of their own come last
    by_label = [*written_names(task.regions).values(), *names]
    return sorted(range(len(names)), key=lambda output: by_label.index(names[output]))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=4, ensure_ascii=False) + "\n", "utf-8")


def metadata_of(model: VNet, task: Task, name: str) -> dict[str, Any]:
    """The content of `metadata.json`."""
    names = list(label_names(model, task).values())
    outputs = [region.name for region in task.regions] or ["background", *names]
    return {
        "schema": SCHEMA,
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by vnet_fast {__version__}"},
        "monai_version": MONAI_VERSION,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": REQUIRED,
        "optional_packages_version": OPTIONAL,
        "name": name,
        "task": f"Segmentation of {', '.join(outputs if task.regions else names)}",
        "description": f"A V-Net that segments {', '.join(outputs if task.regions else names)} in 3-D volumes",
        "authors": "Those who trained it, with vnet_fast",
        "copyright": "Of the code in scripts, the vnet_fast developers; of the weights, those who trained them",
        "intended_use": INTENDED_USE,
        "references": ["Milletari, Navab, Ahmadi: V-Net, 3DV 2016, https://arxiv.org/abs/1606.04797"],
        "network_data_format": _data_format(model, task, outputs),
    }


def _data_format(model: VNet, task: Task, outputs: list[str]) -> dict[str, Any]:
    """What goes into the network and what comes out of it; the axes are z y x."""
    is_ct = all(channel.is_ct for channel in task.channels)
    channels = [channel.name or f"channel {number}" for number, channel in enumerate(task.channels)]
    common = {
        "type": "image",
        "spatial_shape": list(reversed(task.size)),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": task.patches,
    }
    image = {
        **common,
        "format": "hounsfield" if is_ct else "magnitude",
        "modality": "CT" if is_ct else "MR",
        "num_channels": model.in_channels,
        "channel_def": {str(number): channel for number, channel in enumerate(channels)},
    }
    logits = {
        **common,
        "format": "classes" if task.regions else "labels",
        "modality": "n/a",
        "num_channels": model.num_classes,
        "channel_def": {str(number): output for number, output in enumerate(outputs)},
    }
    return {"inputs": {"image": image}, "outputs": {"pred": logits}}


def inference_of(architecture: dict[str, Any], task: Task) -> dict[str, Any]:
    """The content of `inference.json`, in the order and with the keys of the model zoo's bundles."""
    return {
        "imports": ["$from scripts.cases import find_images", "$from scripts.cases import name_mask"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "dataset_dir": "$@bundle_root + '/images'",
        "datalist": f"$find_images(@dataset_dir, {len(task.channels)})",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "scripts.vnet.VNet", **architecture},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(task)},
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "shuffle": False},
        "inferer": {
            "_target_": "scripts.inferer.WindowInferer",
            "window": list(reversed(task.size)),
            "overlap": OVERLAP,
            "sigma": SIGMA,
            "sigmoid": bool(task.regions),
        },
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(task)},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
            "map_location": "@device",
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
    }


def _preprocessing(task: Task) -> list[dict[str, Any]]:
    """From the files of a volume to what the network takes, whose axes are z y x."""
    grid = {"spacing": list(reversed(task.spacing)), "size": list(reversed(task.size)), "covering": task.patches}
    channels = [{key: fact for key, fact in channel_facts(each).items() if key != "name"} for each in task.channels]
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        # the axes of MONAI's arrays are x y z, so that these are z y x, to the head, the back and the left
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL", "labels": AXES},
        {"_target_": "scripts.transforms.ToNetworkGridd", "keys": "image", **grid},
        {"_target_": "scripts.transforms.NormaliseVolumed", "keys": "image", "channels": channels},
    ]


def _postprocessing(task: Task) -> list[dict[str, Any]]:
    """From probabilities to the file of the mask."""
    back = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    discrete: dict[str, Any] = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    largest: dict[str, Any] = {"_target_": "KeepLargestConnectedComponentd", "keys": "pred", "is_onehot": False}
    to_labels = []
    if task.regions:
        discrete = {"_target_": "AsDiscreted", "keys": "pred", "threshold": IS_INSIDE}
        # all of them, because MONAI takes the first one for the background
        largest |= {"is_onehot": True, "applied_labels": list(range(len(task.regions)))}
        labels = label_table(task.regions).tolist()
        to_labels = [{"_target_": "scripts.transforms.RegionsToLabelsd", "keys": "pred", "labels": labels}]
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_ext": ".nii.gz",
        "output_dtype": "$numpy.uint8",
        "output_postfix": "",
        "separate_folder": False,
        "resample": False,
        "output_name_formatter": "$name_mask",
        "writer": "scripts.writer.MaskWriter",
    }
    return [back, discrete, largest, *to_labels, save]
