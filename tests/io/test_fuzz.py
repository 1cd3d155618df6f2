"""Damaged files must be refused with a message, or read as before the damage, or as they are after it.

None is misread silently, and none crashes the process or hangs it.
"""

import collections
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# many times the duration of a batch
SECONDS = 300


def run_batch(target, seed, count, folder, *reader, module="fuzz_volumes"):
    """Damages and reads files: a Counter of the outcomes, and the lines of those that must not occur."""
    command = [sys.executable, "-m", f"tests.io.{module}", target, str(seed), str(count), str(folder), *reader]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (done.returncode, lines[-1:], done.stderr[-2000:])
    assert len(lines) == count
    outcomes = collections.Counter(line.split("\t")[1] for line in lines)
    return outcomes, [line for line in lines if line.split("\t")[1] not in ("refused", "original", "described")]


@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 110), pytest.param(1, 1000, marks=pytest.mark.exhaustive)],
)
def test_damaged_headers(tmp_path, seed, count):
    outcomes, wrong = run_batch("headers", seed, count, tmp_path)
    assert not wrong
    # some damage is noticed, some is harmless, some changes what the file states
    assert min(outcomes["refused"], outcomes["original"]) > count / 10
    assert outcomes["described"] > count / 200


@pytest.mark.exhaustive
def test_damaged_streams(tmp_path):
    count = 500
    outcomes, wrong = run_batch("streams", 0, count, tmp_path)
    assert not wrong
    assert outcomes["refused"] > 0.8 * count
    assert outcomes["described"] == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["elements", "places"])
def test_damaged_segmentations(tmp_path, kind):
    count = 1500
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    outcomes, wrong = run_batch(kind, 0, count, tmp_path, module="fuzz_segmentations")
    assert not wrong
    assert min(outcomes["refused"], outcomes["original"]) > count / 10


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", ["headers", "streams"])
def test_a_misread_is_detected(tmp_path, target):
    """SimpleITK alone misreads some of these files, and the comparison finds them."""
    outcomes, _ = run_batch(target, 0, 150, tmp_path, "itk")
    assert outcomes["misread"] > 0
