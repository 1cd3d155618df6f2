"""The table of the kernels' benchmarks, and the provenance in `--benchmark-json`."""

from benchmarks import measure


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["vnet_fast"] = measure.provenance()


def pytest_terminal_summary(terminalreporter):
    if not measure.ROWS:
        return
    about = measure.provenance()
    terminalreporter.section("kernels")
    if not measure.ON_GPU:
        terminalreporter.line("No CUDA device: PyTorch's providers on the CPU, on smaller tensors.")
    terminalreporter.line(f"{about['device']}, torch {about['torch']}, triton {about['triton']}")
    for line in measure.table(measure.ROWS):
        terminalreporter.line(line)
