import numpy as np
import pytest
import torch

from vnet_fast import DiceLoss, VNet, step
from vnet_fast.augment import draw
from vnet_fast.phantom import phantoms
from vnet_fast.step import Step, TrainingData, choose_precision, predict_probabilities

SIZE = (16, 32, 32)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared():
    return phantoms(0, 4, SIZE[::-1], (4, 4, 6))


def test_batches_are_the_cases(prepared):
    data = TrainingData(prepared, 2, CPU)
    choice = draw(0, 3, 2, 4, SIZE, augmented=False)
    image, mask = data.batch(choice)
    assert image.shape == mask.shape == (2, 1, *SIZE)
    for n, case in enumerate(choice.cases):
        np.testing.assert_array_equal(image[n, 0].numpy(), prepared[case].image)
        np.testing.assert_array_equal(mask[n, 0].numpy(), prepared[case].mask)
    assert max(case.ranks.max() for case in prepared) > 60_000


def test_augmented_batches_take_other_intensities(prepared):
    data = TrainingData(prepared, 2, CPU)
    choice = draw(0, 0, 2, 4, SIZE)
    image, _ = data.batch(choice)
    for n in range(2):
        table = prepared[choice.intensities_of[n]].table
        assert image[n].min() >= table.min()
        assert image[n].max() <= table.max()


def test_two_classes_take_all_labels_as_one(prepared):
    from dataclasses import replace

    labelled = [replace(case, mask=case.mask * 3) for case in prepared]
    assert TrainingData(labelled, 2, CPU).masks.max() == 1
    assert TrainingData(labelled, 4, CPU).masks.max() == 3
    assert labelled[0].mask.max() == 3


def trainer(autocast=None, seed=0):
    torch.manual_seed(seed)
    model = VNet(base_channels=2)
    return Step(model, DiceLoss.paper(), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), autocast)


def test_a_step_is_forward_loss_backward_update(prepared):
    ours = trainer()
    plain = trainer()
    image, mask = TrainingData(prepared, 2, CPU).batch(draw(0, 0, 2, 4, SIZE))
    for _ in range(2):
        loss = ours(image, mask)
        plain.optimizer.zero_grad()
        expected = plain.loss(plain.model(image), mask)
        expected.backward()
        plain.optimizer.step()
        assert torch.equal(loss, expected.detach())
    for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_steps_learn_one_batch(prepared, autocast):
    torch.manual_seed(0)
    model = VNet(base_channels=4)
    learn = Step(model, DiceLoss.paper(), torch.optim.Adam(model.parameters(), lr=3e-4), autocast)
    image, mask = TrainingData(prepared, 2, CPU).batch(draw(0, 0, 1, 4, SIZE, augmented=False))
    losses = [learn(image, mask).item() for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_mixed_precision_runs_in_it(prepared):
    seen = []
    mixed = trainer(torch.bfloat16)
    mixed.model.head.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    mixed(*TrainingData(prepared, 2, CPU).batch(draw(0, 0, 2, 4, SIZE)))
    assert seen == [torch.bfloat16]
    assert all(weight.dtype == torch.float32 for weight in mixed.model.parameters())


def test_probabilities(prepared):
    model = VNet(base_channels=2, num_classes=3)
    probabilities = predict_probabilities(model, prepared[0].image)
    assert probabilities.shape == (3, *SIZE)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    logits = model(torch.from_numpy(prepared[0].image)[None, None])
    np.testing.assert_allclose(probabilities, torch.softmax(logits[0], 0).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_auto_precision_follows_the_cpu(monkeypatch, fast, dtype):
    monkeypatch.setattr(step, "cpu_has_fast_bf16", lambda: fast)
    chosen, words = choose_precision("auto", CPU)
    assert chosen == dtype
    assert ("bf16" in words) == fast
    assert "no fast bfloat16" in words or fast


def test_named_precisions():
    assert choose_precision("off", CPU) == (None, "float32")
    assert choose_precision("bf16", CPU)[0] is torch.bfloat16
    assert choose_precision("fp16", CPU)[0] is torch.float16


def test_devices():
    assert step.choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert step.choose_device("auto") == CPU
        with pytest.raises(RuntimeError, match="no CUDA device is available"):
            step.choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_steps_learn_one_batch_on_a_gpu(prepared, autocast):
    torch.manual_seed(0)
    device = torch.device("cuda")
    model = VNet(base_channels=4).to(device)
    learn = Step(model, DiceLoss.paper(), torch.optim.Adam(model.parameters(), lr=3e-4), autocast)
    image, mask = TrainingData(prepared, 2, device).batch(draw(0, 0, 1, 4, SIZE, augmented=False))
    losses = [learn(image, mask).item() for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]
