import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vnet_fast import evaluate
from vnet_fast.streams import TolerantStream, tolerant_streams

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    """Of a mask whose name is not in ASCII; the folder `labels` beside it has the same."""
    itk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    folder = tmp_path / "masks"
    folder.mkdir()
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    itk.WriteImage(itk.GetImageFromArray(mask), str(folder / "größe.nii.gz"))
    shutil.copytree(folder, tmp_path / "labels")
    return folder


def run_evaluate(folder, redirection, **environment):
    """`python -m vnet_fast.evaluate` in a shell; stderr of the shell's command, and its exit code."""
    output, labels = folder.parent / "x.json", folder.parent / "labels"
    command = f"{sys.executable} -m vnet_fast.evaluate --predictions {folder} --labels {labels} --output {output}"
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirection}"], cwd=ROOT, env=os.environ | environment, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout
    assert output.exists()
    return done


def test_output_that_cannot_be_encoded_is_escaped(folder):
    done = run_evaluate(folder, "", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"gr\xf6\xdfe" in done.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of a shell's redirections")
@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param(">&-", marks=pytest.mark.exhaustive),
        pytest.param("2>&-", marks=pytest.mark.exhaustive),
        pytest.param(">&- 2>&- <&-", marks=pytest.mark.exhaustive),
        pytest.param("| true; exit ${PIPESTATUS[0]}", marks=pytest.mark.exhaustive),
        pytest.param("2>&1 >&- | true; exit ${PIPESTATUS[0]}", marks=pytest.mark.exhaustive),
    ],
)
def test_closed_streams_are_nothing_to_fail_for(folder, redirection):
    done = run_evaluate(folder, redirection)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.exhaustive
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of a shell's redirections")
def test_a_closed_stdout_is_no_file_that_is_written(tmp_path):
    """The first file that is opened would get the number of stdout, and what is printed would go into it."""
    code = (
        "import os\nfrom vnet_fast.streams import tolerant_streams\n"
        "with tolerant_streams(), open('x', 'w') as file:\n    os.write(1, b'printed')\n    file.write('content')\n"
    )
    subprocess.run(["bash", "-c", f'{sys.executable} -c "$0" >&-', code], cwd=tmp_path, check=True, timeout=60,
                   env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert (tmp_path / "x").read_text() == "content"


class Full(io.StringIO):
    """A stream into a full disk."""

    def flush(self):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_errors_of_other_kinds_are_raised():
    with pytest.raises(OSError, match="No space left"):
        TolerantStream(Full()).flush()


def test_the_streams_are_as_before_afterwards(folder, run_verb):
    before = sys.stdout, sys.stderr
    run_verb(evaluate, "--predictions", folder, "--labels", folder.parent / "labels")
    assert (sys.stdout, sys.stderr) == before


def test_a_stream_that_is_closed_on_the_way():
    stream = io.StringIO()
    with tolerant_streams():
        tolerant = TolerantStream(stream)
        assert tolerant.write("x") == 1
        stream.close()
        assert tolerant.write("more") == 4
        tolerant.flush()
        assert not tolerant.isatty()
