"""Writes the tables of `benchmarks/RESULTS.md`, the README's few figures, and the pictures.

    python benchmarks/report.py

It reads every result in `benchmarks/results`: `*.json` of `pytest benchmarks/ --benchmark-only --benchmark-json FILE`,
`losses/*.json` of `losses.py` and `learning/*.json` of `learning.py`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import learning_table, loss_table, picture, stored, tables  # noqa: E402
from benchmarks.highlights import FORWARD, forward_passes, highlights  # noqa: E402
from benchmarks.measure import Row, table  # noqa: E402
from benchmarks.stored import MACHINES, ReportError, machine  # noqa: E402

MARKERS = "<!-- {}: begin -->", "<!-- {}: end -->"
ABLATION = "ablation.md"
ABLATION_INTRODUCTION = """# What each setting of the fast recipe gains

Written by `python benchmarks/report.py`. Each row is the fast recipe with one setting changed, the best first: the
same cases, and as many iterations, whatever time they take. Means differ by up to 0.002 from seed to seed.

"""
NOT_MEASURED = "Not measured yet on a {}."
NOTHING_YET = "Not measured yet.\n"
# the tables of each section, with a caption for each where there are several
SECTIONS = {
    "step": {"step": None},
    "inference": {"inference": "The forward pass:", "files": "From file to file:"},
    "fast": {"fast": None},
    "pipeline": {
        "augmentation": "Augmentation:",
        "patches": "Augmentation of patches of 96 x 96 x 96 voxels, everything on:",
        "training": "Training end to end:",
    },
    "layers": {"layers": None},
}
# sections whose tables are so long that a reader unfolds them
FOLDED = {"layers"}
PICTURE, CURVES = "step.svg", "learning.svg"


def write(root):
    """Writes the generated sections of README.md and RESULTS.md, and the pictures of what was measured.

    Args:
        root: the repository's folder.

    Raises:
        ReportError: if a result is incomplete, or if markers are missing; then no file is written.
    """
    results = root / "benchmarks" / "results"
    contents = stored.load(results)
    learned = learning_table.load(results / "learning")
    texts = {
        root / "README.md": {"benchmarks": highlights(contents), "learning": learning_highlights(learned)},
        root / "benchmarks" / "RESULTS.md": sections(contents, learned, results / "losses"),
    }
    written = {path: with_sections(path, content) for path, content in texts.items()}
    panels = panels_of(contents)
    if panels:
        picture.draw(panels, results / PICTURE)
    if passes := forward_passes(contents):
        picture.draw_forward(*passes, results / FORWARD)
    if learning_table.comparisons(learned):
        learning_table.draw(learned, results / CURVES)
    written |= ablation_text(results / "learning")
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")


def sections(contents, learned, losses):
    """The generated sections of RESULTS.md: dict from name to Markdown.

    Args:
        contents: returned by `stored.load`.
        learned: returned by `learning_table.load`.
        losses: folder of the results of `losses.py`.
    """
    markdown = {name: section(name, contents) for name in SECTIONS}
    if panels_of(contents):
        markdown["step"] = f"![A step's time by parts](results/{PICTURE})\n\n{markdown['step']}"
    return {
        "ceilings": ceilings_section(contents),
        **markdown,
        "kernels": kernels_section(contents),
        "learning": learning_section(learned),
        "losses": loss_table.section(losses) or NOTHING_YET,
    }


def section(name, contents):
    """Markdown of one of SECTIONS: for each machine its tables, or that it was not measured.

    Args:
        name: of the section.
        contents: returned by `stored.load`.
    """
    paragraphs = []
    for kind in MACHINES:
        measured = [text for content in contents if machine(content) == kind for text in _tables(name, content)]
        paragraphs += measured or [NOT_MEASURED.format(kind)]
    return "\n\n".join(paragraphs) + "\n"


def _tables(name, content):
    paragraphs = []
    for table_name, caption in SECTIONS[name].items():
        rows = stored.rows(content, table_name)
        if rows:
            paragraphs += [caption] if caption else []
            paragraphs.append("\n".join(tables.lines(rows)))
    if paragraphs and name in FOLDED:
        return [f"<details><summary>{stored.heading(content)}</summary>", *paragraphs, "</details>"]
    return [f"{stored.heading(content)}:", *paragraphs] if paragraphs else []


def ceilings_section(contents):
    """Markdown of the machines' ceilings, and of the results that have none."""
    rows, unknown = [], []
    for content in contents:
        ceilings = stored.ceilings(content)
        if stored.lacks_ceilings(content):
            unknown.append(f"- No ceilings, hence no floors and shares: {stored.heading(content)}.")
        for precision, fields in ceilings.items():
            fastest = max(fields["arithmetic"], key=fields["arithmetic"].get)
            rates = [rate / 1e9 for rate in fields["traffic"].values()]
            rows.append(
                {
                    "machine": f"{stored.title(content)}, {stored.provenance_of(content)['date']}",
                    "precision": precision,
                    "TFLOP/s": fields["arithmetic"][fastest] / 1e12,
                    "measured by": fastest + (f". {fields['note']}" if fields["note"] else ""),
                    "memory, GB/s": rates[-1],
                    "caches, GB/s": max(rates),
                }
            )
    paragraphs = ["\n".join(lines) for lines in (list(tables.lines(rows)) if rows else [], unknown) if lines]
    return "\n\n".join(paragraphs or ["Not measured yet."]) + "\n"


def kernels_section(contents):
    """Markdown of the kernels' tables of every GPU."""
    paragraphs = []
    for content in contents:
        details = [benchmark.get("extra_info", {}) for benchmark in content["benchmarks"]]
        rows = [Row(**entry["row"]) for entry in details if "row" in entry]
        if not rows or machine(content) == "CPU":
            continue
        provenance = stored.provenance_of(content)
        hashes = ", ".join(f"{name} {digest}" for name, digest in provenance["kernels"].items() if name.endswith(".py"))
        caption = f"{provenance['device']}, torch {provenance['torch']}, Triton {provenance['triton']} ({hashes}):"
        paragraphs += [f"{caption}\n", "\n".join(table(rows)) + "\n"]
    return "\n".join(paragraphs) or NOT_MEASURED.format("GPU") + "\n"


def learning_section(learned):
    """Markdown of what networks learned, with the picture."""
    if not learned:
        return NOTHING_YET
    curves = f"![Dice over the seconds of training](results/{CURVES})\n\n"
    return (curves if learning_table.comparisons(learned) else "") + learning_table.section(learned)


def learning_highlights(learned):
    """Markdown of the README: what networks learned, in short."""
    if not learning_table.comparisons(learned):
        return NOTHING_YET
    picture_of = f"![Dice over the seconds of training](benchmarks/results/{CURVES})"
    return f"{picture_of}\n\n{learning_table.highlights(learned)}"


def ablation_text(folder):
    """The text of `ablation.md`, which is written whole: dict from its path, empty if nothing was measured."""
    changed = learning_table.load(folder / "ablation")
    return {folder / ABLATION: ABLATION_INTRODUCTION + learning_table.ablation(changed)} if changed else {}


def with_sections(path, markdown):
    """The text of a Markdown file with its generated sections replaced.

    Args:
        path: of the file.
        markdown: dict from the section's name to its new text.

    Raises:
        ReportError: if the markers of a section are not there once each, in their order.
    """
    text = path.read_text(encoding="utf-8")
    for name, content in markdown.items():
        begin, end = (marker.format(name) for marker in MARKERS)
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ReportError(f"{path.name}: needs {begin} and {end} once each. Add these lines around the section")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{content}{end}{rest.partition(end)[2]}"
    return text


def panels_of(contents):
    """The panels of the picture, the GPU's first; see `picture.draw`."""
    panels = []
    for content in sorted(contents, key=lambda content: MACHINES.index(machine(content))):
        batch, providers = bars(content)
        if providers:
            volume = stored.provenance_of(content)["volume"]
            panels.append((f"{stored.title(content)}: batch of {batch}, {volume} voxels", providers))
    return panels


def bars(content):
    """A batch size that a result measured, and its providers: list of (name, dict from part to milliseconds)."""
    details = [entry["extra_info"] for entry in content["benchmarks"]]
    steps = [entry for entry in details if entry.get("table") == "step" and "parts" in entry]
    # the paper's batch of 2 if it was measured
    batch = min((entry["cells"]["batch"] for entry in steps), key=lambda size: abs(size - 2), default=None)
    return batch, [(entry["cells"]["provider"], entry["parts"]) for entry in steps if entry["cells"]["batch"] == batch]


def main():
    """Writes the files; returns the exit code."""
    try:
        write(ROOT)
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
