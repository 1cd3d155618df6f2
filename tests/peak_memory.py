"""Runs a module as a program, and then writes how much memory it had at its peak.

python -m tests.peak_memory FILE MODULE …
"""

import atexit
import runpy
import sys
from pathlib import Path


def peak_bytes():
    """The peak of this process's memory, bytes. Unlike getrusage's, it does not count what the parent had before."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


if __name__ == "__main__":
    _, file, *sys.argv = sys.argv
    atexit.register(lambda: Path(file).write_text(str(peak_bytes())))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
