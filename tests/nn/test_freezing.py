"""Frozen stages keep their weights and statistics, and the others learn."""

import pytest
import torch

from vnet_fast import DiceLoss, VNet
from vnet_fast.nn.freezing import freeze
from vnet_fast.training.optimizer import make_optimizer
from vnet_fast.training.step import Step


def network(norm, levels=3):
    torch.manual_seed(0)
    return VNet(base_channels=2, norm=norm, levels=levels, kernel_size=3)


def batch():
    return torch.randn(2, 1, 8, 8, 8), (torch.rand(2, 1, 8, 8, 8) > 0.5).to(torch.uint8)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("norm", [None, "batch", "instance"])
@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_frozen_stages_stay_and_the_others_learn(norm, optimizer, stages):
    model = network(norm)
    freeze(model, stages)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = Step(model, DiceLoss.paper(), make_optimizer(model, optimizer, 1e-2, 0.9, 1e-2), clip=1.0, ema=0.5)
    for _ in range(2):
        step(*batch())
    frozen = (*(f"left.{i}." for i in range(stages)), *(f"down.{i}." for i in range(stages - 1)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(frozen), name
    for name, value in step.average.values.items():
        assert not name.startswith(frozen) or torch.equal(value, before[name]), name


def test_frozen_batch_norm_normalises_by_its_running_means():
    model = network("batch")
    for buffer in model.buffers():
        buffer.uniform_(0.5, 2)
    freeze(model, 2)
    x, outputs = batch()[0], []
    model.left[1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.train()(x)
    model.eval()(x)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [-1, 4])
def test_stages_that_are_not_there_are_refused(stages):
    with pytest.raises(ValueError, match=f"stages must be from 0 to 3; got {stages}"):
        freeze(network(None), stages)
