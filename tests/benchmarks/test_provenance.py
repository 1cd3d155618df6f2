import json
import platform

from benchmarks import conftest
from benchmarks.provenance import without_folders


def test_no_folder_of_the_machine_is_kept():
    command = "pytest benchmarks/ --benchmark-json=/home/somebody/a/gpu.json /tmp/x ../here/y"
    assert without_folders(command) == "pytest benchmarks/ --benchmark-json=gpu.json x ../here/y"


def test_no_name_of_the_machine_is_kept():
    machine_info = {"node": "somewhere", "cpu": {}}
    conftest.pytest_benchmark_update_machine_info(None, machine_info)
    assert set(machine_info) == {"vnet_fast"}
    assert platform.node() not in json.dumps(machine_info)
    commit_info = {"id": "ab", "dirty": False, "project": "folder", "branch": "mine"}
    conftest.pytest_benchmark_update_commit_info(None, commit_info)
    assert commit_info == {"id": "ab", "dirty": False}
