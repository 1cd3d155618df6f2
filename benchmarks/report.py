"""Writes the README's tables and the picture of a step from `benchmarks/results/*.json`.

    python benchmarks/report.py

The files are those of `pytest benchmarks/ --benchmark-only --benchmark-json FILE`, of a CPU or a GPU.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import picture, tables  # noqa: E402
from benchmarks.measure import Row, table  # noqa: E402

MARKERS = "<!-- {}: begin -->", "<!-- {}: end -->"
BEGIN, END = (marker.format("kernels") for marker in MARKERS)
NOTHING = "Not measured yet on a {}."
MACHINES = ("GPU", "CPU")
# the tables of each section, with a line above each where there are several
SECTIONS = {
    "step": {"step": None},
    "layers": {"layers": None},
    "pipeline": {"augmentation": "Augmentation:", "training": "Training end to end:"},
    "inference": {"inference": "The forward pass:", "files": "From file to file:"},
}
# too long to stand open
FOLDED = {"layers"}
PICTURE = "step.svg"


class ReportError(Exception):
    """A README or a result that can't be used, in one line."""


def load(results):
    """The contents of the results in a folder, in the order of their names.

    Raises:
        ReportError: if one is not whole, as an interrupted run leaves it.
    """
    contents = []
    for path in sorted(results.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["benchmarks"], content["machine_info"]
        except (ValueError, KeyError, TypeError):
            raise ReportError(f"{path.name}: not the result of a finished run. Delete it, or run again") from None
        contents.append(content)
    return contents


def about(content):
    """The provenance of a result."""
    return content["machine_info"].get("vnet_fast", {})


def machine(content):
    """`CPU` or `GPU`."""
    return "CPU" if about(content).get("device", "CPU").startswith("CPU") else "GPU"


def title(content):
    """The name of a result's processor; of a CPU with its threads."""
    found = about(content)
    if machine(content) == "GPU":
        return found["device"]
    return f"{found['processor']}, {found['device'].removeprefix('CPU, ')}"


def heading(content):
    """What a result depends on, in a line."""
    found, commit = about(content), content.get("commit_info", {})
    parts = [title(content), f"{found['volume']} voxels", f"torch {found['torch']}"]
    parts += [f"{name} {found[name]}" for name in ("cuda", "cudnn", "triton", "monai") if found.get(name)]
    if commit.get("id"):
        parts.append(f"commit {commit['id'][:10]}" + (" with changes" if commit.get("dirty") else ""))
    return ", ".join([*parts, found["date"]])


def section(results):
    """Markdown of the kernels' tables of every GPU result in a folder."""
    parts = []
    for content in load(results):
        stored = [benchmark.get("extra_info", {}) for benchmark in content["benchmarks"]]
        rows = [Row(**entry["row"]) for entry in stored if "row" in entry]
        if not rows or machine(content) == "CPU":
            continue
        found = about(content)
        hashes = ", ".join(f"{name} {digest}" for name, digest in found["kernels"].items())
        parts.append(f"{found['device']}, torch {found['torch']}, Triton {found['triton']} ({hashes}):\n")
        parts.append("\n".join(table(rows)) + "\n")
    return "\n".join(parts) or NOTHING.format("GPU") + "\n"


def section_of(name, contents):
    """Markdown of one of SECTIONS: for each machine its tables, or that it was not measured.

    Args:
        name: of the section.
        contents: what `load` returned.
    """
    parts = []
    for kind in MACHINES:
        measured = [text for content in contents if machine(content) == kind for text in _tables(name, content)]
        parts += measured or [NOTHING.format(kind)]
    return "\n\n".join(parts) + "\n"


def _tables(name, content):
    found = []
    for each, caption in SECTIONS[name].items():
        rows = tables.stored_rows(content, each)
        if rows:
            found += [caption] if caption else []
            found.append("\n".join(tables.lines(rows)))
    if found and name in FOLDED:
        return [f"<details><summary>{heading(content)}</summary>", *found, "</details>"]
    return [f"{heading(content)}:", *found] if found else []


def replaced(text, name, content):
    """A README's text with what stands between the markers of a section replaced.

    Raises:
        ReportError: if the markers are not there, once each and in their order.
    """
    begin, end = (marker.format(name) for marker in MARKERS)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ReportError(f"README.md: needs {begin} and {end}, once each. Add the two lines where the table is to be")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content}{end}{rest.partition(end)[2]}"


def bars(content):
    """The providers of a result's picture, of one batch: (provider, milliseconds of each part)."""
    stored = [entry["extra_info"] for entry in content["benchmarks"]]
    steps = [entry for entry in stored if entry.get("table") == "step" and "parts" in entry]
    # the paper's batch where it was measured
    batch = min((entry["cells"]["batch"] for entry in steps), key=lambda size: abs(size - 2), default=None)
    return batch, [(entry["cells"]["provider"], entry["parts"]) for entry in steps if entry["cells"]["batch"] == batch]


def write(readme, results):
    """Writes the sections of a README and, where a step was measured, the picture beside the results.

    Raises:
        ReportError: see `load` and `replaced`.
    """
    contents = load(results)
    panels = []
    for content in sorted(contents, key=lambda content: MACHINES.index(machine(content))):
        batch, providers = bars(content)
        if providers:
            panels.append((f"{title(content)}: batch of {batch}, {about(content)['volume']} voxels", providers))
    sections = {"kernels": section(results), **{name: section_of(name, contents) for name in SECTIONS}}
    if panels:
        place = (results / PICTURE).relative_to(readme.parent).as_posix()
        sections["step"] = f"![A step's time by parts]({place})\n\n{sections['step']}"
    text = readme.read_text(encoding="utf-8")
    for name, content in sections.items():
        text = replaced(text, name, content)
    if panels:
        picture.draw(panels, results / PICTURE)
    readme.write_text(text, encoding="utf-8")


def main():
    """Returns the exit code."""
    try:
        write(ROOT / "README.md", ROOT / "benchmarks" / "results")
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
