"""What was stored and then changed must be refused with one line, or read as before the change, or as it says now.

Nothing is misread silently, ends in a traceback, hangs, or takes 2 GB.
"""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("checkpoint", "cache", "config", "dataset")
# many times the duration of a batch
SECONDS = 300


def run_batch(kinds, seed, count, folder, *reader):
    """Changes and reads files: a Counter of the outcomes of each kind, and the lines of those that must not occur."""
    command = [sys.executable, "-m", "tests.run.fuzz_stored", ",".join(kinds), str(seed), str(count), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *reader], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    *lines, last = lines
    assert len(lines) == count * len(kinds)
    assert 0 <= int(last.split("\t")[1]) < 2 << 30
    outcomes = {kind: collections.Counter() for kind in kinds}
    for line in lines:
        outcomes[line.split()[0]][line.split("\t")[1]] += 1
    return outcomes, [line for line in lines if line.split("\t")[1] not in ("refused", "original", "described")]


@pytest.mark.exhaustive
def test_changed_files(tmp_path):
    count = 250
    outcomes, wrong = run_batch(KINDS, 1, count, tmp_path)
    assert not wrong
    for of_kind in outcomes.values():
        assert of_kind["refused"] > count / 3
        assert of_kind["original"] + of_kind["described"] > count / 50


@pytest.mark.exhaustive
def test_a_misread_is_detected(tmp_path):
    """PyTorch, NumPy and Python alone misread some of these files, and the comparison finds them."""
    outcomes, _ = run_batch(KINDS, 1, 150, tmp_path, "trusting")
    assert all(of_kind["misread"] > 0 for of_kind in outcomes.values())
