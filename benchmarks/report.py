"""Writes the README's table of kernel benchmarks from `benchmarks/results/*.json`.

    python benchmarks/report.py

The files are those of `pytest benchmarks/ --benchmark-only --benchmark-json FILE` on a GPU.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import Row, table  # noqa: E402

BEGIN, END = "<!-- kernels: begin -->", "<!-- kernels: end -->"
NOTHING = "Not measured yet on a GPU."


def section(results):
    """Markdown of every GPU result in a folder."""
    parts = []
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [Row(**b["extra_info"]["row"]) for b in content["benchmarks"] if "row" in b.get("extra_info", {})]
        about = content["machine_info"].get("vnet_fast", {})
        if not rows or about.get("device", "CPU").startswith("CPU"):
            continue
        hashes = ", ".join(f"{name} {digest}" for name, digest in about["kernels"].items())
        parts.append(f"{about['device']}, torch {about['torch']}, Triton {about['triton']} ({hashes}):\n")
        parts.append("\n".join(table(rows)) + "\n")
    return "\n".join(parts) or NOTHING + "\n"


def main():
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{section(ROOT / 'benchmarks' / 'results')}{END}{after}"
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
