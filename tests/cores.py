"""How many processes a test may run at a time."""

import os


def share():
    """The cores that belong to this process of tests; `tests/conftest.py` divides them among those of pytest-xdist."""
    return max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
