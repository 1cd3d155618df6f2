"""What a network takes from the checkpoint that it starts from."""

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint
from vnet_fast.run.initial import FIRST_WEIGHT, inherited_settings, start_from


def network(seed, **arguments):
    torch.manual_seed(seed)
    model = VNet(**{"base_channels": 2, "levels": 3, "norm": "batch", **arguments})
    for buffer in model.buffers():
        buffer.uniform_(0.5, 2)
    return model


def saved(folder, model):
    checkpoint.save(folder / "x.pt", model, spacing=[1.0, 1.0, 1.0], volume=[16, 16, 16], validation=[])
    return folder / "x.pt"


def test_the_same_network_has_the_same_weights(tmp_path):
    source, model = network(0), network(1)
    assert start_from(model, saved(tmp_path, source)) == ""
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), source.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("topology", ["paper", "caffe"])
def test_other_classes_have_a_new_output_layer(tmp_path, topology):
    source, model = network(0, topology=topology), network(1, topology=topology, num_classes=4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    text = start_from(model, saved(tmp_path, source))
    assert text == "its output layer is new, for 3 classes instead of 1"
    stored = source.state_dict()
    for name, weight in model.state_dict().items():
        is_output = name.startswith(("head.", "wide_head."))
        assert torch.equal(weight, before[name] if is_output else stored[name]), name


def test_channels_and_classes_of_other_names_are_told(tmp_path):
    def described(channels, classes):
        return {"channels": [{"name": name, "scaling": None} for name in channels], "classes": list(classes)}

    source = network(0, in_channels=2, num_classes=3)
    grid = {"spacing": [1.0, 1.0, 1.0], "volume": [16, 16, 16], "validation": []}
    checkpoint.save(tmp_path / "x.pt", source, **grid, **described(("T1", "T2"), ("edema", "core")))
    model = network(1, in_channels=2, num_classes=3)
    for channels, classes, text in (
        (("t1", "T2"), ("edema", ""), ""),
        (("T2", "T1"), ("edema", "core"), "its channels are T1, T2, those of the data T2, T1"),
        (("", ""), ("core", "edema"), "its classes are edema, core, those of the data core, edema"),
    ):
        assert start_from(model, tmp_path / "x.pt", (), described(channels, classes)) == text


@pytest.mark.parametrize(("theirs", "ours"), [(2, 1), (1, 3)])
def test_other_channels_average_the_first_layer(tmp_path, theirs, ours):
    source, model = network(0, in_channels=theirs), network(1, in_channels=ours)
    text = start_from(model, saved(tmp_path, source))
    assert text == f"its first layer averages {theirs} input channels for {ours}"
    # the same image in all channels gives the same output
    x = torch.randn(1, 1, 8, 8, 8)
    first, expected = (net.left[0].layers[0].convolution for net in (model, source))
    torch.testing.assert_close(first(x.repeat(1, ours, 1, 1, 1)), expected(x.repeat(1, theirs, 1, 1, 1)))
    others = [name for name in model.state_dict() if name != FIRST_WEIGHT]
    assert all(torch.equal(model.state_dict()[name], source.state_dict()[name]) for name in others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_channels": 4}, "has base_channels 2, not 4"),
        ({"levels": 4}, "has levels 3, not 4"),
        ({"norm": None}, "has norm batch, not None"),
        ({"kernel_size": 3}, "has kernel_size 5, not 3"),
        ({"topology": "caffe"}, "has topology paper, not caffe"),
    ],
    ids=str,
)
def test_another_network_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        start_from(network(1, **arguments), saved(tmp_path, network(0)))


def test_weights_that_are_not_numbers_are_refused(tmp_path):
    source, model = network(0), network(1)
    with torch.no_grad():
        source.head.bias[0] = float("nan")
    before = model.head.weight.clone()
    with pytest.raises(InputError, match="some of its weights are NaN or infinite"):
        start_from(model, saved(tmp_path, source))
    assert torch.equal(model.head.weight, before)


def test_other_halvings_are_another_network(tmp_path):
    path = saved(tmp_path, network(0, halvings=(1, 2, 2)))
    assert start_from(network(1, halvings=(1, 2, 2)), path) == ""
    with pytest.raises(InputError, match=r"has halvings \(1, 2, 2\), not None"):
        start_from(network(1), path)
    assert inherited_settings(str(path), {})["halvings"] == (2, 2, 1)
    with pytest.raises(InputError, match=r"--halvings: is \(2, 2, 2\) here and \(2, 2, 1\) in "):
        inherited_settings(str(path), {"halvings": (2, 2, 2)})


def test_halvings_of_every_step_may_be_given_or_not(tmp_path):
    path = saved(tmp_path, network(0))
    assert inherited_settings(str(path), {"halvings": (2, 2, 2)})["halvings"] == (2, 2, 2)
