import json
import platform

import pytest

from benchmarks import conftest, provenance
from benchmarks.provenance import processor, without_folders


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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["model name : AMD EPYC", "cpu family : 25", "model : 17"], "AMD EPYC (family 25, model 17)"),
        (["model name : Some CPU"], "Some CPU"),
        (["Features : fp asimd"], platform.machine()),
        (None, platform.machine()),
    ],
)
def test_a_processor_has_its_family(tmp_path, monkeypatch, lines, expected):
    path = tmp_path / "cpuinfo"
    if lines is not None:
        path.write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(provenance, "CPU_INFO", path)
    assert processor() == expected
