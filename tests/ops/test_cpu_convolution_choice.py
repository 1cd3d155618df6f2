"""Which form of a CPU's convolution runs: the fastest that is right, kept on disk; or one by a rule."""

import pytest
import torch

from vnet_fast.errors import InputError
from vnet_fast.ops import cpu_convolution_choice as choice
from vnet_fast.ops import cpu_library, device_store
from vnet_fast.ops.convolution_choice import Layer

CPU = torch.device("cpu")
NAMES = {form: name for name, form in choice.SMALL_FORMS.items()}
# 2.1e9 operations
LARGE = Layer("forward", torch.float32, (1, 32, 8, 32, 32), 32, (5, 5, 5))
SMALL = LARGE._replace(volume=(1, 32, 8, 8, 8))


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "_met", {})
    monkeypatch.setattr(device_store, "FOLDER", tmp_path / "devices")
    monkeypatch.delenv("VNET_FAST_CPU_CONV", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only runs when a form does, for the seconds that are given for it."""
    seconds = {"direct": 0.5, "onednn": 3.0, "winograd-1": 2.0, "winograd-2": 1.0, "winograd-4": 1.5}
    now = [0.0]
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])
    return seconds, now


def runner(clock, ran, wrong=(), value=1.0, too_large=()):
    seconds, now = clock

    def run(form):
        ran.append(NAMES[form])
        if ran[-1] in too_large:
            raise torch.OutOfMemoryError("no memory")
        now[0] += seconds[ran[-1]]
        return torch.full((8,), value * (1.01 if ran[-1] in wrong else 1))

    return run


def stored():
    return device_store.load(choice._store(), CPU)


def test_the_fastest_is_kept_in_memory_and_on_disk(clock, monkeypatch):
    ran = []
    choice.compute(LARGE, runner(clock, ran))
    assert set(ran[:-1]) == set(choice.FORMS)
    assert ran[-1] == "winograd-2"
    assert ran.count("onednn") == 1
    assert stored() == {str(LARGE): "winograd-2"}
    assert choice.chosen() == [(str(LARGE), "winograd-2")]
    assert choice.summary() == "1 of 1 passes: 1 winograd-2"
    for forget in (False, True):
        if forget:
            monkeypatch.setattr(choice, "_chosen", {})
            choice._stored_names.cache_clear()
        ran.clear()
        choice.compute(LARGE, runner(clock, ran))
        assert ran == ["winograd-2"]


def test_a_form_that_memory_does_not_suffice_for_is_not_taken(clock, monkeypatch, caplog):
    monkeypatch.setattr(choice, "_has_said", False)
    ran = []
    choice.compute(LARGE, runner(clock, ran, too_large=["winograd-2"]))
    assert ran[-1] == "winograd-4"
    # another process may have more memory
    assert stored() == {}
    # less memory is free than in the trial
    for _ in range(2):
        ran.clear()
        result = choice.compute(LARGE, runner(clock, ran, too_large=["winograd-4"]))
        assert ran == ["winograd-4", "onednn"]
        assert torch.equal(result, torch.ones(8))
        assert choice.chosen() == [(str(LARGE), "onednn")]
    (message,) = caplog.messages
    assert "memory does not suffice" in message
    with pytest.raises(torch.OutOfMemoryError):
        choice.compute(LARGE, runner(clock, ran, too_large=["winograd-4", "onednn"]))


def test_a_trial_bears_that_memory_runs_short_while_a_form_is_timed(clock):
    ran = []
    results = runner(clock, ran)

    def run(form):
        # the second time
        if NAMES[form] == "winograd-2" and "winograd-2" in ran:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return results(form)

    assert choice.try_all(LARGE, run) == choice.Trial("winograd-4", False)


@pytest.mark.parametrize(
    ("seconds", "wrong", "fastest"),
    [
        ({"onednn": 0.5}, (), "onednn"),
        ({}, ("winograd-2",), "winograd-4"),
        ({}, ("winograd-1", "winograd-2", "winograd-4"), "onednn"),
        ({"winograd-4": 0.9}, (), "winograd-4"),
    ],
)
def test_a_form_that_is_slow_or_wrong_is_not_taken(clock, seconds, wrong, fastest):
    clock[0].update(seconds)
    ran = []
    choice.compute(LARGE, runner(clock, ran, wrong))
    assert ran[-1] == fastest
    assert stored() == {str(LARGE): fastest}


def test_nothing_is_kept_of_values_that_are_not_finite(clock):
    ran = []
    choice.compute(LARGE, runner(clock, ran, value=float("inf")))
    assert set(ran) == {"onednn"}
    assert not stored()
    ran.clear()
    choice.compute(LARGE, runner(clock, ran))
    assert ran[-1] == "winograd-2"


def test_other_numbers_of_threads_are_timed_anew(clock):
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            ran = []
            choice.compute(LARGE, runner(clock, ran))
            assert len(ran) > 4
    finally:
        torch.set_num_threads(before)
    assert len(list(device_store.FOLDER.glob("*/*.json"))) == 2


@pytest.mark.parametrize("reason", ["small", "winograd", "deterministic"])
def test_a_rule_decides_where_nothing_may_be_timed(clock, monkeypatch, reason):
    ran = []
    if reason == "deterministic":
        # what was timed before does not count either
        choice.compute(LARGE, runner(clock, []))
    if reason == "winograd":
        monkeypatch.setenv("VNET_FAST_CPU_CONV", "winograd")
    layer = SMALL if reason == "small" else LARGE
    try:
        torch.use_deterministic_algorithms(reason == "deterministic")
        choice.compute(layer, runner(clock, ran))
    finally:
        torch.use_deterministic_algorithms(False)
    assert ran == [choice.ruled(layer)]


def test_direct_sums_are_tried_for_small_volumes_alone(clock):
    ran = []
    # both are of 4e9 operations
    few, many = LARGE._replace(volume=(1, 256, 4, 8, 8), out_channels=256), LARGE._replace(volume=(1, 64, 8, 32, 32))
    choice.compute(few, runner(clock, ran))
    assert (choice.forms(few), ran[-1]) == (choice.SMALL_FORMS, "direct")
    ran.clear()
    choice.compute(many, runner(clock, ran))
    assert ("direct" in ran, ran[-1]) == (False, "winograd-2")


def test_the_rule_gives_a_form_that_a_pass_may_have():
    """Also of many volumes that are tiny, and of one large slice."""
    shapes = [(1, 1, 1), (2, 4, 4), (4, 4, 4), (2, 8, 8), (2, 16, 16), (4, 8, 8), (8, 8, 8), (1, 64, 64)]
    for which in ("prediction", "forward", "grad_input", "grad_weight"):
        for volumes in (1, 8, 64):
            for channels in (1, 4, 8, 64, 256):
                for shape in shapes:
                    for taps in (3, 5):
                        layer = Layer(which, torch.float32, (volumes, channels, *shape), 64, (taps,) * 3)
                        assert choice.ruled(layer) in choice.forms(layer), layer


def test_what_was_timed_of_other_sources_does_not_count(clock, monkeypatch):
    ran = []
    choice.compute(LARGE, runner(clock, ran))
    monkeypatch.setattr(choice, "_chosen", {})
    monkeypatch.setattr(choice, "digest", lambda: "another")
    count = len(ran)
    choice.compute(LARGE, runner(clock, ran))
    assert len(ran) == 2 * count > 2


@pytest.mark.parametrize(
    ("which", "volume", "form"),
    [
        ("forward", (1, 8, 4, 4, 8), "direct"),
        ("grad_input", (1, 8, 8, 8, 8), "direct"),
        ("grad_weight", (1, 8, 8, 8, 10), "winograd-1"),
        ("grad_weight", (2, 8, 8, 8, 8), "winograd-4"),
        ("forward", (1, 8, 16, 16, 16), "winograd-4"),
        ("forward", (1, 8, 2, 32, 32), "winograd-1"),
        ("forward", (1, 1, 16, 16, 16), "direct"),
        # the transformed weight is kept
        ("prediction", (1, 8, 4, 4, 8), "winograd-4"),
        ("prediction", (4, 8, 4, 4, 3), "direct"),
        ("prediction", (1, 8, 2, 8, 8), "direct"),
        ("prediction", (1, 8, 2, 16, 16), "winograd-1"),
    ],
)
def test_the_rule(which, volume, form):
    assert choice.ruled(Layer(which, torch.float32, volume, 8, (5, 5, 5))) == form


@pytest.mark.parametrize(
    ("which", "volume", "channels", "form"),
    [
        ("forward", (1, 8, 4, 8, 8), 8, "direct"),
        ("grad_input", (2, 32, 4, 8, 8), 64, "direct"),
        ("grad_weight", (2, 32, 4, 8, 8), 64, "direct"),
        ("forward", (2, 32, 8, 8, 8), 32, "winograd-1"),
        ("grad_input", (2, 64, 8, 12, 12), 64, "winograd-1"),
        ("grad_weight", (2, 8, 16, 24, 24), 8, "winograd-4"),
        ("grad_weight", (2, 8, 2, 96, 96), 8, "winograd-1"),
        ("forward", (2, 1, 16, 24, 24), 8, "direct"),
        ("forward", (2, 4, 16, 24, 24), 8, "onednn"),
        ("grad_weight", (2, 4, 16, 24, 24), 8, "direct"),
        ("prediction", (1, 128, 4, 8, 8), 128, "winograd-1"),
        ("prediction", (1, 128, 4, 4, 3), 128, "direct"),
        ("prediction", (1, 64, 8, 16, 16), 64, "winograd-2"),
        ("prediction", (1, 16, 32, 32, 32), 16, "winograd-4"),
        ("prediction", (1, 16, 2, 96, 96), 16, "winograd-1"),
    ],
)
def test_the_rule_of_small_filters(which, volume, channels, form):
    assert choice.ruled(Layer(which, torch.float32, volume, channels, (3, 3, 3))) == form


def test_another_value_of_the_variable_is_refused(monkeypatch):
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "fast")
    message = r"VNET_FAST_CPU_CONV: must be auto, winograd, onednn; got fast\. Set it to one of them, or unset it"
    with pytest.raises(InputError, match=message):
        choice.description(CPU)


def test_the_log_says_which_runs(monkeypatch):
    monkeypatch.setattr(cpu_library, "target", lambda: "avx2")
    monkeypatch.setattr(cpu_library, "library", lambda: object())
    assert choice.description(CPU) == ", convolutions by the kernels for AVX2"
    monkeypatch.setattr(cpu_library, "library", lambda: None)
    assert choice.description(CPU) == ", convolutions by oneDNN"
    monkeypatch.setenv("VNET_FAST_CPU_CONV", "onednn")
    assert choice.description(CPU) == ", convolutions by oneDNN"
    assert choice.description(torch.device("cuda")) == ""


def test_without_a_home_nothing_is_stored(monkeypatch):
    """As for services, and in containers with a user that the system does not know."""

    class Homeless:
        def expanduser(self):
            raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(choice.device_store, "FOLDER", Homeless())
    assert choice._stored(LARGE) is None
