"""The tests are collected where packages are missing, as on a GPU machine without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# a plugin, because it must be there before tests/conftest.py
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("SimpleITK", "monai"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
# of each pair, the second imports from the first
FILES = ("verbs/test_train.py", "verbs/test_train_input.py", "nn/test_losses.py", "nn/test_weighted_cross_entropy.py")


@pytest.mark.exhaustive
def test_files_that_need_a_missing_package_are_skipped(tmp_path):
    (tmp_path / "without.py").write_text(WITHOUT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "without", "-p", "no:cacheprovider"]
    command += [f"tests/{name}" for name in FILES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 5, done.stdout
    for name in FILES:
        package = "SimpleITK" if name.startswith("verbs") else "monai"
        assert f"tests/{name}:0: {package} is not installed" in done.stdout


def test_long_files_are_there(request):
    of_all_tests = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    assert [name for name in of_all_tests.LONG_FILES if not (ROOT / "tests" / name).exists()] == []
