"""Prints tables at the end of a run, and limits what `--benchmark-json` stores to statistics and provenance."""

import dataclasses

from benchmarks import ceilings, measure, tables
from benchmarks.provenance import provenance
from vnet_fast.devices import use_all_cores

STATISTICS = ("rounds", "min", "q1", "median", "q3", "max", "mean")


def pytest_configure():
    """Runs on as many threads as the verbs do."""
    use_all_cores()


def pytest_benchmark_update_machine_info(config, machine_info):
    """Replaces pytest-benchmark's own information, which has the host's name."""
    machine_info.clear()
    measured = {
        str(dtype).removeprefix("torch."): dataclasses.asdict(fields) for dtype, fields in ceilings.measured.items()
    }
    machine_info["vnet_fast"] = {**provenance(), "ceilings": measured}


def pytest_benchmark_update_commit_info(config, commit_info):
    """Keeps the commit, but no names of folders and branches."""
    for key in commit_info.keys() - {"id", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Leaves out every single time and the settings, which are megabytes, and adds the failures."""
    for benchmark in output_json["benchmarks"]:
        for key in benchmark.keys() - {"group", "name", "extra_info", "stats"}:
            del benchmark[key]
        benchmark["stats"] = {key: benchmark["stats"][key] for key in STATISTICS}
    output_json["failures"] = tables.FAILURES


def pytest_terminal_summary(terminalreporter):
    """Prints the tables and the machine's ceilings."""
    if measure.ROWS:
        versions = provenance()
        terminalreporter.section("kernels")
        if not measure.ON_GPU:
            terminalreporter.line("No CUDA device: PyTorch's providers on the CPU, on smaller tensors.")
        terminalreporter.line(f"{versions['device']}, torch {versions['torch']}, triton {versions['triton']}")
        for line in measure.table(measure.ROWS):
            terminalreporter.line(line)
    for name in dict.fromkeys(name for name, _ in tables.ROWS):
        terminalreporter.section(name)
        for line in tables.lines([cells for table, cells in tables.ROWS if table == name]):
            terminalreporter.line(line)
    if ceilings.measured:
        terminalreporter.section("ceilings")
    for dtype, fields in ceilings.measured.items():
        for line in ceilings.lines(dtype, fields):
            terminalreporter.line(line)
