"""Completion of the commands, in the shells themselves."""

import os
import select
import shutil
import subprocess
import time

import pytest

from vnet_fast import __main__

# asks the function that bash calls at the Tab key, with the words of the line
ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
name=$(complete -p vnet-fast | sed 's/.* -F \\([^ ]*\\) .*/\\1/')
"$name" vnet-fast "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="shtab is not installed")
    path = tmp_path_factory.mktemp("completion") / "vnet-fast"
    path.write_text(__main__.completion("bash"))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], list(__main__.COMMANDS)),
        (["pre"], ["predict"]),
        (["train", "--reci"], ["--recipe"]),
        (["train", "--loss", ""], ["dice", "weighted-ce", "dice-ce"]),
        (["evaluate", "--cal"], ["--calibration"]),
        (["predict", "--amp", "b"], ["bf16"]),
        (["predict", "--checkpoint", "best.pt", "--tt"], ["--tta"]),
        (["doctor", "--nothing"], []),
    ],
    ids=" ".join,
)
def test_bash(script, tmp_path, words, expected):
    command = ["bash", "--norc", "-c", ASK, "bash", script, "vnet-fast", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert set(done.stdout.split()) == set(expected)


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("vnet-fast rep", "vnet-fast report "),
        ("vnet-fast predict --checkpoint be", "vnet-fast predict --checkpoint best.pt "),
        ("vnet-fast predict --checkpoint best.pt --inp", "vnet-fast predict --checkpoint best.pt --input "),
        ("vnet-fast report --run R", "vnet-fast report --run RUN/"),
    ],
)
def test_the_tab_key_in_bash(script, tmp_path, typed, expected):
    """In a terminal; the line is printed instead of run."""
    pty = pytest.importorskip("pty")
    (tmp_path / "best.pt").touch()
    (tmp_path / "RUN").mkdir()
    (tmp_path / "rc").write_text(f"source {script}\nPS1='READY> '\nvnet-fast() {{ printf '<%s>' \"$*\"; }}\n")
    ours, theirs = pty.openpty()
    bash = subprocess.Popen(
        ["bash", "--rcfile", "rc", "-i"], cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**os.environ, "TERM": "dumb", "HISTFILE": ""}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        read_until(ours, b"READY> ")
        os.write(ours, f"{typed}\t'|'\n".encode())
        shown = read_until(ours, b">\r\n", b">READY> ").decode()
    finally:
        bash.kill()
        bash.wait()
        os.close(ours)
    arguments = expected.removeprefix("vnet-fast ")
    assert f"<{arguments}|>" in shown


def read_until(terminal, *ends):
    """What a terminal shows until one of some texts."""
    shown, end = b"", time.monotonic() + 30
    while not any(text in shown for text in ends):
        assert select.select([terminal], [], [], end - time.monotonic())[0], shown
        shown += os.read(terminal, 4096)
    return shown


def test_zsh_reads_its_script(tmp_path):
    pytest.importorskip("shtab", reason="shtab is not installed")
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("no zsh")
    path = tmp_path / "_vnet-fast"
    path.write_text(__main__.completion("zsh"))
    # a folder of fpath, from which compinit loads it
    load = "autoload -U compinit && compinit -u -D && print -r -- $_comps[vnet-fast]"
    done = subprocess.run(
        [zsh, "-f", "-c", f"fpath=({tmp_path} $fpath); {load}; autoload +X _vnet-fast"], capture_output=True, text=True,
        env={**os.environ, "HOME": str(tmp_path)}, timeout=60,
    )  # fmt: skip
    assert (done.stderr, done.stdout) == ("", "_vnet-fast\n")


def test_wrong_shells_are_one_line(capsys, monkeypatch):
    for arguments, message in ((["fish"], "must be bash or zsh; got 'fish'"), ([], "must be bash or zsh; got ''")):
        with pytest.raises(SystemExit) as stopped:
            __main__.main(["--completion", *arguments])
        error = capsys.readouterr().err
        assert (stopped.value.code, error.count("\n")) == (2, 1)
        assert error.startswith(f"error: --completion: {message}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        __main__.main(["--completion", "bash"])
    assert capsys.readouterr().err == (
        "error: --completion: shtab is not installed. pip install 'vnet_fast[completion]'\n"
    )
