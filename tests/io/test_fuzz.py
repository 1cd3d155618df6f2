"""Thousands of damaged files: each is read as it was, as it now says, or refused with words. None is
misread in silence, none crashes the process or hangs it.
"""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# many times what a batch takes
SECONDS = 300


def outcomes(what, seed, count, folder, *reader):
    """How often each outcome came, and the lines of those that must not."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz_volumes.py"), what, str(seed), str(count), str(folder)]
    # with PYTHONPATH, because the file's own folder takes the place of the current one
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *reader], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    assert len(lines) == count
    found = collections.Counter(line.split("\t")[1] for line in lines)
    return found, [line for line in lines if line.split("\t")[1] not in ("refused", "original", "described")]


@pytest.mark.parametrize("seed", range(2))
def test_damaged_headers(tmp_path, seed):
    found, wrong = outcomes("headers", seed, 1000, tmp_path)
    assert not wrong
    # the damage is neither always seen at once nor always harmless
    assert min(found["refused"], found["original"]) > 100
    assert found["described"] > 5


def test_damaged_streams(tmp_path):
    found, wrong = outcomes("streams", 0, 500, tmp_path)
    assert not wrong
    assert found["refused"] > 400
    assert found["described"] == 0


@pytest.mark.parametrize("what", ["headers", "streams"])
def test_a_misread_would_be_seen(tmp_path, what):
    """SimpleITK alone reads some of these files wrongly, and the comparison says so."""
    found, _ = outcomes(what, 0, 150, tmp_path, "itk")
    assert found["misread"] > 0
