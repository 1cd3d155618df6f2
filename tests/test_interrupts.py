import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# an interrupt in the callback of a weak reference, where Python ignores exceptions; and an error there
PROGRAM = """
import argparse, os, signal, time, weakref
from vnet_fast import command_line

class Object:
    pass

def main(given):
    thing = Object()
    reference = weakref.ref(thing, CALLBACK)
    del thing
    print("goes on", flush=True)
    for _ in range(SECONDS * 100):
        time.sleep(0.01)
    print("not reached" if SECONDS > 1 else "reached", flush=True)
    return 0

command_line.run(main, argparse.ArgumentParser(), [])
"""


def run(callback, seconds):
    program = PROGRAM.replace("CALLBACK", callback).replace("SECONDS", str(seconds))
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="of signals to oneself")
def test_an_interrupt_that_nothing_can_catch_ends_a_command_later():
    done = run("lambda _: os.kill(os.getpid(), signal.SIGINT)", 60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "goes on\n", "interrupted\n")


@pytest.mark.exhaustive
def test_other_errors_that_nothing_can_catch_are_shown_as_before():
    done = run("lambda _: 1 / 0", 1)
    assert (done.returncode, done.stdout) == (0, "goes on\nreached\n")
    assert "ZeroDivisionError" in done.stderr


AT_THE_END = """
import argparse, atexit, os, signal, time
from vnet_fast import command_line

@atexit.register
def interrupted():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)

command_line.run(lambda given: print("done", flush=True) or 0, argparse.ArgumentParser(), [])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="of signals to oneself")
def test_an_interrupt_after_the_end_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "done\n", "")
