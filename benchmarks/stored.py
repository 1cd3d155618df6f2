"""Reads the results that `pytest benchmarks/ --benchmark-only --benchmark-json FILE` stores."""

import json
import re

from benchmarks import tables

MACHINES = ("GPU", "CPU")
PACKAGES = ("cuda", "cudnn", "triton", "monai", "openvino", "onnxruntime")
# columns that are worked out from the machine's ceilings
OF_CEILINGS = re.compile(
    r"floor, ms|TFLOP/s|times the direct limit|share of (floor|peak|its floor|a matrix product), %"
)


class ReportError(Exception):
    """A Markdown file or a result that can't be used, in one line."""


def load(folder):
    """The contents of the results in a folder, in the order of their names.

    Raises:
        ReportError: if a result is incomplete, as an interrupted run leaves it.
    """
    contents = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["benchmarks"], content["machine_info"]
        except (ValueError, KeyError, TypeError):
            raise ReportError(f"{path.name}: not the result of a finished run. Delete it, or run again") from None
        contents.append(content)
    return contents


def provenance_of(content):
    """What a result depends on; see `provenance.provenance`."""
    return content["machine_info"].get("vnet_fast", {})


def machine(content):
    """`CPU` or `GPU`."""
    return "CPU" if provenance_of(content).get("device", "CPU").startswith("CPU") else "GPU"


def title(content):
    """The name of a result's processor; for a CPU also the number of threads."""
    provenance = provenance_of(content)
    if machine(content) == "GPU":
        return provenance["device"]
    return f"{provenance['processor']}, {provenance['device'].removeprefix('CPU, ')}"


def heading(content):
    """What a result depends on, in a line."""
    provenance, commit = provenance_of(content), content.get("commit_info", {})
    items = [title(content), f"{provenance['volume']} voxels", f"torch {provenance['torch']}"]
    items += [f"{name} {provenance[name]}" for name in PACKAGES if provenance.get(name)]
    if commit.get("id"):
        items.append(f"commit {commit['id'][:10]}" + (" with changes" if commit.get("dirty") else ""))
    return ", ".join([*items, provenance["date"]])


def ceilings(content):
    """The measured ceilings of a result's machine: dict from precision to the fields of `ceilings.Ceilings`.

    It is empty if a layer or a step took less time than the ceilings allow: then they were measured too low.
    """
    measured = provenance_of(content).get("ceilings", {})
    too_low = any(value > 100 for _, value in _values_of_ceilings(content, "share"))
    # results without names of what was measured have the rate of PyTorch's product alone
    known = all("arithmetic" in fields for fields in measured.values())
    return measured if known and not too_low else {}


def lacks_ceilings(content):
    """Whether a result has columns that can't be shown because its ceilings are not known."""
    return not ceilings(content) and any(_values_of_ceilings(content))


def rows(content, table):
    """The rows of a table, without the columns that depend on ceilings unless those are known."""
    known = ceilings(content)
    return [
        {name: cell for name, cell in row.items() if known or not OF_CEILINGS.fullmatch(name)}
        for row in tables.stored_rows(content, table)
    ]


def _values_of_ceilings(content, start=""):
    """(heading, value) of every cell that depends on ceilings and whose heading has this start."""
    for benchmark in content["benchmarks"]:
        for name, value in benchmark["extra_info"].get("cells", {}).items():
            if name.startswith(start) and OF_CEILINGS.fullmatch(name):
                yield name, value
