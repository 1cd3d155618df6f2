"""The quicker interpreter computes what Triton's own computes, and leaves Triton's language as it was."""

import pytest
import torch

from tests.ops.interpreter import quick
from tests.ops.kernels import INTERPRETED

triton = pytest.importorskip("triton", reason="Triton is not installed")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="Triton's interpreter is off where there is a CUDA device")


@triton.jit
def _product(left, right):
    return left * right


@triton.jit
def _sum_kernel(x_ptr, y_ptr, factor: tl.constexpr):
    index = tl.arange(0, 4)
    x = _product(tl.load(x_ptr + index), factor)
    tl.store(y_ptr + index, x + tl.sum(x, axis=0))


@triton.jit
def _failing_kernel(x_ptr):
    tl.store(x_ptr, no_such_name)  # noqa: F821


@pytest.mark.parametrize("factor", [2, -3])
def test_it_computes_the_same(factor):
    x, y = torch.arange(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    before = tl.sum, tl.load, tl.arange
    with quick():
        _sum_kernel[(1,)](x, y, factor)
    assert y.tolist() == [factor * number + factor * 6 for number in range(4)]
    assert (tl.sum, tl.load, tl.arange) == before


def test_a_launch_that_fails_leaves_the_next_as_it_was():
    with quick():
        with pytest.raises(Exception, match="no_such_name"):
            _failing_kernel[(1,)](torch.zeros(1))
        test_it_computes_the_same(5)


def test_members_are_replaced_once_in_a_launch(monkeypatch):
    from triton.runtime import interpreter

    calls, original = [], interpreter._patch_lang
    monkeypatch.setattr(interpreter, "_patch_lang", lambda function: calls.append(function) or original(function))
    with quick():
        x = torch.zeros(4, dtype=torch.int32)
        _sum_kernel[(3,)](x, x, 1)
    # for the functions of this file, and for those of Triton's `sum`
    assert [function.__module__ for function in calls] == [__name__, "triton.language.standard"]
