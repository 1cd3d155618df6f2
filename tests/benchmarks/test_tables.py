import pytest

from benchmarks import tables


def test_a_failure_becomes_a_row_and_ours_does_not_pass(monkeypatch):
    rows, failures = [], []
    monkeypatch.setattr(tables, "ROWS", rows)
    monkeypatch.setattr(tables, "FAILURES", failures)
    with pytest.raises(pytest.xfail.Exception), tables.failure_as_row("step", {"provider": "theirs"}, "ms"):
        raise RuntimeError("no kernel in /home/somebody/code.py\nmore")
    with pytest.raises(ValueError, match="wrong"), tables.failure_as_row("step", {"provider": "ours"}, "ms", ours=True):
        raise ValueError("wrong")
    assert rows[0] == ("step", {"provider": "theirs", "ms": "failed: no kernel in code.py"})
    assert failures[1] == {"table": "step", "cells": {"provider": "ours", "ms": "failed: wrong"}}


MEASURED = {"batch": 1, "provider": "ours", "ms": 12.34}


def failed(provider, reason, batch=1):
    return {"batch": batch, "provider": provider, "ms": f"failed: {reason}"}


def test_failures_stand_below_the_table_by_reason():
    rows = [failed("a", "no memory"), MEASURED, failed("b, AMP", "nan|inf"), failed("c", "no memory")]
    rows.append(failed("a", "no memory", batch=2))
    assert list(tables.lines(rows)) == [
        "| batch | provider | ms |",
        "| ---: | --- | ---: |",
        "| 1 | ours | 12.3 |",
        "",
        "- Failed, no memory. Batch of 1: a; c. Batch of 2: a.",
        "- Failed, nan/inf. Batch of 1: b, AMP.",
    ]


def test_a_table_of_failures_alone_is_a_line():
    row = {"layer": "1→16", "in the network": 3, "pass": "forward", "time, µs": "failed: wrong"}
    assert list(tables.lines([row, {**row, "pass": "weight gradient"}])) == [
        "- Failed, wrong: 1→16, forward; 1→16, weight gradient."
    ]
    assert list(tables.lines([MEASURED]))[-1] == "| 1 | ours | 12.3 |"
