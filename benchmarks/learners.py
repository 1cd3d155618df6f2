"""What `learning.py` compares: this project's recipes, and MONAI's networks in the same training.

MONAI's networks get all that the fast recipe has beside the network: batches and their augmentation, loss, optimiser,
learning rate, clipping and average of weights. Each runs in the precision in which its step is faster, on the smallest
volume that it takes.
"""

import csv
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from vnet_fast.data.cases import pair_cases
from vnet_fast.devices import choose_precision, find_device, mixed_precision
from vnet_fast.evaluation.metrics import measure
from vnet_fast.files import make_folder
from vnet_fast.io import volumes
from vnet_fast.prediction.held_out import PREDICTION_FOLDER, held_out
from vnet_fast.prediction.segmentation import segment
from vnet_fast.prediction.task import Task
from vnet_fast.run.checkpoint import ARCHITECTURE
from vnet_fast.run.configuration import LOSSES
from vnet_fast.run.configure import configure
from vnet_fast.run.folder import BEST, LOG
from vnet_fast.training.network import make_vnet
from vnet_fast.training.trainer import Trainer

WIDTHS = (16, 32, 64, 128, 256)
# steps that are timed in each precision
STEPS = 5
# of a gradient in half precision, as a share of its norm; right ones have up to 0.4
GRADIENT_ERROR = 0.6
METRICS = ("dice", "hausdorff_95_mm")


@dataclass(frozen=True)
class Learner:
    """A network and its training.

    Args:
        settings: options of `vnet_fast.train`.
        network: None for V-Net; else a function of the number of classes.
        multiple: of the lengths of a volume that the network takes.
    """

    settings: dict[str, Any]
    network: Any = None
    multiple: int = 1


def unet(num_classes):
    """MONAI's UNet with residual units, instance normalisation and PReLU."""
    from monai.networks.nets import UNet

    return UNet(3, 1, num_classes, WIDTHS, (2, 2, 2, 2), num_res_units=2, act="PRELU", norm="INSTANCE")


def dynunet(num_classes):
    """MONAI's DynUNet, nnU-Net's network, as wide as the UNet."""
    from monai.networks.nets import DynUNet

    return DynUNet(3, 1, num_classes, [3] * 5, [1, 2, 2, 2, 2], [2] * 4, filters=WIDTHS)


def segresnet(num_classes):
    """MONAI's SegResNet with its defaults."""
    from monai.networks.nets import SegResNet

    return SegResNet(in_channels=1, out_channels=num_classes)


def monai_vnet(num_classes):
    """MONAI's VNet with its defaults."""
    from monai.networks.nets import VNet

    return VNet(in_channels=1, out_channels=num_classes)


LEARNERS = {
    "vnet_fast, fast": Learner({"recipe": "fast"}),
    "vnet_fast, fast, 16 channels": Learner({"recipe": "fast", "base_channels": 16}),
    "vnet_fast, paper": Learner({"recipe": "paper"}),
    "MONAI UNet": Learner({"recipe": "fast"}, unet, 16),
    "MONAI DynUNet": Learner({"recipe": "fast"}, dynunet, 16),
    "MONAI SegResNet": Learner({"recipe": "fast"}, segresnet, 8),
    "MONAI VNet": Learner({"recipe": "fast"}, monai_vnet, 16),
}


# the fast recipe with another value of a single setting
UNCHANGED = "the fast recipe"
NO_MOVEMENT = {"rotation": (0.0, 0.0, 0.0), "scaling": (0.0, 1.0, 1.0)}
NO_INTENSITIES = dict.fromkeys(("brightness", "contrast", "gamma"), (0.0, 1.0, 1.0)) | {"noise": (0.0, 0.0)}
CHANGES = {
    UNCHANGED: {},
    "no norm": {"norm": "none"},
    "no norm, learning rate 1e-3": {"norm": "none", "learning_rate": 1e-3},
    "instance norm": {"norm": "instance"},
    "5x5x5 kernels": {"kernel_size": 5},
    "16 base channels": {"base_channels": 16},
    "3 levels": {"levels": 3},
    "5 levels": {"levels": 5},
    "Dice loss alone": {"loss": "dice"},
    "SGD with Nesterov's momentum, rate 0.02": {"optimizer": "nesterov", "learning_rate": 0.02, "momentum": 0.9},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "learning rate 12e-3": {"learning_rate": 12e-3},
    "cosine": {"schedule": "cosine"},
    "a constant learning rate": {"schedule": "step"},
    "no warm-up": {"warmup": 0},
    "no clipping": {"clip": None},
    "no average of weights": {"ema": None},
    "no weight decay": {"weight_decay": 0.0},
    "batches of 1": {"batch_size": 1},
    "batches of 4": {"batch_size": 4},
    "no rotation, no scaling": NO_MOVEMENT,
    "no flips": {"flip": "none"},
    "no changes of intensities": NO_INTENSITIES,
    "no augmentation": {"no_augment": True},
    "the paper's deformation too": {"deformation": 0.5},
    "matching of histograms too": {"matching": 0.5},
}
ABLATION = {name: Learner({"recipe": "fast", **changed}) for name, changed in CHANGES.items()}


@dataclass(frozen=True)
class Learned:
    """What a training has reached.

    Args:
        seconds: of training, without validation.
        iterations: that took.
        precision: `float32` or that of mixed precision.
        volume: voxels, x y z.
        metrics: of the held-out cases, see `measured`.
        curve: (seconds, Dice on the network's grid, the mean over cases and classes) of each validation.
    """

    seconds: float
    iterations: int
    precision: str
    volume: tuple[int, ...]
    metrics: dict[str, dict[str, list[float]]]
    curve: list[tuple[float, float]]


def learn(learner, given, output):
    """Trains a network, and measures it on the cases that it was not trained on.

    Args:
        learner: a Learner.
        given: options of `vnet_fast.train` beside those of the learner; `minutes` or `iterations` says how long.
        output: Path of the run's folder.

    Returns:
        Learned, or None if a signal stopped it.
    """
    given = {**learner.settings, **given, "output": str(output)}
    config = configure(given)
    # on a GPU; vnet_fast chooses the kernels of its convolutions itself
    torch.backends.cudnn.benchmark = learner.network is not None
    if learner.network:
        size = tuple(-(-length // learner.multiple) * learner.multiple for length in config.volume)
        config = replace(config, volume=size)
        config = replace(config, amp=faster_precision(learner.network, config))
    with Trainer(config, make_network=maker(learner.network)) as trainer:
        if trainer.train() is not None:
            return None
        trainer.step.release()
        if learner.network:
            pairs = predict_held_out(trainer, output)
        else:
            trainer.finish()
            pairs = [(case.prediction, case.reference) for case in held_out(output, config.device)]
        precision = "float32" if trainer.autocast is None else str(trainer.autocast).removeprefix("torch.")
        curve = curve_of(output / LOG, config.batch_size)
        numbers = round(trainer.seconds, 1), trainer.iteration
        return Learned(*numbers, precision, config.volume, measured(pairs, trainer.data.titles), curve)


def maker(network):
    """Makes the network of a Trainer: V-Net, or another with the attributes by which a checkpoint describes a V-Net."""
    if network is None:
        return make_vnet

    def make(config, num_classes, channels):
        model, described = network(num_classes), make_vnet(config, num_classes, channels)
        for name in ARCHITECTURE:
            setattr(model, name, getattr(described, name))
        return model

    return make


def faster_precision(network, config):
    """`off` or `auto`: mixed precision where it makes a training step faster and the gradients are right.

    On CPUs with AVX-512 BF16, oneDNN leaves the bfloat16 gradient of a convolution's weights partly unwritten where its
    kernel is longer than the volume, as at the coarsest level of many networks (torch 2.13).
    """
    device = find_device(config.device)
    image = torch.randn(config.batch_size, 1, *config.shape, device=device)
    target = torch.zeros_like(image, dtype=torch.uint8)
    model, loss = network(2).to(device), LOSSES[config.loss]()
    times, gradients = {"off": [], "auto": []}, {}
    # the first of each sets up memory
    for _ in range(STEPS + 1):
        for amp, measured in times.items():
            model.zero_grad()
            began = time.perf_counter()
            with mixed_precision(device, choose_precision(amp, device)[0]):
                logits = model(image)
            loss(logits, target).backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            measured.append(time.perf_counter() - began)
            gradients[amp] = [weight.grad for weight in model.parameters() if weight.ndim > 2]
    if not all(map(is_near, gradients["auto"], gradients["off"])):
        return "off"
    return min(times, key=lambda amp: statistics.median(times[amp][1:]))


def is_near(gradient, expected):
    """Whether a gradient in half precision is one of float32, and not garbage."""
    return bool((gradient - expected).norm() <= GRADIENT_ERROR * expected.norm())


def predict_held_out(trainer, output):
    """Writes the masks of the network in `best.pt` for the cases that a training held out, as `finish` does.

    Returns:
        list of (mask, reference mask), paths.
    """
    config, model = trainer.config, trainer.model
    model.load_state_dict(torch.load(output / BEST, map_location=trainer.device, weights_only=True)["model"])
    model.eval()
    folder = output / PREDICTION_FOLDER
    make_folder(folder)
    names, pairs = {case.name for case in trainer.data.validation}, []
    for case in pair_cases(config.data, config.labels)[0]:
        if case.name in names:
            pairs.append((folder / f"{case.name}.nii.gz", case.mask))
            task = Task(config.spacing, config.volume, trainer.data.patches, trainer.data.channels)
            segment(model, case.images, task, trainer.autocast).write_mask(pairs[-1][0])
    return pairs


def measured(pairs, titles):
    """Dice and 95 % Hausdorff distance of predicted masks, on the volumes' own grids.

    Args:
        pairs: list of (mask, reference mask), paths.
        titles: what the foreground classes are called.

    Returns:
        dict from region (`whole`, which is all labels above 0, and each class's name) to metric to a list with a
        number for each case.
    """
    regions = {"whole": None}
    if len(titles) > 1:
        regions |= {title: label for label, title in enumerate(titles, start=1)}
    values = {region: {metric: [] for metric in METRICS} for region in regions}
    for pair in pairs:
        images = [volumes.read_mask(path) for path in pair]
        masks = [volumes.sitk.GetArrayFromImage(image) for image in images]
        for region, label in regions.items():
            parts = [mask > 0 if label is None else mask == label for mask in masks]
            found = measure(*parts, images[1].GetSpacing())
            for metric in METRICS:
                values[region][metric].append(round(found[metric], 5))
    return values


def curve_of(path, batch_size):
    """(seconds of training, Dice) of each validation in a log."""
    seconds, curve = 0.0, []
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seconds += batch_size / float(row["volumes_per_second"])
            if row["validation_dice"]:
                curve.append((round(seconds, 2), float(row["validation_dice"])))
    return curve
