"""Every launch, rehearsed on a device that does nothing (`device.py`): it is compiled by Triton and ptxas, and its
arguments go through Triton's launcher.
"""

import ast
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests import cores
from tests.gpu_rehearsal import configurations, device, expected

PARTS = ("steps", "operators")
# Which of the functions of a part are called for a device: all, or a share, which still has every kernel, topology,
# precision and number of channels. What Triton does depends little on the device.
SHARES = {(8, 0): 0, (9, 0): None, (10, 0): 1}
CODE = """
from tests.gpu_rehearsal import configurations, rehearse
rehearse.main(configurations.called({part!r}, {share!r}), {capability!r})
"""
KERNELS = device.ROOT / "kernels"


@pytest.fixture(scope="session")
def found(stub, known_kernels):
    """{(part, capability): what `rehearse.rehearse` returned in a process of its own}."""

    def rehearse(job):
        part, capability = job
        code = CODE.format(part=part, share=SHARES[capability], capability=capability)
        result = stub.run(code, capability, known_kernels, timeout=900)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    jobs = [(part, capability) for part in PARTS for capability in device.DEVICES]
    with ThreadPoolExecutor(min(2, cores.share())) as pool:
        return dict(zip(jobs, pool.map(rehearse, jobs), strict=True))


def those_with(found, key):
    """The entry of every process that has one."""
    return {job: result[key] for job, result in found.items() if result[key]}


def kernels_in(folder):
    """The names of the kernels that the files of a folder launch: functions of Triton that are called so."""
    return {
        node.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.decorator_list and node.name.endswith("_kernel")
    }


@pytest.mark.exhaustive
def test_everything_compiles_and_is_launched(found):
    assert those_with(found, "errors") == {}


@pytest.mark.exhaustive
def test_no_device_would_refuse_a_launch_and_no_kernel_spills(found):
    assert those_with(found, "violations") == {}


@pytest.mark.exhaustive
def test_no_step_waits_for_the_device(found):
    assert those_with(found, "waits") == {}


@pytest.mark.exhaustive
def test_every_kernel_is_launched_on_every_device(found):
    for capability in device.DEVICES:
        launched = {name for part in PARTS for row in found[part, capability]["launches"].values() for name in row}
        assert launched == kernels_in(KERNELS)


@pytest.mark.exhaustive
def test_the_launches_are_those_expected(found):
    networks = configurations.networks() + configurations.normalised_networks()
    wanted = {network.name: expected.launches_of_a_step(network) for network in networks}
    wanted |= {name: expected.launches_of_a_pass(network) for name, network in configurations.passes().items()}
    wanted |= {
        name: expected.launches_of_a_prediction(network) for name, network in configurations.predictions().items()
    }
    wanted |= {name: expected.launches_of_a_loss(case[1]) for name, case in configurations.loss_cases()}
    wanted |= dict.fromkeys(configurations.augmentations(), expected.OF_THE_BATCH)
    wanted |= dict.fromkeys(configurations.augmentations(transforms=True), expected.OF_A_TRANSFORMED_BATCH)
    wanted |= dict.fromkeys(configurations.batches_of_patches(), expected.OF_A_BATCH_OF_PATCHES)
    wanted |= dict.fromkeys(configurations.stacks(), expected.OF_A_STACK)
    seen = set()
    for result in found.values():
        seen |= result["launches"].keys()
        assert {name: row for name, row in result["launches"].items() if row != wanted[name]} == {}
    assert seen == wanted.keys()


@pytest.mark.exhaustive
def test_there_are_as_many_compilations_as_expected(found):
    kernels = {job: {row["hash"] for row in result["kernels"]} for job, result in found.items()}
    assert {job: len(hashes) for job, hashes in kernels.items()} == expected.COMPILATIONS
    assert len(set.union(*kernels.values())) >= expected.ALL_COMPILATIONS
