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
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vnet_fast import command_line, train
from vnet_fast.run.folder import LAST, PREVIOUS

# share of the kills that come then; the others at any moment from the start on
IN_TRAINING = 0.8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def start(arguments, log, verb=train):
    """Forks a program; returns its process id."""
    # what comes before the program has begun waits for it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return child
    for number in (1, 2):
        os.dup2(log.fileno(), number)
    # what is printed before a kill is there too
    sys.stdout.reconfigure(line_buffering=True)
    try:
        command_line.run(partial(_interruptible, verb), command_line.parser_of(verb.Config, verb.__name__), arguments)
    except SystemExit as stopped:
        sys.stdout.flush()
        os._exit(stopped.code)
    finally:
        os._exit(99)


def _interruptible(verb, given):
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return verb.main(given)


def began(folder):
    """How many trainings have come to their first step."""
    return (folder / "output.txt").read_text().count("batches: ")


def wait_for_training(folder, before):
    deadline = time.monotonic() + 30
    while began(folder) == before and time.monotonic() < deadline:
        time.sleep(0.02)


def wait(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    folder, kills, longest, *arguments = sys.argv[1:]
    folder, generator = Path(folder), random.Random(0)
    with open(folder / "output.txt", "w") as log:
        assert wait(start([*arguments, "--output", str(folder / "whole")], log)) == 0
        codes, runs, trainings = [], 0, began(folder)
        # a machine so fast that a run ends before all kills are done trains another
        while len(codes) < int(kills):
            run, code, runs = folder / f"killed{runs}", None, runs + 1
            while code != 0:
                begun = any((run / name).exists() for name in (LAST, PREVIOUS))
                child = start(["--resume", str(run)] if begun else [*arguments, "--output", str(run)], log)
                if len(codes) == int(kills):
                    code = wait(child)
                    assert code == 0, code
                    break
                if generator.random() < IN_TRAINING:
                    wait_for_training(folder, trainings)
                trainings = began(folder)
                time.sleep(generator.uniform(0, float(longest)))
                number = generator.choice(SIGNALS)
                os.kill(child, number)
                code = wait(child)
                if code != 0:
                    codes.append([number, code])
    print(json.dumps({"codes": codes, "runs": runs}))


if __name__ == "__main__":
    main()
