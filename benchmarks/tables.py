"""Rows of the tables that are printed at the end of a run and written into the README."""

import contextlib
import re

import pytest

from benchmarks.provenance import without_folders

# in the order of the run: (table, cells), and those of providers that failed
ROWS, FAILURES = [], []
LONGEST_REASON = 160


def keep(benchmark, table, cells, **more):
    """Keeps a row, printed at the end and stored with the benchmark.

    Args:
        benchmark: pytest-benchmark's fixture.
        table: the table's name.
        cells: dict from heading to a plain value, in the order of the columns.
        **more: what else is to be stored.
    """
    ROWS.append((table, cells))
    benchmark.extra_info.update(table=table, cells=cells, **more)


@contextlib.contextmanager
def failure_as_row(table, cells, column, ours=False):
    """A provider that fails in the block gets a row that says why, and the others go on.

    Args:
        table: the table's name.
        cells: the first cells of the row.
        column: the heading under which the reason stands.
        ours: whether the failure is the project's own, which must not pass.
    """
    try:
        yield
    except Exception as error:
        text = str(error).strip() or type(error).__name__
        reason = re.sub(r"\s+", " ", without_folders(text.splitlines()[0]))[:LONGEST_REASON]
        row = {**cells, column: f"failed: {reason}"}
        ROWS.append((table, row))
        FAILURES.append({"table": table, "cells": row})
        if ours:
            raise
        pytest.xfail(reason)


def stored_rows(content, table):
    """The rows of a table in what pytest-benchmark stored, the failures last."""
    stored = [benchmark["extra_info"] for benchmark in content["benchmarks"]] + content.get("failures", [])
    return [entry["cells"] for entry in stored if entry.get("table") == table]


def lines(rows):
    """Lines of a Markdown table; a cell that a row lacks is a dash."""
    headings = list(dict.fromkeys(heading for row in sorted(rows, key=len, reverse=True) for heading in row))
    numeric = {h for h in headings if any(isinstance(row.get(h), (int, float)) for row in rows)}
    yield "| " + " | ".join(headings) + " |"
    yield "| " + " | ".join("---:" if heading in numeric else "---" for heading in headings) + " |"
    for row in rows:
        yield "| " + " | ".join(shown(row.get(heading)) for heading in headings) + " |"


def shown(value):
    """A cell's text: numbers with three digits, what would break a table's line left out."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value).replace("|", "/")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
