"""Makes one HTML page of training runs: curves, metrics, cases, pictures."""

from dataclasses import dataclass
from pathlib import Path

from vnet_fast import command_line, plotting
from vnet_fast.command_line import option, path_text
from vnet_fast.devices import find_device, keep_freed_memory, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.evaluation.comparison import compare_pairs, require_scipy
from vnet_fast.evaluation.evaluation import evaluate
from vnet_fast.evaluation.score import read_observer
from vnet_fast.files import make_folder, write_text
from vnet_fast.reporting.html import page
from vnet_fast.reporting.sections import make_sections
from vnet_fast.reporting.subjects import read_subjects
from vnet_fast.versions import versions

PAGE = "report.html"


@dataclass(frozen=True)
class Config:
    """One HTML page of one or several runs, which needs no network: training curves, the metrics of the
    cases that a run did not train on, their distribution, and the best, median and worst of them. Given
    two runs, the same slices of both."""

    run: tuple = option(
        None, "folder of a run or of a cross-validation; again for each further one", action="append", type=path_text,
        metavar="RUN", required=True,
    )  # fmt: skip
    output: str = option(None, "folder of the page and its pictures (default: report/ in the first run's folder)",
                         type=path_text, metavar="DIR")  # fmt: skip
    regions: bool = option(
        False, "also of base and apex, the cranial and caudal thirds of the reference's slices", action="store_true"
    )
    observer: str = option(
        None, "TOML file of a second observer's means, for the challenge's score", type=path_text, metavar="FILE"
    )
    device: str = option("auto", "where the cases are predicted", choices=("auto", "cpu", "cuda"))


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    if not plotting.available():
        raise InputError("report", "matplotlib is not installed", "pip install 'vnet_fast[report]'")
    if len(config.run) > 1:
        require_scipy("--run")
    if len(config.run) > plotting.MOST:
        raise InputError("--run", f"given {len(config.run)} times, {plotting.MOST} at most", "Report fewer together")
    observer = read_observer(config.observer) if config.observer else None
    find_device(config.device)
    subjects = read_subjects(config.run, config.device)
    folder = make_folder(config.output or Path(config.run[0]) / "report", "Choose another --output")
    names, pairs = [each.name for each in subjects], [each.pairs for each in subjects]
    evaluations = evaluate(names, pairs, subjects[0].settings["binary"], config.regions, observer)
    comparisons = compare_pairs(evaluations) if len(evaluations) > 1 else []
    sections = make_sections(subjects, evaluations, comparisons, folder)
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    title = "V-Net: " + " and ".join(each.name for each in subjects)
    write_text(folder / PAGE, page(title, f"Made with {made_with}.", sections), "Choose another --output")
    print(f"report: {folder / PAGE}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.report"))
