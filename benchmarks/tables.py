"""The rows of the tables that a run prints at its end and stores, and their Markdown."""

import contextlib
import re

import pytest

from benchmarks.provenance import without_folders

# (table, cells) in the order of the run, and the failures among them as they are stored
ROWS, FAILURES = [], []
LONGEST_REASON = 160
FAILED = "failed: "


def keep(benchmark, table, cells, **details):
    """Keeps a row to print it at the end and to store it with the benchmark.

    Args:
        benchmark: pytest-benchmark's fixture.
        table: the table's name.
        cells: dict from heading to a plain value, in the order of the columns.
        **details: stored beside the row.
    """
    ROWS.append((table, cells))
    benchmark.extra_info.update(table=table, cells=cells, **details)


@contextlib.contextmanager
def failure_as_row(table, cells, column, ours=False):
    """Keeps the reason of a failure in the block as a row, so that the other benchmarks go on.

    Args:
        table: the table's name.
        cells: the first cells of the row.
        column: the heading under which the reason stands.
        ours: whether the failure is the project's own, which must not pass.
    """
    try:
        yield
    except Exception as error:
        message = str(error).strip() or type(error).__name__
        reason = re.sub(r"\s+", " ", without_folders(message.splitlines()[0]))[:LONGEST_REASON]
        row = {**cells, column: FAILED + reason}
        ROWS.append((table, row))
        FAILURES.append({"table": table, "cells": row})
        if ours:
            raise
        pytest.xfail(reason)


def stored_rows(content, table):
    """The rows of a table in a result that pytest-benchmark stored, the failures last."""
    stored = [benchmark["extra_info"] for benchmark in content["benchmarks"]] + content.get("failures", [])
    return [entry["cells"] for entry in stored if entry.get("table") == table]


def lines(rows):
    """Lines of Markdown: a table of the rows that were measured, and a line for each reason of a failure."""
    measured = [row for row in rows if reason_of(row) is None]
    failures = list(_failure_lines([row for row in rows if reason_of(row) is not None]))
    if measured:
        yield from _table_lines(measured)
    if measured and failures:
        yield ""
    yield from failures


def reason_of(row):
    """Why a row's provider failed, or None if it was measured."""
    return next((cell.removeprefix(FAILED) for cell in row.values() if str(cell).startswith(FAILED)), None)


def _table_lines(rows):
    """Lines of a Markdown table; a cell that a row lacks is a dash."""
    headings = list(dict.fromkeys(heading for row in sorted(rows, key=len, reverse=True) for heading in row))
    numeric = {h for h in headings if any(isinstance(row.get(h), (int, float)) for row in rows)}
    yield "| " + " | ".join(headings) + " |"
    yield "| " + " | ".join("---:" if heading in numeric else "---" for heading in headings) + " |"
    for row in rows:
        yield "| " + " | ".join(shown(row.get(heading)) for heading in headings) + " |"


def _failure_lines(rows):
    """A list item for each reason, which names the rows that failed for it, batch by batch."""
    names = {}
    for row in rows:
        texts = [shown(cell) for cell in row.values() if isinstance(cell, str) and not cell.startswith(FAILED)]
        names.setdefault(reason_of(row), {}).setdefault(row.get("batch"), []).append(", ".join(texts))
    for reason, names_by_batch in names.items():
        lists = [
            (": " if batch is None else f". Batch of {batch}: ") + "; ".join(batch_names)
            for batch, batch_names in names_by_batch.items()
        ]
        yield f"- Failed, {shown(reason)}{''.join(lists)}."


def shown(value):
    """The text of a cell: numbers with three digits, and no character that would end the cell."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value).replace("|", "/")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}"
