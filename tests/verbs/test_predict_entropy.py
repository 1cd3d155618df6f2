"""`predict --entropy`: what is written, what is never replaced, and what is no case."""

import math
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import write_case
from vnet_fast import evaluate, predict
from vnet_fast.io.grid import Grid


def run(run_verb, trained, source, target, *more):
    arguments = "--checkpoint", trained, "--input", source, "--output", target, "--device", "cpu", *more
    return run_verb(predict, *arguments)


def test_a_map_beside_each_mask(cases, tmp_path, run_verb, trained):
    out = tmp_path / "out"
    code, _, err = run(run_verb, trained, cases, out, "--entropy", "--probabilities")
    assert code == 0, err
    names = {f"Case{i:02d}{end}.mhd" for i in range(6) for end in ("", "_entropy", "_probability")}
    assert {path.name for path in out.glob("*.mhd")} == names
    entropy, probability = (sitk.ReadImage(str(out / f"Case03_{name}.mhd")) for name in ("entropy", "probability"))
    assert entropy.GetPixelID() == sitk.sitkFloat32
    assert Grid.of(entropy) == Grid.of(sitk.ReadImage(str(cases / "Case03.mhd")))
    # of two classes
    p = sitk.GetArrayFromImage(probability).astype(np.float64).clip(1e-12, 1 - 1e-7)
    expected = -(p * np.log(p) + (1 - p) * np.log(1 - p))
    np.testing.assert_allclose(sitk.GetArrayFromImage(entropy), expected, atol=1e-5)
    assert 0.5 < sitk.GetArrayFromImage(entropy).max() <= math.log(2) + 1e-6


def test_the_maps_are_no_cases(cases, tmp_path, run_verb, trained):
    """Neither where masks are evaluated, nor where they lie among the volumes to predict."""
    out = tmp_path / "out"
    assert run(run_verb, trained, cases, out, "--entropy", "--probabilities")[0] == 0
    shutil.copytree(out, tmp_path / "labels")
    for predictions, labels in ((out, cases), (out, tmp_path / "labels")):
        code, _, err = run_verb(evaluate, "--predictions", predictions, "--labels", labels)
        assert code == 0, err
    for path in out.iterdir():
        path.rename(cases / path.name.replace("Case", "Mask"))
    code, out_text, err = run(run_verb, trained, cases, tmp_path / "again")
    assert code == 2
    # six volumes and six masks, which are no scans, and no maps
    assert "of 12 volumes segmented" in out_text
    assert "entropy" not in err + out_text


@pytest.mark.parametrize(("option", "ending"), [("--entropy", "_entropy"), ("--probabilities", "_probability")])
def test_a_map_never_replaces_a_volume(tmp_path, run_verb, trained, option, ending):
    image, _ = write_case(tmp_path, f"scan{ending}", suffix=".nii.gz")
    before = image.read_bytes()
    code, _, err = run(run_verb, trained, image, tmp_path / "scan.nii.gz", option)
    assert code == 2
    assert f"scan{ending}.nii.gz: would replace the volume itself. Choose another --output" in err
    assert image.read_bytes() == before
    assert not (tmp_path / "scan.nii.gz").exists()
    # without the map, nothing is replaced
    assert run(run_verb, trained, image, tmp_path / "scan.nii.gz")[0] == 0


def test_a_map_never_replaces_the_data_file_of_a_volume(tmp_path, run_verb, trained):
    image, _ = write_case(tmp_path, "scan")
    header = image.read_text().replace("scan.zraw", "x_entropy.zraw")
    image.write_text(header)
    (tmp_path / "scan.zraw").rename(tmp_path / "x_entropy.zraw")
    code, _, err = run(run_verb, trained, image, tmp_path / "x.mhd", "--entropy")
    assert code == 2
    assert "x_entropy.zraw: would replace the volume itself" in err
