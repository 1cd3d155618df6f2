"""A script that trains with worker processes, which run the script again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interface.conftest import TINY
from vnet_fast import Trainer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "from vnet_fast import Trainer\nTrainer(**{options!r}).run()\n"


def test_workers_run_no_trainer(monkeypatch, tmp_path, capsys):
    import multiprocessing

    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    for call in (Trainer(output=tmp_path / "run", **TINY).run, Trainer(data=tmp_path, **TINY).check):
        with pytest.raises(SystemExit, match="if __name__ == '__main__':"):
            call()
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_a_script_without_a_guard_ends_with_an_error(cases, tmp_path):
    options = {**TINY, "volume": (32, 32, 32), "data": str(cases), "output": str(tmp_path / "run")}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(options={**options, "iterations": 2, "workers": 2}))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("vnet_fast.errors.InputError: --workers: ")
    assert "if __name__ == '__main__':" in last
    assert ended.stderr.count("Traceback") == 1
