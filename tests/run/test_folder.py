import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vnet_fast import VNet
from vnet_fast.errors import InputError
from vnet_fast.run import checkpoint
from vnet_fast.run.folder import LAST, LOCK, PREVIOUS, PROCESS, RunFolder, read_summary

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


def small(value=0.0):
    model = VNet(base_channels=1)
    with torch.no_grad():
        model.head.bias.fill_(value)
    return model


def test_a_folder_is_made_and_held_until_closed(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run")
    assert (folder / PROCESS).read_text() == str(os.getpid())
    with pytest.raises(InputError, match=rf"process {os.getpid()} is training in it. Wait for its end"):
        RunFolder(tmp_path / "a" / "run")
    folder.close()
    assert not list((tmp_path / "a" / "run").iterdir())
    RunFolder(tmp_path / "a" / "run").close()


def test_the_command_that_resumes_names_any_path(tmp_path):
    with pytest.raises(InputError, match=r"Resume with: python -m vnet_fast\.train --resume '.*/a run'$"):
        read_summary(tmp_path / "a run")


@pytest.mark.parametrize("name", [LAST, PREVIOUS])
def test_a_run_is_not_begun_twice(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder(tmp_path)
    RunFolder(tmp_path, resume=True).close()


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("config.json", '{"mine": 1}', '{"learning_rate": 0.1}'),
        ("config.json", "[1", '{"learning_rate": 0.1}'),
        ("log.csv", "time,what", "iteration,loss"),
        ("log.csv", "my own", ""),
    ],
)
def test_files_of_something_else_are_kept(tmp_path, name, theirs, ours):
    """Those of a run that has come to no checkpoint are replaced."""
    (tmp_path / name).write_text(theirs)
    with pytest.raises(InputError, match=rf"{name}: is of no run, and would be replaced. Choose another --output"):
        RunFolder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name}
    (tmp_path / name).write_text(ours)
    RunFolder(tmp_path).close()


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path, capsys):
    code = (
        "import sys, time; from vnet_fast.run.folder import RunFolder; "
        "folder = RunFolder(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {process.pid} is training in it"):
        RunFolder(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    RunFolder(tmp_path).close()
    assert f"process {process.pid}, which trained in it, has ended; its lock is taken over" in capsys.readouterr().out


def test_a_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"run: can't be made \(.*\)\. Choose another --output"):
        RunFolder(tmp_path / "file" / "run")


def test_the_checkpoint_before_the_last_is_kept(tmp_path):
    folder = RunFolder(tmp_path)
    for iteration in (1, 2, 3):
        folder.save_last(small(), iteration=iteration)
    assert checkpoint.load(folder / LAST)["iteration"] == 3
    assert checkpoint.load(folder / PREVIOUS)["iteration"] == 2
    content, path = RunFolder.load_last(tmp_path, CPU)
    assert (content["iteration"], path) == (3, tmp_path / LAST)
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS, LOCK, PROCESS}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "no such file"),
        (lambda path: path.write_bytes(b""), "damaged, or not a checkpoint"),
        (lambda path: path.write_bytes(path.read_bytes()[:-2000]), "damaged, or not a checkpoint"),
    ],
    ids=["missing", "empty", "cut"],
)
def test_the_checkpoint_before_stands_in_for_a_damaged_one(tmp_path, capsys, damage, message):
    folder = RunFolder(tmp_path)
    for iteration in (1, 2):
        folder.save_last(small(), iteration=iteration)
    damage(tmp_path / LAST)
    content, path = RunFolder.load_last(tmp_path, CPU)
    assert (content["iteration"], path) == (1, tmp_path / PREVIOUS)
    assert f"last.pt: {message}; going on from previous.pt" in capsys.readouterr().out
    (tmp_path / PREVIOUS).write_bytes(b"")
    with pytest.raises(InputError, match=f"last.pt: {message}"):
        RunFolder.load_last(tmp_path, CPU)


@pytest.mark.parametrize("dies_at", ["write", "fsync", "keep", "replace"])
def test_death_at_any_moment_of_a_save_leaves_a_checkpoint(tmp_path, dies_at):
    """A process that dies: nothing behind that moment runs, no clean-up either."""
    folder = RunFolder(tmp_path)
    folder.save_last(small(), iteration=1)
    folder.save_last(small(), iteration=2)
    child = os.fork()
    if child == 0:
        real_replace, count = os.replace, []

        def replace(*names):
            count.append(names)
            if len(count) == {"keep": 1, "replace": 2}.get(dies_at):
                os._exit(9)
            real_replace(*names)

        os.replace = replace
        if dies_at == "fsync":
            os.fsync = lambda number: os._exit(9)
        if dies_at == "write":
            torch.save = lambda content, file: (file.write(b"half"), os._exit(9))
        folder.save_last(small(), iteration=3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    content, _ = RunFolder.load_last(tmp_path, CPU)
    assert content["iteration"] == 2


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.save_last(small(), iteration=1)

    def fail(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"last.pt: can't be written \(No space left on device\)"):
        folder.save_last(small(), iteration=2)
    assert RunFolder.load_last(tmp_path, CPU)[0]["iteration"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {LAST, LOCK, PROCESS}


def test_what_a_killed_process_was_writing_is_taken_away(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_last(small(), iteration=1)
    folder.close()
    for name in (".last.pt-123-abcd0123", ".best.pt-9-abcd0123", ".summary.json-4-00000000", ".log.csv-4-00000000"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".mine").write_bytes(b"whole")
    RunFolder(tmp_path, resume=True).close()
    assert {path.name for path in tmp_path.iterdir()} == {LAST, ".mine"}


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """A file that exists stands in for the lock."""
    fcntl = pytest.importorskip("fcntl", reason="only Unix has flock")

    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(InputError, match=rf"process {os.getpid()} is training in it"):
        RunFolder(tmp_path / "run")
    folder.close()
    RunFolder(tmp_path / "run").close()
