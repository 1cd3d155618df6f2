import contextlib
import itertools

import numpy as np
import pytest
import torch
from scipy.signal.windows import gaussian
from torch import nn

from vnet_fast import VNet
from vnet_fast.devices import HOST
from vnet_fast.prediction import inference, windows
from vnet_fast.prediction.inference import LEFT_RIGHT, NO_FLIP, Attempt, list_attempts, predict_probabilities

SHAPE = (16, 32, 32)
CUDA = torch.device("cuda")
ALL_FLIPS = [flip for count in range(4) for flip in itertools.combinations((-3, -2, -1), count)]


def make_image(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_vnet(seed=0, num_classes=2):
    torch.manual_seed(seed)
    return VNet(base_channels=2, num_classes=num_classes)


def forward(model, image):
    """What the network gives for the whole image, in one pass."""
    with torch.inference_mode():
        return torch.softmax(model.eval()(torch.from_numpy(image)[None, None])[0], 0).numpy()


def make_pointwise():
    """A network whose logits at a voxel depend on that voxel alone."""
    torch.manual_seed(0)
    return nn.Conv3d(1, 3, 1)


class Placed(nn.Module):
    """Logits that depend on the voxel and on where in the window it is."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        place = torch.arange(x[0, 0].numel(), dtype=x.dtype).reshape(x.shape[2:])
        return torch.cat([self.weight * x, torch.sin(place * 0.37) + 0 * x], 1)


class Scarce(nn.Module):
    """A pointwise network for which memory suffices up to a number of voxels."""

    def __init__(self, network, voxels, error=None):
        super().__init__()
        self.network, self.voxels, self.seen = network, voxels, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x):
        self.seen.append(tuple(x.shape[2:]))
        if x.numel() > self.voxels:
            raise self.error
        return self.network(x)


class OnlyOnTheHost(nn.Module):
    """A pointwise network on a device without any memory."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def parameters(self, recurse=True):
        return iter([nn.Parameter(torch.ones(1, device="meta"))])

    def forward(self, x):
        if x.device.type == "meta":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(x)


def test_probabilities():
    model = make_vnet(num_classes=3)
    image = make_image(SHAPE)
    probabilities = predict_probabilities(model, image)
    assert probabilities.shape == (3, *SHAPE)
    assert probabilities.dtype == np.float32
    assert not model.training
    np.testing.assert_allclose(probabilities.sum(0), 1, rtol=1e-5)
    # with gradients, convolutions may be computed in another form
    with torch.no_grad():
        logits = model(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(probabilities, torch.softmax(logits[0], 0).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, SHAPE, (64, 32, 40)], ids=str)
def test_one_window_is_the_forward_pass_to_the_bit(window):
    model, image = make_vnet(), make_image(SHAPE)
    np.testing.assert_array_equal(predict_probabilities(model, image, window=window), forward(model, image))


@pytest.mark.parametrize(
    ("shape", "window"),
    [
        ((17, 16, 16), (16, 16, 16)),
        ((17, 33, 17), (16, 32, 16)),
        ((7, 40, 16), (16, 16, 16)),
        ((20, 9, 50), (16, 16, 32)),
        ((5, 3, 1), (2, 1, 1)),
    ],
    ids=str,
)
@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
def test_a_pointwise_network_is_reproduced(shape, window, overlap):
    model, image = make_pointwise(), make_image(shape)
    found = predict_probabilities(model, image, window=window, overlap=overlap)
    np.testing.assert_allclose(found, forward(model, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("axis", range(3), ids="zyx")
@pytest.mark.parametrize(("overlap", "length"), [(0.25, 13), (0.5, 14)])
def test_windows_along_an_axis_equal_monai_s(axis, overlap, length):
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is not installed")
    shape, window = ([1, 1, 1] for _ in range(2))
    # MONAI puts a floor of 1e-3 under the weights: those of so short a window are above
    shape[axis], window[axis] = length, 4
    model, image = Placed(), make_image(shape)
    expected = inferers.sliding_window_inference(
        torch.from_numpy(image)[None, None],
        window,
        1,
        lambda x: torch.softmax(model(x), 1).detach(),
        overlap=overlap,
        mode="gaussian",
    )
    found = predict_probabilities(model, image, window=tuple(window), overlap=overlap)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-6)


def test_windows_equal_monai_s():
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is not installed")
    # lengths at which MONAI's windows are spread evenly, as ours always are
    shape, window = (24, 16, 48), (16, 16, 32)
    model, image = make_vnet(), make_image(shape)
    lines = [torch.from_numpy(gaussian(n, n / 8)).float() for n in window]
    expected = inferers.sliding_window_inference(
        torch.from_numpy(image)[None, None],
        window,
        1,
        lambda x: torch.softmax(model(x), 1).detach(),
        overlap=0.5,
        mode="gaussian",
        # without MONAI's floor
        roi_weight_map=torch.einsum("i,j,k->ijk", *lines)[None, None],
    )
    found = predict_probabilities(model, image, window=window, overlap=0.5)
    np.testing.assert_allclose(found, expected[0], rtol=0, atol=1e-5)


def test_more_overlap_comes_nearer_to_the_whole_and_leaves_no_seams():
    # centred noise would leave the random network's classes at a tie
    model, image = make_vnet(seed=1), make_image((32, 32, 160)) + np.float32(0.3)
    whole = forward(model, image)
    errors, largest, usual = [], [], []
    for overlap in (0, 0.5, 0.75):
        difference = (predict_probabilities(model, image, window=(32, 32, 32), overlap=overlap) - whole)[1]
        errors.append(np.sqrt((difference**2).mean()))
        # by how much the difference changes from one plane to the next, where a window ends and elsewhere
        change = np.sqrt((np.diff(difference, axis=-1) ** 2).mean((0, 1)))
        first = windows.starts(160, 32, overlap)
        ends = {start - 1 for start in first[1:]} | {start + 31 for start in first[:-1]}
        elsewhere = [k for k in range(159) if k not in ends]
        largest.append(change[sorted(ends)].max() / change[elsewhere].max())
        usual.append(change[sorted(ends)].mean() / change[elsewhere].mean())
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    # without overlap the seams are there
    assert largest[0] > 1, largest
    assert usual[0] > 2, usual
    assert max(largest[1:]) < 1, largest
    assert max(usual[1:]) < 1.1, usual


@pytest.mark.parametrize("window", [SHAPE, (16, 16, 32)], ids=str)
@pytest.mark.parametrize("flips", [LEFT_RIGHT, pytest.param(ALL_FLIPS, marks=pytest.mark.exhaustive)], ids=len)
def test_flips_are_averaged(window, flips):
    model, image = make_vnet(), make_image(SHAPE)
    expected = [
        np.flip(predict_probabilities(model, np.flip(image, axes).copy(), window=window), axes) for axes in flips
    ]
    found = predict_probabilities(model, image, window=window, flips=flips)
    np.testing.assert_allclose(found, np.mean(expected, 0), rtol=0, atol=1e-6)
    assert np.abs(found - expected[0]).max() > 1e-3


def test_flips_change_nothing_for_a_symmetric_network():
    model, image = make_pointwise(), make_image((17, 20, 33))
    plain, flipped = (predict_probabilities(model, image, window=(16, 16, 16), flips=f) for f in (NO_FLIP, ALL_FLIPS))
    np.testing.assert_allclose(flipped, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("flips", [NO_FLIP, LEFT_RIGHT], ids=["as it is", "mirrored too"])
def test_networks_are_averaged(flips):
    networks, image = [make_vnet(seed) for seed in range(3)], make_image((16, 16, 32))
    found = predict_probabilities(nn.ModuleList(networks), image, window=(16, 16, 24), flips=flips)
    each = [predict_probabilities(network, image, window=(16, 16, 24), flips=flips) for network in networks]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=0, atol=1e-6)
    assert np.abs(each[0] - each[1]).max() > 1e-3


def test_mixed_precision_reaches_every_window():
    seen = []
    model = make_pointwise()
    model.register_forward_hook(lambda module, arguments, logits: seen.append(logits.dtype))
    found = predict_probabilities(model, make_image(SHAPE), torch.bfloat16, window=(16, 16, 16))
    assert seen == [torch.bfloat16] * 9
    assert found.dtype == np.float32


def test_windows_are_tracked():
    tracked = []
    predict_probabilities(
        make_pointwise(), make_image(SHAPE), window=(16, 16, 16), track=lambda all: tracked.extend(all) or all
    )
    assert len(tracked) == 9


def test_overlap_outside_of_its_range():
    with pytest.raises(ValueError, match="overlap must be 0 or more and below 1; got 1"):
        predict_probabilities(make_pointwise(), make_image(SHAPE), overlap=1)


def test_attempts_on_a_gpu():
    found = list_attempts(CUDA, (64, 128, 128), (80, 128, 128))
    assert [(a.device.type, a.window, a.collected.type) for a in found] == [
        ("cuda", (64, 128, 128), "cuda"),
        ("cuda", (64, 128, 128), "cpu"),
        ("cuda", (64, 64, 128), "cpu"),
        ("cuda", (64, 64, 64), "cpu"),
        ("cpu", (64, 128, 128), "cpu"),
    ]
    # there is little to collect of a single window
    assert list_attempts(CUDA, (64, 128, 128), (64, 128, 128))[1].window == (64, 64, 128)


def test_out_of_memory_halves_the_windows_and_says_so():
    messages, image = [], make_image((16, 80, 128))
    model = Scarce(make_pointwise(), voxels=16 * 64 * 64)
    found = predict_probabilities(model, image, notify=messages.append)
    np.testing.assert_allclose(found, forward(model.network, image), rtol=0, atol=1e-6)
    assert messages == [
        "out of memory on the CPU, windows are 64 x 80 x 16 voxels, which is less accurate",
        "out of memory on the CPU, windows are 64 x 48 x 16 voxels, which is less accurate",
    ]
    assert model.seen[:2] == [(16, 80, 128), (16, 80, 64)]
    # three by three windows: halves overlap
    assert model.seen[2:] == [(16, 48, 64)] * 9


def test_halves_are_windows_of_that_size():
    network, image = make_vnet(), make_image((16, 16, 128))
    found = predict_probabilities(Scarce(network, voxels=16 * 16 * 64), image, notify=lambda message: None)
    np.testing.assert_array_equal(found, predict_probabilities(network, image, window=(16, 16, 64)))


def test_the_last_resort_is_the_cpu(monkeypatch):
    messages, precisions, image = [], [], make_image((16, 16, 160))

    def mixed_precision(device, dtype):
        precisions.append((device.type, dtype))
        return contextlib.nullcontext()

    monkeypatch.setattr(inference, "mixed_precision", mixed_precision)
    model = OnlyOnTheHost(make_pointwise())
    found = predict_probabilities(model, image, torch.bfloat16, window=(16, 16, 96), notify=messages.append)
    np.testing.assert_allclose(found, forward(model.network, image), rtol=0, atol=1e-6)
    assert messages == [
        "out of memory on the GPU, probabilities are collected on the CPU",
        "out of memory on the GPU, windows are 48 x 16 x 16 voxels, which is less accurate",
        "out of memory on the GPU, the network runs on the CPU, in float32",
    ]
    # the first window of each attempt on the device, all three on the CPU
    assert precisions == [("meta", torch.bfloat16)] * 3 + [("cpu", None)] * 3


def test_the_last_resort_leaves_the_weights_where_they_are(monkeypatch):
    """A CUDA graph of a training step reads and updates them there."""
    torch.manual_seed(0)
    network, given = VNet(base_channels=2, norm="batch"), make_image(SHAPE)
    expected = forward(network, given)
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in network.state_dict(keep_vars=True).items()}
    attempt = inference.Attempt(torch.device("cpu"), SHAPE, torch.device("cpu"), inference.ON_HOST)
    monkeypatch.setattr(inference, "list_attempts", lambda *_: [attempt])
    with torch.inference_mode():
        found = predict_probabilities(network, given)
    np.testing.assert_array_equal(found, expected)
    after = network.state_dict(keep_vars=True)
    for name, (tensor, place) in before.items():
        assert after[name] is tensor
        assert tensor.data_ptr() == place
        assert not tensor.is_inference()
    # as a training step does
    network(torch.from_numpy(given)[None, None]).mean().backward()


def test_what_the_cpu_cannot_hold_is_no_endless_loop():
    with pytest.raises(torch.OutOfMemoryError, match="the memory of the CPU does not suffice"):
        predict_probabilities(Scarce(make_pointwise(), voxels=0), make_image(SHAPE), notify=lambda message: None)


def test_a_cpu_returns_what_it_has_kept_before_windows_are_smaller(monkeypatch):
    network, messages = Scarce(make_pointwise(), voxels=0, error=MemoryError()), []

    def return_freed_memory():
        network.voxels, before = 10**9, network.voxels
        return not before

    monkeypatch.setattr(inference, "return_freed_memory", return_freed_memory)
    image = make_image((16, 16, 160))
    found = predict_probabilities(network, image, notify=messages.append)
    np.testing.assert_array_equal(found, predict_probabilities(network.network, image))
    assert messages == []
    assert network.seen == [image.shape] * 2


NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation after trying 3 plans.")


@pytest.mark.parametrize(("failed", "succeeds"), [(1, True), (0, False)], ids=["memory is short", "it is not"])
def test_no_engine_is_out_of_memory_only_if_an_allocation_failed(monkeypatch, failed, succeeds):
    """cuDNN says the same if its engines need more memory and if it has none for the convolution."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_ooms": failed})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "reset_accumulated_memory_stats", lambda: None)
    messages, image = [], make_image((16, 16, 128))
    model = Scarce(make_pointwise(), voxels=16 * 16 * 64, error=NO_ENGINE)
    if succeeds:
        found = predict_probabilities(model, image, notify=messages.append)
        np.testing.assert_allclose(found, forward(model.network, image), rtol=0, atol=1e-6)
    else:
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            predict_probabilities(model, image, notify=messages.append)
    assert len(messages) == succeeds


def test_what_the_cpu_cannot_allocate_is_out_of_memory():
    error = RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
    model, messages = Scarce(make_pointwise(), voxels=16 * 16 * 64, error=error), []
    predict_probabilities(model, make_image((16, 16, 128)), notify=messages.append)
    assert messages == ["out of memory on the CPU, windows are 64 x 16 x 16 voxels, which is less accurate"]


def test_other_errors_are_raised():
    model = Scarce(make_pointwise(), voxels=0, error=RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        predict_probabilities(model, make_image(SHAPE), notify=pytest.fail)


@pytest.mark.gpu
def test_collected_on_the_host_or_the_device_is_the_same():
    model, image = make_vnet().to(CUDA).eval(), make_image((32, 32, 48))
    on_device, on_host = (
        inference._average(model, image, Attempt(CUDA, (32, 32, 32), place), None, 0.5, NO_FLIP, iter)
        for place in (CUDA, HOST)
    )
    np.testing.assert_allclose(on_device, on_host, rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_out_of_memory_on_a_gpu():
    model, image, messages = VNet(base_channels=8).to(CUDA), make_image((64, 128, 128)), []
    # the first prediction also tries out convolutions, which takes more memory
    predict_probabilities(model, image)
    torch.cuda.reset_peak_memory_stats()
    predict_probabilities(model, image)
    # beside the memory that earlier tests of this process may hold, in pieces that can't be given back
    needed = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    torch.cuda.empty_cache()
    limit = torch.cuda.memory_reserved() + 0.65 * needed
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(CUDA).total_memory)
    try:
        found = predict_probabilities(model, image, notify=messages.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    # beside them one may say that there is no memory for a graph
    halvings = [message for message in messages if "windows are" in message]
    assert halvings
    assert not any("CPU" in message for message in messages)
    window = image.shape
    for _ in halvings:
        window = windows.halve_longest_axis(window)
    np.testing.assert_allclose(found, predict_probabilities(model, image, window=window), rtol=0, atol=1e-3)
