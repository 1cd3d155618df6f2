"""Tables at the end of a run, and what `--benchmark-json` keeps: statistics and provenance, no names."""

import dataclasses

from benchmarks import floor, measure, tables
from benchmarks.provenance import provenance
from vnet_fast.devices import use_all_cores

STATISTICS = ("rounds", "min", "q1", "median", "q3", "max", "mean")


def pytest_configure():
    use_all_cores()


def pytest_benchmark_update_machine_info(config, machine_info):
    # pytest-benchmark's own has the host's name
    machine_info.clear()
    ceilings = {str(dtype).removeprefix("torch."): dataclasses.asdict(each) for dtype, each in floor.measured.items()}
    machine_info["vnet_fast"] = {**provenance(), "ceilings": ceilings}


def pytest_benchmark_update_commit_info(config, commit_info):
    for key in commit_info.keys() - {"id", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    # every single time and its settings: megabytes that nobody reads
    for benchmark in output_json["benchmarks"]:
        for key in benchmark.keys() - {"group", "name", "extra_info", "stats"}:
            del benchmark[key]
        benchmark["stats"] = {key: benchmark["stats"][key] for key in STATISTICS}
    output_json["failures"] = tables.FAILURES


def pytest_terminal_summary(terminalreporter):
    if measure.ROWS:
        about = provenance()
        terminalreporter.section("kernels")
        if not measure.ON_GPU:
            terminalreporter.line("No CUDA device: PyTorch's providers on the CPU, on smaller tensors.")
        terminalreporter.line(f"{about['device']}, torch {about['torch']}, triton {about['triton']}")
        for line in measure.table(measure.ROWS):
            terminalreporter.line(line)
    for name in dict.fromkeys(name for name, _ in tables.ROWS):
        terminalreporter.section(name)
        for line in tables.lines([cells for table, cells in tables.ROWS if table == name]):
            terminalreporter.line(line)
