import os

from vnet_fast.run.configuration import Config
from vnet_fast.run.log import Log, minutes, read_log


def test_minutes():
    assert [minutes(seconds) for seconds in (0, 59.9, 60, 3_725)] == ["0:00", "0:59", "1:00", "62:05"]


def test_a_kill_right_after_resuming_keeps_the_log(tmp_path):
    path, config = tmp_path / "log.csv", Config(iterations=900)
    log = Log(path, 0, config)
    log.add(1, [0.5] * 500, [1e-4] * 500, 2.0)
    log.close()
    child = os.fork()
    if child == 0:
        Log(path, 450, config)
        os._exit(9)
    os.waitpid(child, 0)
    lines = path.read_text().splitlines()
    assert len(lines) == 451
    assert lines[-1] == "450,0.5,0.0001,,2"


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    """Of iteration 251 only `2` was written, which is before the checkpoint."""
    path, config = tmp_path / "log.csv", Config(iterations=900)
    log = Log(path, 0, config)
    log.add(1, [0.5] * 250, [1e-4] * 250, 2.0)
    log.close()
    with open(path, "a") as file:
        file.write("2")
    Log(path, 200, config).close()
    assert [row.iteration for row in read_log(path)] == list(range(1, 201))
