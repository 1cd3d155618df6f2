import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vnet_fast

ROOT = Path(__file__).resolve().parents[1]


def python(code, folder, **environment):
    path = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **path, **environment},
        capture_output=True,
        text=True,
    )


def test_public_names():
    assert sorted(vnet_fast.__all__) == ["DiceLoss", "VNet", "WeightedCrossEntropy", "__version__"]
    assert all(hasattr(vnet_fast, name) for name in vnet_fast.__all__)


@pytest.mark.parametrize("absent", ["SimpleITK", "triton", "matplotlib", "tensorboard"])
def test_imports_without(absent, tmp_path):
    code = (
        f"import sys; sys.modules[{absent!r}] = None; import torch, vnet_fast; "
        "loss = vnet_fast.DiceLoss.paper()(vnet_fast.VNet(base_channels=1)(torch.zeros(1, 1, 16, 16, 16)), "
        "torch.ones(1, 1, 16, 16, 16)); assert loss.isfinite()"
    )
    result = python(code, tmp_path)
    assert result.returncode == 0, result.stderr


def test_kernels_belong_to_the_package(tmp_path):
    for folder in (ROOT, tmp_path):
        result = python("import vnet_fast.kernels as k; print(list(k.__path__))", folder)
        assert result.returncode == 0, result.stderr
        assert "kernels" in result.stdout


def test_verbs_run_from_elsewhere(tmp_path):
    for verb in ("train", "predict", "evaluate"):
        result = subprocess.run(
            [sys.executable, "-m", f"vnet_fast.{verb}", "--help"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert f"usage: python -m vnet_fast.{verb}" in result.stdout


def test_tested_versions_are_allowed():
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {"torch", "triton", "numpy", "SimpleITK", "tqdm", "monai", "pytest", "ruff"} <= pinned.keys()
    assert torch.__version__.startswith(pinned["torch"]) or torch.cuda.is_available()
    assert "torch>=2.8,!=2.9.*" in project["dependencies"]


def test_readme_commands_are_those_of_ci():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (python -m venv .*)$", readme, re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("python -m vnet_fast.train --amp")
    assert commands[1].endswith("python -m pytest")


def test_the_table_of_kernels_is_made_from_the_results(tmp_path):
    from benchmarks import report
    from benchmarks.measure import Row

    assert report.section(tmp_path) == "Not measured yet on a GPU.\n"
    row = Row("Dice forward", "vnet_fast", 2e-4, 1e-5, 10_000_000, 4_000_000)
    copy = Row("Dice forward", "copy", 1e-4, 8e-6, 10_000_000, 0)
    about = {"device": "Some GPU", "torch": "2", "triton": "3", "kernels": {"dice.py": "ab"}}
    content = {
        "machine_info": {"vnet_fast": about},
        "benchmarks": [{"extra_info": {"row": dataclasses.asdict(r)}} for r in (row, copy)],
    }
    (tmp_path / "kernels.json").write_text(json.dumps(content))
    section = report.section(tmp_path)
    assert "Some GPU, torch 2, Triton 3 (dice.py ab)" in section
    assert "| Dice forward | vnet_fast | 200 | 10.0 | 1000 | 80 % | 4.0 |" in section


def test_readme_shows_what_the_results_say():
    from benchmarks import report

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition(report.BEGIN)[2].partition(report.END)[0]
    assert shown.strip() == report.section(ROOT / "benchmarks" / "results").strip()
