"""One training step on a device that does nothing: its launches, and the machine code of its kernels."""

import base64
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
def found(stub, tmp_path_factory):
    # compiled here, known or not
    own_cache = {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    result = stub.run(CODE, environment=own_cache, timeout=300)
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


def test_what_is_known_of_kernels_is_what_they_are_compiled_to(found):
    from tests.gpu_rehearsal.known_kernels import LENGTH, known

    compared = 0
    for row in found["kernels"]:
        key = base64.b32encode(bytes.fromhex(row["hash"])).decode()[:LENGTH]
        if key not in known()["kernels"]:
            # of another version of Triton, or changed since
            continue
        _, shared, code = known()["kernels"][key]
        assert {name: row[name] for name in code} == code, row["name"]
        assert row["shared"] == shared
        compared += 1
    if not compared:
        pytest.skip("none of these kernels is known: python -m tests.gpu_rehearsal.known_kernels")
