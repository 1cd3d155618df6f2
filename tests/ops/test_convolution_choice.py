"""Which rewrite runs: the fastest that is right, kept on disk; a table where nothing may be timed."""

import itertools

import pytest
import torch

from vnet_fast.errors import InputError
from vnet_fast.ops import convolution_choice, device_store
from vnet_fast.ops.convolution import REWRITES, forward

CPU = torch.device("cpu")
X = torch.randn(1, 16, 4, 4, 8).contiguous(memory_format=torch.channels_last_3d)
WEIGHT = torch.randn(16, 16, 5, 5, 5).contiguous(memory_format=torch.channels_last_3d)
LAYER = convolution_choice.Layer.of("forward", X, WEIGHT)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(convolution_choice, "_chosen", {})
    monkeypatch.setattr(device_store, "FOLDER", tmp_path / "devices")
    monkeypatch.delenv("VNET_FAST_CONV", raising=False)


@pytest.fixture
def device(monkeypatch):
    """A device whose times are given, in milliseconds by name; the names that were timed, in order."""
    times, timed = {"cudnn": 3.0, "zstack": 1.0, "pack2": 2.0, "pack4": 4.0, "pack8": 5.0}, []
    seen = []

    def milliseconds(function):
        function()
        timed.append(seen[-1])
        return times[seen[-1]]

    monkeypatch.setattr(convolution_choice, "_milliseconds", milliseconds)
    monkeypatch.setattr(convolution_choice, "_may_time", lambda x: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return times, timed, seen


def stored():
    return device_store.load(convolution_choice._store(), CPU)


def run_into(seen, wrong=(), failing=()):
    def run(rewrite):
        seen.append(rewrite.name)
        if rewrite.name in failing:
            raise torch.OutOfMemoryError("none left")
        return forward(rewrite, X, WEIGHT) * (1.5 if rewrite.name in wrong else 1)

    return run


def test_the_fastest_is_kept_in_memory_and_on_disk(device, monkeypatch):
    _, timed, seen = device
    y = convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    torch.testing.assert_close(y, forward(REWRITES["cudnn"], X, WEIGHT), rtol=1e-4, atol=1e-4)
    assert seen[-1] == "zstack"
    # interleaved, so that a slow moment meets all
    names = ["cudnn", "zstack", "pack2", "pack4", "pack8"]
    assert timed == names * convolution_choice.RUNS
    timed.clear()
    convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    monkeypatch.setattr(convolution_choice, "_chosen", {})
    convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    assert (seen[-2:], timed) == (["zstack", "zstack"], [])
    assert convolution_choice.summary(CPU) == "1 of 1 passes: 1 zstack"
    assert convolution_choice.chosen(CPU) == [("forward float32 1x16x4x4x8 to 16 by 5x5x5", "zstack")]


@pytest.mark.parametrize(
    ("wrong", "failing", "chosen"),
    [((), ("zstack",), "pack2"), (("zstack",), (), "pack2"), (("zstack", "pack2"), ("pack4", "pack8"), "cudnn")],
)
def test_a_wrong_or_failing_candidate_is_not_taken(device, wrong, failing, chosen):
    _, timed, seen = device
    convolution_choice.compute("forward", X, WEIGHT, run_into(seen, wrong, failing))
    assert seen[-1] == chosen
    assert not {*wrong, *failing} & set(timed)
    # another process may have the memory
    assert bool(stored()) == (not failing)


def test_without_memory_for_the_comparison_it_is_cudnns(device):
    _, timed, seen = device
    calls = []

    def run(rewrite):
        calls.append(rewrite.name)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("none left")
        return run_into(seen)(rewrite)

    convolution_choice.compute("forward", X, WEIGHT, run)
    assert (calls, timed) == (["cudnn", "cudnn"], [])
    # another process may have more memory
    assert stored() == {}


def test_a_result_of_nan_proves_nothing(device):
    _, _, seen = device
    names = convolution_choice.candidates(LAYER)
    run = run_into(seen)
    for spoiled in (torch.nan, torch.inf):
        assert convolution_choice.try_all(LAYER, names, lambda rewrite, x=spoiled: run(rewrite) * x).fastest is None
    # a gradient that overflows decides nothing, here or on disk
    y = convolution_choice.compute("forward", X, WEIGHT, lambda rewrite: run(rewrite) * torch.inf)
    assert not y.isfinite().all()
    assert convolution_choice.chosen(CPU) == []
    assert stored() == {}
    convolution_choice.compute("forward", X, WEIGHT, run)
    assert seen[-1] == "zstack"


def test_where_bits_must_be_the_same_the_table_decides(device, monkeypatch):
    _, timed, seen = device
    monkeypatch.setattr(convolution_choice, "tabulated", lambda layer, capability: "pack4")
    torch.use_deterministic_algorithms(True)
    try:
        convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    finally:
        torch.use_deterministic_algorithms(False)
    assert (seen, timed) == (["pack4"], [])
    assert not list(device_store.FOLDER.glob("*/*"))
    # and it is forgotten, for a later step that may choose, whose choice is no rule either
    convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    assert seen[-1] == "zstack"
    torch.use_deterministic_algorithms(True)
    try:
        convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen[-1] == "pack4"


def test_nothing_is_timed_within_a_capture(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not convolution_choice._may_time(X)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert convolution_choice._may_time(X)


def test_a_stored_name_that_is_no_candidate_is_ignored(device):
    _, timed, seen = device
    device_store.save(convolution_choice._store(), CPU, {str(LAYER): "winograd"})
    convolution_choice.compute("forward", X, WEIGHT, run_into(seen))
    assert seen[-1] == "zstack"
    assert timed


def test_the_variable_turns_rewrites_off_or_is_wrong_in_one_line(monkeypatch):
    assert convolution_choice.has_choice(X, WEIGHT)
    monkeypatch.setenv("VNET_FAST_CONV", "cudnn")
    assert not convolution_choice.has_choice(X, WEIGHT)
    monkeypatch.setenv("VNET_FAST_CONV", "winograd")
    with pytest.raises(InputError, match=r"VNET_FAST_CONV: must be auto or cudnn; got winograd\. Set it"):
        convolution_choice.has_choice(X, WEIGHT)


def test_candidates_fit_and_are_few():
    for which, channels, out_channels, taps, width in itertools.product(
        ("forward", "grad_input", "grad_weight"), (1, 16, 32, 256), (2, 16, 256), (1, 5), (8, 12, 128)
    ):
        x = torch.empty(2, channels, 8, 8, width, device="meta")
        layer = convolution_choice.Layer(which, torch.bfloat16, tuple(x.shape), out_channels, (taps,) * 3)
        names = convolution_choice.candidates(layer)
        assert names[0] == "cudnn"
        assert all(REWRITES[name].fits(x, layer.kernel) for name in names)
        packed = [int(name.removeprefix("pack")) for name in names if name.startswith("pack")]
        assert all(voxels * min(channels, out_channels) <= 128 for voxels in packed)
        if taps == 1 and min(channels, out_channels) >= 8:
            assert names == ("cudnn",)


@pytest.mark.parametrize(
    ("which", "channels", "out_channels", "taps", "capability", "dtype", "expected"),
    [
        ("forward", 1, 16, 5, (8, 0), torch.bfloat16, "pack8"),
        ("grad_weight", 1, 16, 5, (9, 0), torch.bfloat16, "cudnn"),
        ("forward", 256, 256, 5, (9, 0), torch.float16, "zstack"),
        ("grad_weight", 128, 128, 5, (9, 0), torch.bfloat16, "zstack"),
        ("grad_input", 32, 32, 5, (9, 0), torch.bfloat16, "zstack"),
        ("grad_weight", 128, 128, 5, (10, 0), torch.bfloat16, "cudnn"),
        ("grad_weight", 128, 128, 5, (9, 0), torch.float32, "cudnn"),
        ("forward", 32, 2, 1, (9, 0), torch.bfloat16, "pack4"),
        ("forward", 32, 2, 1, (8, 0), torch.bfloat16, "cudnn"),
    ],
)
def test_the_table_is_of_cudnns_heuristics(which, channels, out_channels, taps, capability, dtype, expected):
    layer = convolution_choice.Layer(which, dtype, (2, channels, 8, 16, 16), out_channels, (taps,) * 3)
    assert convolution_choice.tabulated(layer, capability) == expected
    # rows that do not divide stay as they are
    odd = layer._replace(volume=(2, channels, 8, 16, 15))
    assert convolution_choice.tabulated(odd, capability) == ("cudnn" if expected.startswith("pack") else expected)


def test_choices_are_kept_apart_by_how_cudnn_is_asked(monkeypatch):
    names = set()
    for mode in ("0", "1"):
        monkeypatch.setenv("TORCH_CUDNN_USE_HEURISTIC_MODE_B", mode)
        for allowed in (False, True):
            monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
            names.add(convolution_choice._store())
    assert len(names) == 4
