"""Training steps, validation and prediction on a CUDA device that is not there, and the operators that they run.

    python -m tests.gpu_rehearsal.fake_step            compares with operators.json
    python -m tests.gpu_rehearsal.fake_step --write    rewrites it, after a change that is meant

The same commands run in a build of PyTorch for CUDA, on a machine without a GPU. There the convolutions' backend and
layout are PyTorch's own choice; the builds differ in nothing else. To make such an environment (5 GB):

    python -m venv cuda && cuda/bin/pip install torch==2.11.0 numpy scipy SimpleITK tqdm filelock jinja2
    cuda/bin/python -m tests.gpu_rehearsal.fake_step

What it can't see: streams, and what PyTorch's C++ waits for within an operator. The order of the backward pass is
`fake_backward.py`'s.
"""

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tests.gpu_rehearsal.fake_cuda import CUDA, fake_cuda, put_on_device
from tests.gpu_rehearsal.operator_log import OperatorLog, describe, layout_of
from vnet_fast import DiceFocalLoss, DiceLoss, VNet, WeightedCrossEntropy
from vnet_fast.compat.nnunet import DC_and_CE_loss, SoftDiceLoss
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.devices import HOST
from vnet_fast.ops.augment import augment
from vnet_fast.ops.patches import patches
from vnet_fast.ops.transform import transform
from vnet_fast.ops.transform_rows import FIELDS
from vnet_fast.prediction import inference, passes
from vnet_fast.prediction.inference import LEFT_RIGHT, Attempt
from vnet_fast.prediction.passes import EAGER_PASSES, Passes
from vnet_fast.run import configuration
from vnet_fast.training.draws import BatchSampler
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.sources import Streamed
from vnet_fast.training.step import Step
from vnet_fast.training.validation import validate
from vnet_fast.training.volumes import Volumes

OPERATORS = Path(__file__).with_name("operators.json")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSSES = {
    "dice": DiceLoss.paper,
    "weighted-ce": WeightedCrossEntropy,
    "dice-ce": configuration.LOSSES["dice-ce"],
    "Dice + focal": lambda: DiceFocalLoss(to_onehot_y=True, softmax=True),
    "nnU-Net's Dice + CE, ignored": lambda: DC_and_CE_loss({"batch_dice": True, "do_bg": False}, {}, ignore_label=255),
    "nnU-Net's Dice": lambda: SoftDiceLoss(torch.nn.Softmax(1), batch_dice=True, do_bg=False),
    "Dice over the batch, Jaccard, ignored": lambda: DiceLoss(
        to_onehot_y=True, softmax=True, jaccard=True, batch=True, ignore_index=255
    ),
}
# of volumes that stay on the device
CASES = 5
# (z, y, x)
SHAPE = (64, 128, 128)


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A training step."""

    topology: str = "paper"
    precision: str = "bf16"
    loss: str = "dice"
    optimizer: str = "sgd"
    shape: tuple[int, int, int] = SHAPE
    batch: int = 2
    in_channels: int = 1
    classes: int = 2
    base_channels: int = 16
    resident: bool = True
    # whether the batch has more than the paper's augmentation
    transforms: bool = False
    # whether it is of patches of whole volumes
    patches: bool = False
    # whether convolutions are rewritten by the table of an H100
    rewrites: bool = False
    # the largest norm of the gradients, and the decay of an average of the weights
    clip: float | None = None
    ema: float | None = None
    norm: str | None = None

    def __str__(self):
        """As in `caffe, loss weighted-ce`: what is not the default."""
        differs = [
            f"{field.name} {getattr(self, field.name)}".removeprefix("topology ")
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return ", ".join(differs) or "paper, bf16, dice, sgd"

    def model(self):
        """The network, without memory."""
        with unset_fake_temporarily(), torch.device("meta"):
            return VNet(self.in_channels, self.classes, self.base_channels, self.topology, self.norm)


CONFIGURATIONS = {
    str(configuration): configuration
    for configuration in (
        Configuration(),
        Configuration("caffe"),
        Configuration(precision="float32"),
        Configuration(precision="fp16"),
        Configuration("caffe", "float32", optimizer="adamw"),
        Configuration("caffe", "fp16", optimizer="adamw"),
        *(Configuration(loss=loss) for loss in LOSSES if loss != "dice"),
        Configuration(precision="fp16", loss="weighted-ce"),
        Configuration(transforms=True),
        Configuration(patches=True),
        Configuration(optimizer="adamw", clip=12.0, ema=0.99),
        Configuration(optimizer="adamw", clip=12.0, ema=0.99, norm="batch"),
        Configuration(precision="float32", optimizer="adamw", ema=0.99),
        Configuration(optimizer="nesterov", clip=12.0, ema=0.99),
        Configuration(precision="fp16", clip=12.0, ema=0.99),
        Configuration(rewrites=True),
        Configuration(norm="batch"),
        Configuration("caffe", "fp16", optimizer="adamw", norm="instance"),
        Configuration(shape=(35, 50, 33)),
        Configuration(shape=(16, 16, 16), batch=1),
        Configuration(in_channels=3, classes=4, resident=False),
        Configuration("caffe", base_channels=48, shape=(16, 32, 32)),
        Configuration(base_channels=1, classes=5, shape=(32, 16, 48), batch=3),
    )
}

# of which a captured window is logged
WINDOWS = (
    Configuration(),
    Configuration(precision="float32"),
    Configuration(rewrites=True),
    Configuration(norm="batch"),
    Configuration("caffe", norm="instance", in_channels=3, classes=4, shape=(35, 50, 33)),
)


def step_of(configuration):
    """The step and its inputs, on the fake device."""
    model = put_on_device(configuration.model())
    autocast = PRECISIONS[configuration.precision]
    optimizer = make_optimizer(model, configuration.optimizer, 1e-4, 0.99, 5e-4)
    prepare, inputs = _batch(configuration, autocast)
    loss = put_on_device(LOSSES[configuration.loss]())
    settings = {"clip": configuration.clip, "ema": configuration.ema}
    return Step(model, loss, optimizer, autocast, prepare, **settings), inputs


def _batch(configuration, autocast):
    batch, shape = configuration.batch, configuration.shape
    if not configuration.resident:
        image = torch.empty((batch, configuration.in_channels, *shape), device=CUDA)
        return None, (image, torch.empty((batch, 1, *shape), dtype=torch.uint8, device=CUDA))
    ranks, masks = (torch.empty((CASES, *shape), dtype=dtype, device=CUDA) for dtype in (torch.int16, torch.uint8))
    tables = torch.empty((CASES, 65536), device=CUDA)
    chosen, intensities_of = (torch.empty(batch, dtype=torch.int64, device=CUDA) for _ in range(2))
    deformed = torch.empty(batch, dtype=torch.bool, device=CUDA)
    parameters = chosen, intensities_of, deformed, torch.empty((batch, 2, 5, 5, 5), device=CUDA)
    if configuration.transforms or configuration.patches:
        parameters = *parameters, torch.empty((batch, FIELDS), device=CUDA)
    if configuration.patches:
        places = torch.empty((CASES, 4), dtype=torch.int64, device=CUDA)

        def read(*parameters):
            flat = ranks.view(-1), tables, masks.view(-1), places
            return patches(*flat, *parameters, shape, configuration.classes, autocast or torch.float32)

        return read, parameters
    operation = transform if configuration.transforms else augment

    def prepare(*parameters):
        return operation(ranks, tables, masks, *parameters, configuration.classes, autocast or torch.float32)

    return prepare, parameters


def log_of_step(configuration):
    """The log of a step as it is captured, after a first one."""
    with fake_cuda(configuration.rewrites):
        step, inputs = step_of(configuration)
        with OperatorLog().recording():
            step(*inputs)
        with OperatorLog().recording() as log:
            loss = step(*inputs)
        log.findings += [f"the loss is on {loss.device}"] * (loss.device != CUDA)
        for name, weight in step.model.named_parameters():
            copies = getattr(step.optimizer, "half_weights", None)
            leaf = copies.copies.get(weight, weight) if copies else weight
            if leaf.grad is None:
                log.findings.append(f"{name} has no gradient")
            elif layout_of(leaf.grad) != layout_of(weight):
                log.findings.append(f"{name}: weight {describe(weight)}, gradient {describe(leaf.grad)}")
    return log


def log_of_streamed_inputs():
    """The log of the inputs of an iteration whose volumes stay in the host's memory, fetched while another runs."""
    with fake_cuda():
        sampler = BatchSampler(seed=0, batch_size=2, num_cases=CASES, shape=SHAPE)
        source = Streamed(Volumes([_case(index) for index in range(CASES)], 2), sampler, CUDA, torch.bfloat16)
        source.inputs(0)
        with OperatorLog().recording() as log:
            inputs = source.inputs(1)
            image, target = source.prepare(*inputs)
        log.findings += [f"{name} is {describe(tensor)}" for name, tensor in (("image", image), ("target", target))]
        stream = torch.cuda.current_stream()
        log.findings += ["the step does not wait for its volumes"] * (stream.waited[-1:] != [source.stream])
        if not all(any(tensor is noted for noted in stream.recorded) for tensor in inputs):
            log.findings.append("the memory of volumes may be used again while the step reads them")
    return log


def log_of_validation():
    """The log of the validation of two cases."""
    with fake_cuda():
        model = put_on_device(Configuration().model())
        with OperatorLog().recording() as log:
            dice = validate(model, [_case(0), _case(1)], 2, torch.bfloat16)
        assert dice.keys() == {"0", "1"}
    return log


def log_of_prediction(collected, shape, window):
    """The log of the prediction of a volume.

    Args:
        collected: the device that holds the probabilities.
        shape: of the volume, (z, y, x).
        window: of a window, (z, y, x).
    """
    with fake_cuda():
        model = put_on_device(Configuration().model())
        image, attempt = np.zeros(shape, np.float32), Attempt(CUDA, window, collected)
        # what is computed here means nothing, and may be infinite
        with OperatorLog().recording() as log, mock.patch.object(inference, "check_finite", _are_finite):
            found = inference._average(model.eval(), image, attempt, torch.bfloat16, 0.5, LEFT_RIGHT, iter)
        assert found.shape == (2, *shape)
    return log


def log_of_captured_window(configuration):
    """The log of the pass over a window, and the same mirrored, that runs eagerly and is then captured, so that it has
    every operator of the network twice. The comparison with a replay, which waits for the device, is left out.
    """
    with fake_cuda(configuration.rewrites):
        model, ours = put_on_device(configuration.model()).eval(), Passes()
        window = torch.empty((1, configuration.in_channels, *configuration.shape), device=CUDA)
        predict = partial(inference._predict_window, model, PRECISIONS[configuration.precision], LEFT_RIGHT, False)
        for _ in range(EAGER_PASSES):
            with OperatorLog().recording():
                ours(predict, model, window, None)
        graph = mock.Mock()
        capture = mock.patch.object(passes, "captured", lambda function: (graph, function()))
        alike = mock.patch.object(passes, "_are_close", return_value=True)
        with capture, alike, OperatorLog().recording() as log:
            ours(predict, model, window, None)
        log.findings += ["it was not replayed"] * (graph.replay.call_count != 1)
    return log


def _are_finite(largest):
    """Reads back what `check_finite` reads back, and finds nothing wrong."""
    bool(torch.isfinite(torch.stack(largest)).all())


def _case(index):
    ranks, table = np.zeros(SHAPE, np.uint16), np.zeros(65536, np.float32)
    return PreparedCase(str(index), ranks, table, np.zeros(SHAPE, np.uint8), (0, 1))


LOGS = {
    **{f"step: {name}": partial(log_of_step, configuration) for name, configuration in CONFIGURATIONS.items()},
    "streamed inputs": log_of_streamed_inputs,
    "validation": log_of_validation,
    "prediction in one piece": partial(log_of_prediction, CUDA, SHAPE, SHAPE),
    "prediction in windows": partial(log_of_prediction, CUDA, (80, 128, 128), SHAPE),
    "prediction in windows, collected on the host": partial(log_of_prediction, HOST, (80, 128, 128), SHAPE),
    **{f"captured window: {form}": partial(log_of_captured_window, form) for form in WINDOWS},
}


def main():
    """Compares with the file, or rewrites it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="rewrite operators.json")
    parser.add_argument("--only", nargs="+", choices=LOGS, default=list(LOGS), metavar="NAME", help="run only these")
    arguments = parser.parse_args()
    found = {name: LOGS[name]().summary() for name in arguments.only}
    expected = json.loads(OPERATORS.read_text()) if OPERATORS.exists() else {}
    if arguments.write:
        OPERATORS.write_text(json.dumps({**expected, **found}, indent=1) + "\n")
        return 0
    wrong = [name for name in found if found[name] != expected.get(name)]
    for name in wrong:
        print(f"{name}:", *_differences(expected.get(name, {}), found[name]), sep="\n    ")
    print(f"{len(found) - len(wrong)} of {len(found)} as in {OPERATORS.name}")
    return 1 if wrong else 0


def _differences(expected, found):
    for key, now in found.items():
        before = expected.get(key)
        if isinstance(now, dict) and before:
            changed = sorted(name for name in {*now, *before} if before.get(name) != now.get(name))
            yield from (f"{name}: {before.get(name, 0)} -> {now.get(name, 0)}" for name in changed)
        elif before != now:
            yield f"{key}: {before} -> {now}"


if __name__ == "__main__":
    sys.exit(main())
