"""Compares predicted masks with reference masks."""

import json
import math
from dataclasses import dataclass

import numpy as np

from vnet_fast import command_line, dataset, volumes
from vnet_fast.command_line import option, path_text
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import write_text
from vnet_fast.metrics import dice, hausdorff_distance

METRICS = ("dice", "hausdorff_mm")


@dataclass(frozen=True)
class Config:
    """Dice and Hausdorff distance of predicted masks, for each case and class."""

    predictions: str = option(None, "folder of predicted masks", type=path_text, metavar="DIR", required=True)
    labels: str = option(
        None, "folder of reference masks, alone or beside their volumes", type=path_text, metavar="DIR", required=True
    )
    output: str = option(None, "writes the report as JSON", type=path_text, metavar="FILE")
    binary: bool = option(False, "all labels are one foreground", action="store_true")


def compare(prediction_path, reference_path, binary=False):
    """The metrics of one case.

    Returns:
        dict from each label that one of the two has, 1 and up, to a dict from metric to value.

    Raises:
        InputError: if a file can't be read or the two are not on the same grid.
    """
    reference = volumes.read_mask(reference_path)
    prediction = volumes.read_mask(prediction_path, reference, reference_path)
    spacing = volumes.Grid.of(reference).spacing
    a, b = (np.array(volumes.sitk.GetArrayViewFromImage(mask)) for mask in (prediction, reference))
    if binary:
        a, b = (a > 0).astype(np.uint8), (b > 0).astype(np.uint8)
    labels = sorted({*np.unique(a).tolist(), *np.unique(b).tolist()} - {0})
    return {
        label: {
            "dice": dice(a == label, b == label),
            "hausdorff_mm": hausdorff_distance(a == label, b == label, spacing),
        }
        for label in labels
    }


def fill_absent(cases):
    """Gives every case every label that any case has: where neither mask has it, they agree."""
    labels = sorted({label for case in cases.values() for label in case}) or [1]
    return {
        name: {label: case.get(label, {"dice": 1.0, "hausdorff_mm": 0.0}) for label in labels}
        for name, case in cases.items()
    }


def summarise(cases):
    """Mean and standard deviation of each class and metric over the cases where it is finite.

    Args:
        cases: dict from case to what `compare` returned, filled by `fill_absent`.

    Returns:
        dict from label to metric to dict of `mean`, `standard_deviation`, `cases`.
    """
    summary = {}
    for label in sorted({label for case in cases.values() for label in case}):
        summary[label] = {}
        for metric in METRICS:
            values = [case[label][metric] for case in cases.values()]
            values = [value for value in values if math.isfinite(value)]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            mean = float(np.mean(values)) if values else math.nan
            summary[label][metric] = {"mean": mean, "standard_deviation": deviation, "cases": len(values)}
    return summary


def table(cases, summary):
    """The report as lines of text."""
    width = max(len("mean ± SD"), *(len(name) for name in cases))
    lines = [f"{'case':{width}}  class      Dice  Hausdorff mm"]
    for name, classes in cases.items():
        for label, values in classes.items():
            distance = f"{values['hausdorff_mm']:.2f}" if math.isfinite(values["hausdorff_mm"]) else "one is empty"
            lines.append(f"{name:{width}}  {label:5}  {values['dice']:8.4f}  {distance:>12}")
    for label, values in summary.items():
        a, b = values["dice"], values["hausdorff_mm"]
        lines.append(
            f"{'mean ± SD':{width}}  {label:5}  {a['mean']:.4f} ± {a['standard_deviation']:.4f}  "
            f"{b['mean']:.2f} ± {b['standard_deviation']:.2f} mm ({a['cases']} cases"
            + (f", distance of {b['cases']})" if b["cases"] != a["cases"] else ")")
        )
    return lines


def _finite(value):
    """The same structure with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(report, path):
    """Writes JSON beside its place and renames it."""
    try:
        write_text(path, json.dumps(_finite(report), indent=2) + "\n")
    except OSError as error:
        raise InputError(path, f"can't be written ({error.strerror})", "Choose another --output") from None


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    pairs, unpredicted = dataset.pair_masks(config.predictions, config.labels)
    cases, errors = {}, []
    for name, prediction, reference in pairs:
        try:
            cases[name] = compare(prediction, reference, config.binary)
        except InputError as error:
            errors.append(error)
    if errors:
        raise InputErrors(errors)
    cases = fill_absent(cases)
    summary = summarise(cases)
    print("\n".join(table(cases, summary)))
    if unpredicted:
        print(f"{unpredicted} more reference masks have no prediction")
    if config.output:
        write_report({"cases": cases, "summary": summary}, config.output)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.evaluate"))
