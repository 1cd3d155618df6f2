from dataclasses import replace

import numpy as np
import pytest
import torch

from vnet_fast import VNet
from vnet_fast.data.phantom import phantoms
from vnet_fast.evaluation.metrics import dice_per_class
from vnet_fast.prediction.inference import predict_probabilities
from vnet_fast.run.log import mean_dice
from vnet_fast.training.validation import interval, validate

SIZE = (32, 32, 16)


@pytest.fixture(scope="module")
def prepared():
    cases = phantoms(0, 3, SIZE, (4, 4, 6))
    # three classes, one of them in no mask of the last case
    halves = [case.mask * (1 + (np.arange(SIZE[0]) > SIZE[0] // 2)).astype(np.uint8) for case in cases]
    halves[2] = np.minimum(halves[2], 1)
    return [replace(case, mask=mask) for case, mask in zip(cases, halves, strict=True)]


@pytest.mark.parametrize("num_classes", [2, 3])
def test_dice_is_that_of_predicted_labels(prepared, num_classes):
    torch.manual_seed(0)
    model = VNet(num_classes=num_classes, base_channels=2)
    per_case = validate(model, prepared, num_classes)
    assert model.training
    for case in prepared:
        labels = predict_probabilities(model, case.image).argmax(0)
        reference = np.minimum(case.mask, 1) if num_classes == 2 else case.mask
        assert per_case[case.name] == pytest.approx(dice_per_class(labels, reference, num_classes), abs=1e-12)
    values = [value for case in per_case.values() for value in case]
    assert 0 < mean_dice(per_case) < 1
    assert mean_dice(per_case) == pytest.approx(np.mean(values))


def test_a_process_may_have_no_case():
    assert validate(VNet(base_channels=1), [], 2) == {}


def test_a_class_in_neither_mask_counts_as_found(prepared):
    class Background(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x):
            logits = torch.zeros(1, 3, *x.shape[2:])
            logits[:, 0] = 1
            return logits

    assert validate(Background(), prepared[2:], 3) == {prepared[2].name: [0.0, 1.0]}


@pytest.mark.parametrize(
    ("iterations", "batch_size", "cases", "every"),
    [
        # the paper's recipe: ten a run
        (30_000, 2, 8, 3_000),
        (30_000, 2, 40, 3_000),
        # 12 volumes' steps may go into forward passes: 36 of them, for 8 cases 4 times
        (300, 2, 8, 75),
        (600, 2, 40, 600),
        (1, 1, 1, 1),
        (7, 1, 100, 7),
    ],
)
def test_validations_take_a_fiftieth_of_the_time(iterations, batch_size, cases, every):
    assert interval(iterations, batch_size, cases) == every
