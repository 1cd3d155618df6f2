"""Makes one HTML page of training runs: curves, metrics, cases, pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vnet_fast import command_line, plotting
from vnet_fast.command_line import option, path_text
from vnet_fast.data.classes import Classes
from vnet_fast.devices import find_device, use_all_cores
from vnet_fast.errors import InputError
from vnet_fast.evaluation.comparison import compare_pairs
from vnet_fast.evaluation.evaluation import evaluate
from vnet_fast.evaluation.probabilities import calibrate
from vnet_fast.evaluation.score import read_observer
from vnet_fast.files import make_folder, write_text
from vnet_fast.host_memory import keep_freed_memory
from vnet_fast.reporting.html import page
from vnet_fast.reporting.sections import make_sections
from vnet_fast.reporting.subjects import read_subjects
from vnet_fast.run.configuration import stored_config
from vnet_fast.versions import versions

PAGE = "report.html"


@dataclass(frozen=True)
class Config:
    """Make one HTML page of one or several runs: training curves, the metrics of the cases that a run did not train
    on, and pictures of the best, median and worst case. Several runs are compared with a paired test. The page
    needs no network."""

    run: tuple[str, ...] = option(
        None, "folder of a run or of a cross-validation; repeat --run to compare several", action="append",
        type=path_text, metavar="RUN", required=True,
    )  # fmt: skip
    output: str | None = option(
        None, "folder of the page and its pictures (default: report/ in the first run's folder)", type=path_text,
        metavar="DIR",
    )  # fmt: skip
    regions: bool = option(
        False, "also measure base and apex, the cranial and caudal thirds of the reference's slices",
        action="store_true",
    )  # fmt: skip
    observer: str | None = option(
        None, "TOML file with a second observer's means, for the challenge's score", type=path_text, metavar="FILE"
    )
    calibration: bool = option(
        False, "also show the calibration of the probabilities; cases without stored probabilities are predicted again",
        action="store_true",
    )  # fmt: skip
    device: str = option("auto", "device to predict on", choices=("auto", "cpu", "cuda"))

    def check(self) -> None:
        """Checks the options before anything is predicted; raises an InputError."""
        if not plotting.available():
            raise InputError("report", "matplotlib is not installed", "pip install 'vnet_fast[report]'")
        if len(self.run) > plotting.MAX_SERIES:
            cause = f"given {len(self.run)} times, but a page shows at most {plotting.MAX_SERIES} runs"
            raise InputError("--run", cause, "Report fewer of them together")


def main(given: dict[str, Any]) -> int:
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    config.check()
    observer = read_observer(config.observer) if config.observer else None
    find_device(config.device)
    subjects = read_subjects(config.run, config.device, config.calibration)
    folder = make_folder(config.output or Path(config.run[0]) / "report", "Choose another --output")
    names, pairs = [subject.name for subject in subjects], [subject.pairs for subject in subjects]
    config_of_run = stored_config(config.run[0])
    classes = Classes.of(config_of_run) if config_of_run.data else Classes(config_of_run.binary)
    classes = classes.named_by(reference for _, _, reference in pairs[0])
    # a class that the runs know may be in none of the masks that they held out
    known = range(1, 1 + max(len(subject.summary.get("classes", ())) for subject in subjects))
    evaluations = evaluate(
        names, pairs, classes.binary, config.regions, observer, classes.names, known, classes.regions, classes.ignored
    )
    if config.calibration:
        calibrate(evaluations, pairs, classes.binary, classes.regions, classes.ignored)
    comparisons = compare_pairs(evaluations) if len(evaluations) > 1 else []
    sections = make_sections(subjects, evaluations, comparisons, folder, classes.regions)
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    title = "V-Net: " + " and ".join(names)
    write_text(folder / PAGE, page(title, f"Made with {made_with}.", sections), "Choose another --output")
    print(f"report: {folder / PAGE}")
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.report"))
