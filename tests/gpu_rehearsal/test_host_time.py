import re

import pytest

CODE = "from tests.gpu_rehearsal import host_time\nhost_time.measure(2)"
# in a step of the paper's network: 29 stages' and steps' activations, of which 4 join a skip
CALLS = {
    "augment": 1,
    "add_prelu, forward": 25,
    "add_prelu_join, forward": 4,
    "Dice loss, forward": 1,
    "backward pass": 1,
    "update": 1,
}


@pytest.mark.exhaustive
def test_every_part_of_a_step_is_timed(stub, known_kernels):
    result = stub.run(CODE, environment=known_kernels, timeout=300)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^(.+?) +(\d+\.\d+) +(\d+) calls", result.stdout, re.MULTILINE)
    assert {name: int(calls) for name, _, calls in rows} == CALLS
    whole = float(re.search(r"^whole step +(\S+)", result.stdout, re.MULTILINE)[1])
    assert 0 < sum(float(milliseconds) for _, milliseconds, _ in rows) < whole
