"""Trains once undisturbed and once killed at random moments, and resumed each time; prints what happened
as JSON. Children are forked from a process that has imported everything and computed nothing, so that a
kill costs no second start of Python.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vnet_fast import command_line, train
from vnet_fast.run_folder import LAST, PREVIOUS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start(arguments, log):
    """Forks a training; returns its process id."""
    child = os.fork()
    if child:
        return child
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    # what is printed before a kill is there too
    sys.stdout.reconfigure(line_buffering=True)
    try:
        command_line.run(train.main, command_line.parser_of(train.Config, "vnet_fast.train"), arguments)
    except SystemExit as stopped:
        sys.stdout.flush()
        os._exit(stopped.code)
    finally:
        os._exit(99)


def again(run, arguments):
    """Goes on with a run, or begins it anew where it was killed before its first checkpoint."""
    begun = any((run / name).exists() for name in (LAST, PREVIOUS))
    return ["--resume", str(run)] if begun else [*arguments, "--output", str(run)]


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    folder, kills, longest, *arguments = sys.argv[1:]
    folder, generator = Path(folder), random.Random(0)
    whole, killed = folder / "whole", folder / "killed"
    with open(folder / "output.txt", "w") as log:
        assert wait(start([*arguments, "--output", str(whole)], log)) == 0
        codes = []
        while len(codes) < int(kills):
            child = start(again(killed, arguments), log)
            time.sleep(generator.uniform(0.1, float(longest)))
            number = generator.choice(SIGNALS)
            os.kill(child, number)
            code = wait(child)
            if code == 0:
                break
            codes.append([number, code])
        if not (killed / "summary.json").exists():
            assert wait(start(again(killed, arguments), log)) == 0
    print(json.dumps(codes))


if __name__ == "__main__":
    main()
