"""Where Triton can't run, training and prediction go on by the definitions, with a line for each operation.

Triton's real launcher is compiled, or is not, on a device that does nothing (`device.py`).
"""

import re

import pytest

from tests.gpu_rehearsal import device
from tests.ops.kernels import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="there is a CUDA device")
CODE = """
import logging
import sys
import sysconfig
import {broken}
from vnet_fast import command_line, predict, train
from vnet_fast.ops import device_store, trials
{how}
trials.TRIED_ON = {{"cpu"}}
device_store.FOLDER = device_store.Path({folder!r})
def run(verb, *arguments):
    try:
        command_line.run(verb.main, command_line.parser_of(verb.Config, verb.__name__), list(arguments))
    except SystemExit as stopped:
        assert stopped.code == 0, stopped.code
run(
    train, "--data", {data!r}, "--output", {run!r}, "--volume", "16", "16", "16", "--spacing", "1.5", "1.5", "2",
    "--base-channels", "1", "--iterations", "2", "--folds", "3", "--device", "cpu", "--cache", {folder!r}
)
run(
    predict, "--checkpoint", {run!r} + "/best.pt", "--input", {data!r}, "--output", {run!r} + "/masks",
    "--device", "cpu"
)
"""
BROKEN = {
    "no compiler": ("os", "os.environ['PATH'] = ''; os.environ.pop('CC', None)", "Failed to find C compiler"),
    "no Python.h": (
        "os",
        "paths = sysconfig.get_paths; sysconfig.get_paths = lambda *a, **k: paths(*a, **k) | {'include': '/nowhere'}",
        "CalledProcessError",
    ),
    "broken Triton": (
        "triton.backends.compiler",
        "import triton.compiler.compiler as c; c.ASTSource.make_ir = lambda *a, **k: 1 / 0",
        "ZeroDivisionError",
    ),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", BROKEN)
def test_the_definitions_train_and_predict(name, cases, tmp_path):
    reason = device.missing()
    if reason:
        pytest.skip(reason)
    broken, how, message = BROKEN[name]
    run = tmp_path / "run"
    code = CODE.format(broken=broken, how=how, data=str(cases), run=str(run), folder=str(tmp_path / "kept"))
    cache = {"TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = device.Stub(tmp_path).run(code, environment=cache, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "are not used" in line]
    operations = [re.search(r"the kernels of (\w+) are not used \(", line).group(1) for line in lines]
    assert sorted(operations) == sorted(set(operations))
    assert {"add_prelu", "dice"} <= set(operations)
    assert all(message in line for line in lines), lines
    assert len(list((run / "masks").glob("*.mhd"))) == 6
    assert (run / "summary.json").exists()
