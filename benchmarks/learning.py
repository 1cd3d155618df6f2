"""Dice against seconds of training: this project's recipes and MONAI's networks, on the same cases.

    python benchmarks/learning.py NAME --data DIR --seconds 480 --volume 32 48 40 --spacing 1 1 1 --folds 3

trains each learner of `learners.py` for as long, one after the other, once for each seed, and stores in
`results/learning/NAME.json` what each reached on the cases of the first fold, which none was trained on. Validation is
not counted in the seconds of a result. A run that was stopped goes on with what is missing. Nothing else should run
on the machine meanwhile.

    python benchmarks/learning.py NAME --table

prints the table of a result. Several processes may store different learners in one result at a time.

    python benchmarks/learning.py NAME --ablation --data DIR --iterations 800 --volume 32 48 40 --spacing 1 1 1

trains by the fast recipe for so many iterations, and with each of its settings changed alone. The results are in
`results/learning/ablation`.
"""

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.learners import ABLATION, LEARNERS, learn  # noqa: E402
from benchmarks.learning_table import table  # noqa: E402
from benchmarks.provenance import provenance, without_folders  # noqa: E402
from vnet_fast.errors import InputError, InputErrors  # noqa: E402
from vnet_fast.files import plain, write_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "learning"


def main():
    """Runs what is missing, and prints the table."""
    arguments = parse()
    path = RESULTS / ("ablation" if arguments.ablation else "") / f"{arguments.name}.json"
    try:
        if not arguments.table:
            complete = run_missing(arguments, path)
            if not complete:
                return 130
    except (InputError, InputErrors) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(stored(path)["runs"])))
    return 0


def parse():
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the result")
    parser.add_argument("--table", action="store_true", help="print the table of a stored result")
    parser.add_argument("--data", help="folder of the cases")
    parser.add_argument("--ablation", action="store_true", help="change the settings of the fast recipe, one by one")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=480, help="of training")
    length.add_argument("--iterations", type=int, help="instead of a time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learners", nargs="+", metavar="LEARNER")
    parser.add_argument("--volume", type=int, nargs=3, default=(128, 128, 64))
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.5))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--binary", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs") / "learning", help="folder of the runs")
    arguments = parser.parse_args()
    if not arguments.table and not arguments.data:
        parser.error("--data is needed, unless --table is given")
    known = ABLATION if arguments.ablation else LEARNERS
    arguments.learners = {name: known.get(name) for name in arguments.learners or known}
    unknown = [name for name, learner in arguments.learners.items() if learner is None]
    if unknown:
        parser.error(f"--learners: there is no {unknown[0]!r}. Give some of: {', '.join(map(repr, known))}")
    return arguments


def stored(path):
    """A result, or an empty one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"runs": []}


def run_missing(arguments, path):
    """Trains what a result lacks, and stores it after each training; returns whether everything was done."""
    done = {(run["learner"], run["seed"]) for run in stored(path)["runs"]}
    place = {name: index for index, name in enumerate(ABLATION if arguments.ablation else LEARNERS)}
    length = {"iterations": arguments.iterations} if arguments.iterations else {"minutes": arguments.seconds / 60}
    given = {
        "data": arguments.data, "binary": arguments.binary, **length,
        "volume": tuple(arguments.volume), "spacing": tuple(arguments.spacing), "folds": arguments.folds, "amp": "auto",
    }  # fmt: skip
    for seed in arguments.seeds:
        for name, learner in arguments.learners.items():
            if (name, seed) in done:
                continue
            output = arguments.work / arguments.name / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            # what a stopped training left
            shutil.rmtree(output, ignore_errors=True)
            print(f"{name}, seed {seed}", flush=True)
            learned = learn(learner, given | {"seed": seed}, output)
            if learned is None:
                return False
            words = ["python", *(Path(word).name if word == arguments.data else word for word in sys.argv)]
            # another process may have stored other learners meanwhile
            content = stored(path)
            content["about"] = provenance() | {"command": without_folders(shlex.join(words))}
            content["runs"].append({"learner": name, "seed": seed, **plain(dataclasses.asdict(learned))})
            # the recipe itself first
            content["runs"].sort(key=lambda run: (place.get(run["learner"], len(place)), run["seed"]))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(content, indent=1) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(main())
