"""The command for the first day on a GPU: bounded, resumable, and it goes on after a part that fails."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "first_day.sh"
# stands for Python: notes its arguments, and does what the file `behaviour` says for the part
FAKE = """#!/bin/sh
# no package is there
test "$1" = -c && exit 1
echo "$*" >> "$(dirname "$0")/calls"
echo "last line"
. "$(dirname "$0")/behaviour"
"""


@pytest.fixture
def first_day(tmp_path):
    """Runs the script with a fake Python; returns the exit code, the output and the calls since the last run."""
    python = tmp_path / "python"
    python.write_text(FAKE)
    python.chmod(0o755)

    def run(*arguments, behaviour="", **variables):
        (tmp_path / "behaviour").write_text(behaviour)
        (tmp_path / "calls").write_text("")
        environment = {k: v for k, v in os.environ.items() if k not in ("DATA", "CACHE", "PART")}
        environment |= {"PYTHON": str(python), **variables}
        command = [str(SCRIPT), str(tmp_path / "results"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr, (tmp_path / "calls").read_text().splitlines()

    return run


def test_parts_that_are_done_are_skipped_and_those_that_failed_are_repeated(first_day, tmp_path):
    code, out, calls = first_day("doctor", "layers", "inference", behaviour='case "$*" in *layers*) exit 3;; esac')
    assert code == 1
    assert [line.split(":")[0] for line in out.splitlines()] == ["doctor", "layers", "inference", "failed"]
    assert "layers: exit code 3 after" in out
    assert calls[0] == "-m vnet_fast.doctor"
    assert "benchmarks/bench_layers.py --benchmark-only --benchmark-json" in calls[1]
    assert (tmp_path / "results" / "layers.log").read_text() == "last line\n"
    code, out, calls = first_day("doctor", "layers", "inference")
    assert code == 0
    assert out.splitlines()[0] == "doctor: done before"
    assert len(calls) == 1
    assert "bench_layers.py" in calls[0]


def test_a_part_that_takes_too_long_is_ended_and_the_next_begins(first_day):
    code, out, calls = first_day("tests", "doctor", behaviour='case "$*" in *gpu*) sleep 30;; esac', LIMIT="1")
    assert code == 1
    assert "tests: exit code 124" in out
    assert calls[1] == "-m vnet_fast.doctor"


def test_training_takes_the_data_and_is_resumed(first_day, tmp_path):
    behaviour = f'mkdir -p {tmp_path}/results/promise12; echo "1,0.5" > {tmp_path}/results/promise12/log.csv; '
    variables = {"DATA": "cases", "CACHE": "prepared", "TRAINING": "1"}
    code, out, calls = first_day("promise12", behaviour=behaviour + "sleep 20", **variables)
    # the time that training has is over, which is no failure
    assert code == 0, out
    assert calls == [f"-m vnet_fast.train --data cases --binary --cache prepared --output {tmp_path}/results/promise12"]
    assert out.rstrip().endswith("1,0.5")
    (tmp_path / "results" / "promise12.done").unlink()
    (tmp_path / "results" / "promise12" / "last.pt").write_bytes(b"")
    code, _, calls = first_day("promise12", behaviour=behaviour + "exit 2", **variables)
    assert code == 1
    assert calls == [f"-m vnet_fast.train --resume {tmp_path}/results/promise12"]


def test_an_unknown_part_is_one_line(first_day):
    code, out, calls = first_day("nonsense")
    assert (code, calls) == (2, [])
    assert out.startswith("error: nonsense: no such part. Choose from doctor step fast layers")
