"""No kernel reads or writes outside of its tensors, on ragged shapes in Triton's interpreter (`guarded.py`)."""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tests import cores
from tests.gpu_rehearsal import guarded
from tests.gpu_rehearsal.device import ROOT

MODULES = (
    "add_prelu", "norm_prelu", "norm_prelu_sums", "partial_sums", "dice", "dice_blocks", "augment", "transform",
    "patches", "sgd", "adamw", "convolution",
)  # fmt: skip
# a load and a store of kernels that every step launches
SOME_MASKS = [("dice_blocks", "tl.load(pointer + offset"), ("add_prelu", "tl.store(y_ptr")]
# Without their masks these stay within the tensor, where they meet another sum. Tests of the sums find it.
WITHIN = {
    ("add_prelu", "tl.store(partials_ptr + partial, grad_slope"),
    ("dice", "tl.store(partial_ptr + stride"),
    ("dice", "tl.store(partial_ptr + 3 * stride, first"),
    ("dice", "tl.load(grad_sums_ptr + stride"),
}
PRELUDE = f"""\
import json, torch
torch.set_num_threads(1)
from tests.gpu_rehearsal import guarded, guarded_cases
from tests.ops import interpreter
# each case is forked from this process: without this line it would load Triton and prepare its functions itself
guarded.prepare({MODULES})
"""


def run(code):
    """What an expression is in a process that interprets kernels."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"{PRELUDE}with interpreter.quick(): print(json.dumps({code}))"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def outcomes():
    """{case: outcome} of all cases, which two processes share."""

    def outcomes_of(part):
        cases = f"[case for module in {MODULES} for case in guarded_cases.cases_of(module).items()][{part}::2]"
        return run(f"{{' at the '.join(key): value for key, value in guarded.outcomes(dict({cases})).items()}}")

    with ThreadPoolExecutor(min(2, cores.share())) as pool:
        first, second = pool.map(outcomes_of, range(2))
    assert not first.keys() & second.keys()
    return first | second


def without_masks(accesses):
    """[(module, source, outcome)] of all cases of a module without the mask of an access, (module, index)."""

    def outcomes_of(part):
        return run(f"[guarded.outcome_without_mask(module, i, guarded_cases.cases_of(module)) for module, i in {part}]")

    # two processes share them
    parts = accesses[::2], accesses[1::2]
    with ThreadPoolExecutor(min(2, cores.share())) as pool:
        found = list(pool.map(outcomes_of, parts))
    return [
        (module, guarded.masked_accesses(module)[index][1], outcome)
        for part, of_part in zip(parts, found, strict=True)
        for (module, index), outcome in zip(part, of_part, strict=True)
    ]


def kind_of(source):
    """What an outcome says of a load or a store outside of its tensor."""
    return f"a kernel {'wrote' if source.startswith('tl.store') else 'read'} memory outside of its tensors"


@pytest.mark.exhaustive
def test_no_kernel_leaves_its_tensors():
    found = outcomes()
    assert len(found) >= 2 * len(MODULES)
    assert {name: outcome for name, outcome in found.items() if outcome != "passed"} == {}


@pytest.mark.exhaustive
def test_every_missing_mask_is_found():
    accesses = [(module, i) for module in MODULES for i in range(len(guarded.masked_accesses(module)))]
    masked = {path.stem for path in guarded.KERNELS.glob("*.py") if guarded.masked_accesses(path.stem)}
    assert masked == {module for module in MODULES if guarded.masked_accesses(module)}
    found = without_masks(accesses)
    unseen = {(module, source) for module, source, outcome in found if outcome == "passed"}
    assert {(module, start) for module, start in WITHIN for seen in unseen if seen[1].startswith(start)} == WITHIN
    assert len(unseen) == len(WITHIN)
    for module, start in SOME_MASKS:
        (outcome,) = (outcome for name, source, outcome in found if name == module and source.startswith(start))
        assert outcome.startswith(kind_of(start))


def test_writes_beside_a_tensor_are_found():
    """Within the pages of a tensor, where nothing ends the process."""
    with guarded.GuardedMemory("end") as memory:
        tensor = torch.ones(3)
    memory.check()
    ctypes.c_int.from_address(tensor.data_ptr() - 4).value = 0
    with pytest.raises(AssertionError, match="wrote beside a tensor"):
        memory.check()
