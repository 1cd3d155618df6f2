"""Whether the rule for rewrites holds for other volumes, batches and widths than those that are stored.

    python -m benchmarks.cudnn_sizes --libraries FOLDER

asks cuDNN, as `benchmarks.cudnn_heuristics` does, and prints how many passes that need tensor cores get none.
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.cudnn_heuristics import HOW, ask, compile_program, questions, summary
from benchmarks.cudnn_tables import CHOICES, TYPE, missing, table

ASKED = ("sm_80", "sm_90")
# batch, shape, base channels
CASES = (
    (2, (64, 64, 64), 16),
    (1, (96, 160, 160), 16),
    (4, (32, 64, 64), 16),
    (2, (80, 96, 112), 16),
    (2, (64, 128, 128), 32),
    (4, (64, 128, 128), 16),
    (3, (48, 80, 80), 24),
)


def counts(program, gpu, case):
    """The version of cuDNN, and for each choice the number of passes that need tensor cores and get none."""
    asked = questions(*case)
    version, answers = ask(program, gpu, [call.question(TYPE) for call in asked.values()])
    rows = dict(zip(asked, map(summary, answers), strict=True))
    return version, {choice: len(passes) for choice, passes in missing(rows, gpu, TYPE, *case).items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog=HOW, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", type=Path, required=True, metavar="FOLDER", help="with cuDNN, see below")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(arguments.libraries, folder)
        for case in CASES:
            batch, shape, base_channels = case
            for gpu in ASKED:
                version, found = counts(program, gpu, case)
                size = " × ".join(map(str, reversed(shape)))
                rows.append([version, gpu, size, batch, base_channels, *found.values()])
    print(table(["cuDNN", "GPU", "size", "batch", "base", *CHOICES], rows))


if __name__ == "__main__":
    main()
