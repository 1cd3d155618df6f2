import ctypes
import shutil

import pytest
import torch

from benchmarks import ceilings
from benchmarks.ceilings import Ceilings

# three turns of each loop from 0, and the operations of a turn: a multiplication and an addition, or two of each
LOOPS = [("float32", 1.75, 2), ("bfloat16", 3 * 2 * 2.0**-20, 4)]


@pytest.fixture
def small(monkeypatch):
    """Measurements that take no time."""
    for name, value in {"MATRICES": (32,), "VOLUME_SIDE": 4, "TRAFFIC": (2**10, 2**12), "LEAST_TRAFFIC": 2**12}.items():
        monkeypatch.setattr(ceilings, name, value)
    monkeypatch.setattr(ceilings, "TURNS", 2**10)
    monkeypatch.setattr(ceilings, "measured", {})
    monkeypatch.setattr(ceilings, "traffic_rates", ceilings.traffic_rates.__wrapped__)
    monkeypatch.setattr(ceilings, "compiled_loops", ceilings.compiled_loops.__wrapped__)


@pytest.mark.skipif(not any(map(shutil.which, ceilings.COMPILERS)), reason="no C compiler")
@pytest.mark.parametrize(("name", "expected", "each_turn"), LOOPS)
def test_a_loop_makes_the_operations_that_it_counts(name, expected, each_turn):
    """The sums are right, so the compiler has left nothing out."""
    library, note = ceilings.compiled_loops()
    assert note is None
    loop = library[f"multiply_add_{name}"]
    loop.restype, loop.argtypes = ctypes.c_double, (ctypes.c_int64, ctypes.c_void_p)
    values = (ctypes.c_float * ceilings.VALUES)()
    operations = loop(3, values)
    if name == "bfloat16" and operations == 0:
        pytest.skip("the processor has no such instruction")
    sums = [value for value in values if value]
    assert sums == [expected] * len(sums)
    assert operations == 3 * len(sums) * each_turn


@pytest.mark.usefixtures("small")
def test_the_ceiling_is_the_fastest_of_all():
    measured = ceilings.ceilings_of(torch.bfloat16)
    assert ceilings.ceilings_of(torch.bfloat16) is measured
    assert {"torch.mm, 32 x 32", "convolution, 64 channels"} < set(measured.arithmetic)
    assert measured.flops == max(measured.arithmetic.values()) == measured.arithmetic[measured.fastest]
    assert min(measured.arithmetic.values()) > 0
    assert set(measured.traffic) == {2**10, 2**12}
    assert min(measured.traffic.values()) > 0
    if not torch.cuda.is_available():
        # half precision may be computed in float32
        assert "multiply-add loop, float32" in measured.arithmetic or measured.note


@pytest.mark.usefixtures("small")
@pytest.mark.skipif(torch.cuda.is_available(), reason="loops are of CPUs")
@pytest.mark.parametrize(("compiler", "note"), [(None, "No C compiler"), ("false", "The C compiler failed (")])
def test_without_a_compiler_a_note_says_so(monkeypatch, compiler, note):
    monkeypatch.setattr(ceilings.shutil, "which", lambda name: compiler)
    measured = ceilings.ceilings_of(torch.float32)
    assert not [name for name in measured.arithmetic if "loop" in name]
    assert measured.note.startswith(note)
    assert list(ceilings.lines(torch.float32, measured))[-1].strip() == measured.note


@pytest.mark.parametrize(("nbytes", "rate"), [(1, 8), (10, 8), (99, 8), (100, 3), (10**6, 3)])
def test_small_transfers_are_as_fast_as_in_a_cache(nbytes, rate):
    assert Ceilings({"loop": 1}, {10: 4, 20: 8, 100: 3}).bandwidth(nbytes) == rate
