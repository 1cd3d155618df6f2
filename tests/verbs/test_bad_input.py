"""The programs report all bad cases of a folder at once, in a line for each file, before they train or write."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.io.bad_makers import write_mask, write_sound_case
from tests.io.bad_volumes import BAD
from tests.volumes import write_case
from vnet_fast import train
from vnet_fast.nn.vnet import VNet
from vnet_fast.run import checkpoint

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120
# bytes
MOST_MEMORY = 2e9
TINY = ["--volume", "16", "16", "16", "--spacing", "1", "1", "2", "--base-channels", "2", "--device", "cpu"]
SOUND = ("Sound 1", "Sound 2")


@dataclass(frozen=True)
class Result:
    """A program's exit code, stdout, lines of stderr, and home folder."""

    code: int
    out: str
    lines: list
    home: Path


def run_program(verb, *arguments, home):
    """Runs a program in a process of its own, with a limit of time and one of memory."""
    environment = {**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    peak = home.parent / f"{home.name} peak"
    done = subprocess.run(
        [sys.executable, "-m", "tests.peak_memory", peak, f"vnet_fast.{verb}", *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=SECONDS,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert int(peak.read_text()) < MOST_MEMORY
    return Result(done.returncode, done.stdout, done.stderr.splitlines(), home)


def content_of(folder):
    """Returns every file below a folder, with its size."""
    return sorted((str(path), os.lstat(path).st_size) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All bad cases and two sound ones, in a folder with spaces, quotes and an umlaut in its name."""
    folder = tmp_path_factory.mktemp("bad") / 'a segmentation\'s "folder" of Bäd cases'
    folder.mkdir()
    for number, (name, bad) in enumerate(BAD.items()):
        bad.make(folder, name, np.random.default_rng(number))
    for number, name in enumerate(SOUND):
        write_sound_case(folder, name, np.random.default_rng(1000 + number))
    return folder


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The result of training on the bad cases."""
    home = tmp_path_factory.mktemp("home")
    before = content_of(folder)
    result = run_program("train", "--data", folder, "--output", home / "run", *TINY, home=home)
    assert content_of(folder) == before
    return result


def test_there_are_many_bad_cases():
    assert len(BAD) >= 60


@pytest.mark.parametrize("name", BAD)
def test_each_bad_case_is_one_line(folder, trained, name):
    bad = BAD[name]
    about = [line for line in trained.lines if line.startswith(f"error: {folder}/{name}{bad.file}: ")]
    assert len(about) == 1, [line for line in trained.lines if f"/{name}" in line]
    assert bad.message in about[0]
    # file, cause and remedy
    assert re.fullmatch(r"error: .+: [^:].*\. [A-Z][^.]*(\.\w[^.]*)*", about[0]), about[0]


def test_nothing_else_is_reported_or_written(folder, trained):
    assert trained.code == 2
    assert len(trained.lines) == len(BAD), set(trained.lines)
    assert not any(f"/{name}." in line for line in trained.lines for name in SOUND)
    assert not (trained.home / "run").exists()
    entries = list((trained.home / ".cache" / "vnet_fast").iterdir())
    assert len(entries) == len(SOUND)
    assert all(entry.suffix == ".npz" for entry in entries)


@pytest.mark.exhaustive
def test_check_reports_the_same(folder, trained, tmp_path):
    result = run_program("train", "--data", folder, "--check", *TINY, home=tmp_path)
    assert result.code == 2
    assert sorted(result.lines) == sorted(trained.lines)
    headings, *rows, summary = result.out.splitlines()
    assert headings.split() == ["case", "size", "spacing", "mm", "intensities", "labels"]
    assert [row[:7] for row in rows] == list(SOUND)
    assert summary.endswith(f"2 of {len(BAD)} cases can be read, 0 warnings")
    assert not list(tmp_path.iterdir())


def test_prediction_refuses_the_same_images(folder, trained, tmp_path):
    path, out = tmp_path / "network.pt", tmp_path / "out"
    checkpoint.save(path, VNet(base_channels=2), spacing=[1.0, 1.0, 2.0], volume=[16, 16, 16], validation=[])
    result = run_program(
        "predict", "--checkpoint", path, "--input", folder, "--output", out, "--device", "cpu", home=tmp_path
    )
    assert result.code == 2
    about_masks = [line for line in trained.lines if "_segmentation.mha: " in line or "no mask for this" in line]
    assert {line.split(" on the network's grid")[0] for line in result.lines} == {
        line.split(" on the network's grid")[0] for line in trained.lines if line not in about_masks
    }
    bad_masks = len([line for line in about_masks if "no image for this" not in line])
    assert len(list(out.iterdir())) == len(SOUND) + bad_masks
    assert all(name.endswith((".mha", ".nii.gz")) for name, _ in content_of(out))


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "a b.MHD", 'it\'s "one".nrrd', "größe 前列腺.mha", "x;rm -rf.nii"])
def test_unusual_names_are_read(tmp_path, run_verb, name):
    folder = tmp_path / name.replace(".", " ")
    folder.mkdir()
    stem, suffix = name.split(".", 1)
    for number in range(2):
        for path in write_case(folder, "x", number, suffix=f".{suffix.lower()}"):
            path.rename(folder / path.name.replace("x", f"{stem}{number}", 1).replace(suffix.lower(), suffix))
            if path.with_suffix(".zraw").exists():
                header = folder / path.name.replace("x", f"{stem}{number}", 1).replace(suffix.lower(), suffix)
                data = f"{header.name.split('.')[0]} voxels.zraw"
                path.with_suffix(".zraw").rename(folder / data)
                header.write_text(header.read_text().replace(path.with_suffix(".zraw").name, data))
    code, out, err = run_verb(train, "--data", folder, "--check", *TINY, "--folds", 2)
    assert (code, err) == (0, "")
    assert [line.startswith(f"{stem}{number}") for number, line in enumerate(out.splitlines()[1:3])] == [True, True]


@pytest.mark.exhaustive
def test_a_name_that_is_not_utf8(tmp_path):
    """SimpleITK would end the process."""
    folder = tmp_path / "x"
    folder.mkdir()
    write_sound_case(folder, "A", np.random.default_rng(0))
    os.rename(folder / "A.mha", os.fsencode(folder) + b"/\xff.mha")
    os.rename(folder / "A_segmentation.mha", os.fsencode(folder) + b"/\xff_segmentation.mha")
    result = run_program("train", "--data", folder, "--check", *TINY, home=tmp_path)
    assert result.code == 2
    assert len(result.lines) == 3
    assert all("its name is not in UTF-8. Rename it" in line for line in result.lines[1:])


@pytest.mark.parametrize("kept", [-1, 0], ids=["truncated", "empty"])
def test_image_and_mask_are_both_reported(tmp_path, run_verb, kept):
    path, _ = write_sound_case(tmp_path, "A", np.random.default_rng(0))
    path.write_bytes(path.read_bytes()[:kept])
    write_mask(tmp_path, "A", np.full((2, 2, 2), -1, np.int16))
    for more in ([], ["--check"]):
        code, _, err = run_verb(train, "--data", tmp_path, "--output", tmp_path / "run", *TINY, *more)
        assert code == 2
        named = [line.split(": ")[1].removeprefix(f"{tmp_path}/") for line in err.splitlines()]
        assert named == [str(tmp_path), "A.mha", "A_segmentation.mha"]
        assert "1 cases for 5 folds. Add cases" in err
