"""One training step on a device that does nothing: its launches, and the machine code of its kernels."""

import json

import pytest

from tests.gpu_rehearsal import configurations, expected
from tests.ops.test_kernel_compilation import narrow

pytestmark = pytest.mark.exhaustive
NETWORK = configurations.Network("paper", "bf16")
CODE = """
from tests.gpu_rehearsal import configurations, rehearse
network = configurations.Network("paper", "bf16")
rehearse.main({network.name: lambda: configurations.train(network)}, (9, 0), disassembled=True)
"""


@pytest.fixture(scope="module")
def found(stub):
    result = stub.run(CODE, timeout=300)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_it_launches_what_is_expected(found):
    assert found["errors"] == {}
    assert found["launches"] == {NETWORK.name: expected.launches_of_a_step(NETWORK)}


def test_it_does_not_wait_for_the_device(found):
    assert found["waits"] == {}


def test_no_kernel_spills_and_no_launch_is_refused(found):
    assert found["violations"] == []
    assert [row for row in found["kernels"] if row["spills"]] == []


def test_tensors_are_read_and_written_16_bytes_at_a_time(found):
    assert narrow([row | {"name": row["name"].strip("_")} for row in found["kernels"]]) == []
