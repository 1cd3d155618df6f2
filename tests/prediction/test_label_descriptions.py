import re

import pytest

from vnet_fast import VNet, evaluate, predict, progress
from vnet_fast.data.cases import find_images
from vnet_fast.errors import InputError
from vnet_fast.io.label_names import colour_of
from vnet_fast.prediction.label_descriptions import NAME, descriptions, write_descriptions
from vnet_fast.prediction.task import Task
from vnet_fast.regions import Region
from vnet_fast.run import checkpoint

LINE = re.compile(r'\s*(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+([\d.]+)\s+([01])\s+([01])\s+"([^"]*)"')


def parse(text):
    """From label to (red, green, blue, alpha, visible in slices, visible in 3-D, name), as ITK-SNAP reads them."""
    matches = [LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#")]
    return {int(match[1]): (*map(int, match.groups()[1:4]), *match.groups()[4:]) for match in matches}


def save(path, names=(), regions=()):
    count = len(names) or len(regions) or 2
    more = {"regions": [{"name": region.name, "labels": list(region.labels)} for region in regions]} if regions else {}
    network = VNet(base_channels=1, num_classes=count + (not regions))
    checkpoint.save(
        path, network, spacing=[1.5, 1.5, 2.0], volume=[16, 16, 16], validation=[], classes=list(names), **more
    )
    return path


def test_the_format():
    """Names have neither line breaks nor quotation marks, which would end them."""
    text = descriptions({1: "left", 2: 'a "b"\nc', 9: "größer"})
    assert text.startswith("# ITK-SnAP Label Description File\n")
    found = parse(text)
    assert found[0] == (0, 0, 0, "0", "0", "0", "Clear Label")
    assert found[1] == (*(round(255 * value) for value in colour_of(1)), "1", "1", "1", "left")
    assert (found[2][-1], found[9][-1]) == ("a 'b' c", "größer")


def test_predict_writes_them_into_a_folder_of_masks(cases, tmp_path, run_verb):
    network, masks = save(tmp_path / "x.pt", ["Head", ""]), tmp_path / "masks"
    common = ["--checkpoint", network, "--input", cases, "--device", "cpu"]
    assert run_verb(predict, *common, "--output", masks)[0] == 0
    assert {label: row[-1] for label, row in parse((masks / NAME).read_text()).items()} == {
        0: "Clear Label", 1: "Head", 2: "class 2"
    }  # fmt: skip
    # it is no case
    assert len(find_images(masks)) == 6
    assert run_verb(evaluate, "--predictions", masks, "--labels", cases)[0] == 0
    # a single file has none beside it
    assert run_verb(predict, *common[:3], cases / "Case00.mhd", *common[4:], "--output", tmp_path / "x.nrrd")[0] == 0
    assert not (tmp_path / NAME).exists()


def test_without_names_there_is_no_file(tmp_path):
    write_descriptions(tmp_path, Task.of(checkpoint.load(save(tmp_path / "x.pt")), "x.pt").label_names)
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("ours", [True, False])
def test_names_of_another_network_do_not_stay(tmp_path, ours):
    """They would be wrong beside the masks of a network without names; what ITK-SNAP wrote stays."""
    write_descriptions(tmp_path, {1: "old"})
    path = tmp_path / NAME
    if not ours:
        path.write_text(path.read_text().replace("# Written by vnet_fast", "# File format:"))
    write_descriptions(tmp_path, {})
    assert path.exists() != ours


def test_names_that_can_not_be_removed_are_one_error(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    write_descriptions(tmp_path, {1: "old"})
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(InputError, match=r"labels.label: can't be removed \(Permission denied\)"):
        write_descriptions(tmp_path, {})


def test_labels_of_regions(tmp_path):
    path = save(tmp_path / "x.pt", regions=[Region("whole", (1, 2, 3)), Region("core", (2, 3))])
    assert Task.of(checkpoint.load(path), path).label_names == {1: "whole", 2: "core"}


@pytest.mark.parametrize("ours", [True, False])
def test_a_file_of_another_program_is_kept(tmp_path, capsys, ours):
    write_descriptions(tmp_path, {1: "old"})
    path = tmp_path / NAME
    if not ours:
        # as ITK-SNAP writes it after an edit
        path.write_text(path.read_text().replace("# Written by vnet_fast", "# File format:"))
    write_descriptions(tmp_path, {1: "new"})
    assert ('"new"' in path.read_text()) == ours
    assert ("kept, because vnet_fast did not write it" in capsys.readouterr().out) != ours


def test_a_folder_of_that_name_is_kept(tmp_path, capsys):
    (tmp_path / NAME).mkdir()
    write_descriptions(tmp_path, {1: "new"})
    assert "kept" in capsys.readouterr().out


def test_what_is_said_is_one_line_and_quiet_in_python(tmp_path, capsys):
    folder = tmp_path / "a\nb"
    (folder / NAME).mkdir(parents=True)
    write_descriptions(folder, {1: "new"})
    line = f"{tmp_path}/a\\nb/{NAME}: kept, because vnet_fast did not write it"
    assert capsys.readouterr().out == f"{line}\n"
    with progress.quiet(), pytest.warns(UserWarning, match="kept"):
        write_descriptions(folder, {1: "new"})
    assert capsys.readouterr().out == ""
