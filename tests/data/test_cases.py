import json

import numpy as np
import pytest

from tests.io.dicom_slices import write_dicom
from tests.volumes import write_case
from vnet_fast.data.cases import Case, find_cases, find_images, natural, pair_cases, pair_masks
from vnet_fast.data.folds import split
from vnet_fast.data.labels import count_classes, declared_labels
from vnet_fast.data.preparation import PreparedCase
from vnet_fast.errors import InputError, InputErrors


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_promise12_layout(tmp_path):
    touch(*[tmp_path / f"Case{i}{end}" for i in (10, 2, 0) for end in (".mhd", ".zraw", "_segmentation.mhd")])
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["Case0", "Case2", "Case10"]
    assert cases[1] == Case("Case2", tmp_path / "Case2.mhd", tmp_path / "Case2_segmentation.mhd")


@pytest.mark.parametrize("json_there", [True, False])
def test_decathlon_layout(tmp_path, json_there):
    for name in ("a_002", "a_010"):
        touch(tmp_path / "imagesTr" / f"{name}.nii.gz", tmp_path / "labelsTr" / f"{name}.nii.gz")
    touch(tmp_path / "imagesTr" / "._a_002.nii.gz")
    if json_there:
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "Anterior"}}))
    assert [case.name for case in find_cases(tmp_path)] == ["a_002", "a_010"]
    assert declared_labels(tmp_path) == ({0: "background", 1: "Anterior"} if json_there else None)


@pytest.mark.parametrize("endings", [("", ""), ("_0000", ""), ("", "_seg"), ("_0000", "_label"), ("", ".seg")])
def test_two_folders(tmp_path, endings):
    for name in ("one", "two"):
        touch(tmp_path / "scans" / f"{name}{endings[0]}.nrrd", tmp_path / "masks" / f"{name}{endings[1]}.mha")
    cases = find_cases(tmp_path / "scans", tmp_path / "masks")
    assert [(case.name, case.mask.name) for case in cases] == [(n, f"{n}{endings[1]}.mha") for n in ("one", "two")]


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_two_folders_of_the_same_names(tmp_path, channel):
    """A name may end as those of masks do."""
    for name in ("one_gt", "two_seg", "three"):
        touch(tmp_path / "scans" / f"{name}{channel}.nrrd", tmp_path / "masks" / f"{name}.nrrd")
    assert [case.name for case in find_cases(tmp_path / "scans", tmp_path / "masks")] == ["one_gt", "three", "two_seg"]


def test_an_image_that_is_named_like_a_mask(tmp_path):
    touch(*[tmp_path / "scans" / f"{name}.nrrd" for name in ("a", "a_gt")])
    touch(*[tmp_path / "masks" / f"{name}.nrrd" for name in ("a_seg", "a_gt")])
    assert [(case.name, case.mask.name) for case in find_cases(tmp_path / "scans", tmp_path / "masks")] == [
        ("a", "a_seg.nrrd"), ("a_gt", "a_gt.nrrd"),
    ]  # fmt: skip


def test_a_mask_beside_its_image(tmp_path):
    """Its name is that of a file in both folders, but the image has no other mask."""
    touch(*[tmp_path / "scans" / f"{name}.nrrd" for name in ("a", "a_seg")], tmp_path / "masks" / "a_seg.nrrd")
    cases, unpaired = pair_cases(tmp_path / "scans", tmp_path / "masks")
    assert [(case.name, case.image.name, case.mask.name) for case in cases] == [("a", "a.nrrd", "a_seg.nrrd")]
    assert [str(error.subject) for error in unpaired] == [str(tmp_path / "scans" / "a_seg.nrrd")]


def test_an_image_is_not_its_own_mask(tmp_path, monkeypatch):
    touch(*[tmp_path / f"{name}.nrrd" for name in ("a", "a_seg")])
    monkeypatch.chdir(tmp_path.parent)
    for labels in (tmp_path, tmp_path.name):
        with pytest.raises(InputErrors) as raised:
            find_cases(tmp_path, labels)
        assert {error.cause for error in raised.value.errors} == {"the image and its mask are one file"}


def test_segmentations_of_3d_slicer(tmp_path):
    """NAME.seg.nrrd is the mask of NAME, beside it, in a folder of masks and as a prediction."""
    touch(*[tmp_path / "p" / name for name in ("A.nrrd", "A.seg.nrrd", "B.nrrd", "B_segmentation.seg.nrrd")])
    assert [(case.image.name, case.mask.name) for case in find_cases(tmp_path / "p")] == [
        ("A.nrrd", "A.seg.nrrd"), ("B.nrrd", "B_segmentation.seg.nrrd"),
    ]  # fmt: skip
    assert list(find_images(tmp_path / "p")) == ["A", "B"]
    touch(tmp_path / "masks" / "A.seg.nrrd", tmp_path / "labels" / "A.nrrd", tmp_path / "labels" / "B.nrrd")
    pairs, missing = pair_masks(tmp_path / "masks", tmp_path / "labels")
    assert [(name, mask.name, label.name) for name, mask, label in pairs] == [("A", "A.seg.nrrd", "A.nrrd")]
    assert [path.name for path in missing] == ["B.nrrd"]
    assert [name for name, _, _ in pair_masks(tmp_path / "masks", tmp_path / "p")[0]] == ["A"]


def test_digits_of_all_kinds_are_in_natural_order(tmp_path):
    names = ["scan1²", "scan2", "scan10", "scan²"]
    touch(*[tmp_path / f"{name}{end}.mhd" for name in names for end in ("", "_segmentation")])
    assert [case.name for case in find_cases(tmp_path)] == names


def test_names_of_the_same_numbers_have_an_order(tmp_path):
    """That of sets of texts is another one in each process."""
    names = ["Case01", "Case1", "Case001", "Case2", "Case02"]
    assert len({str(natural(name)) for name in names}) == len(names)
    touch(*[tmp_path / f"{name}{end}.mhd" for name in names for end in ("", "_segmentation")])
    assert [case.name for case in find_cases(tmp_path)] == ["Case001", "Case01", "Case1", "Case02", "Case2"]


def test_decathlon_with_other_masks(tmp_path):
    touch(tmp_path / "imagesTr" / "a.nii.gz", tmp_path / "others" / "a.nii.gz")
    assert find_cases(tmp_path, tmp_path / "others")[0].mask == tmp_path / "others" / "a.nii.gz"


def test_a_folder_whose_path_says_segmentation(tmp_path):
    folder = tmp_path / "prostate_segmentation"
    touch(folder / "A.mhd", folder / "A_segmentation.mhd")
    assert [case.name for case in find_cases(folder)] == ["A"]


def test_unpaired_files_are_all_named(tmp_path):
    touch(*[tmp_path / f"{name}.mhd" for name in ("A", "A_segmentation", "B", "C_segmentation", "D")])
    with pytest.raises(InputErrors) as raised:
        find_cases(tmp_path)
    lines = str(raised.value).splitlines()
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in lines] == ["B.mhd", "C_segmentation.mhd", "D.mhd"]
    assert "no mask for this image" in lines[0]
    assert "no image for this mask" in lines[1]


def test_folders_without_a_common_name(tmp_path):
    """Each image and each mask would be a line otherwise."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    touch(*[images / f"scan{i}.mhd" for i in range(9)], *[masks / f"expert{i}.mhd" for i in range(9)])
    with pytest.raises(InputError, match=r"masks: none of its 9 masks .*images, .* expert0.mhd and scan0.mhd\."):
        find_cases(images, masks)
    touch(masks / "scan3.mhd")
    with pytest.raises(InputErrors) as raised:
        find_cases(images, masks)
    assert len(raised.value.errors) == 17
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: no masks"):
        find_cases(images, tmp_path / "empty")


def test_folders_without_cases(tmp_path):
    with pytest.raises(InputError, match="no volumes"):
        find_cases(tmp_path)
    touch(tmp_path / "A.mhd")
    with pytest.raises(InputError, match="1 volumes but no masks"):
        find_cases(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volumes"):
        find_cases(tmp_path / "empty", tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(InputError, match="labelsTr: no such folder"):
        find_cases(tmp_path)


def test_the_same_case_under_two_names(tmp_path):
    touch(tmp_path / "scans" / "A.mhd", tmp_path / "scans" / "A_0000.mhd", tmp_path / "masks" / "A.mhd")
    with pytest.raises(InputErrors, match=r"A_0000.mhd: the same case as A.mhd"):
        find_cases(tmp_path / "scans", tmp_path / "masks")


def test_images_to_predict(tmp_path):
    touch(*[tmp_path / "p" / name for name in ("A.mhd", "A_segmentation.mhd", "B.mhd")])
    assert list(find_images(tmp_path / "p")) == ["A", "B"]
    touch(tmp_path / "d" / "imagesTr" / "x.nii.gz", tmp_path / "d" / "labelsTr" / "x.nii.gz")
    assert find_images(tmp_path / "d") == {"x": (tmp_path / "d" / "imagesTr" / "x.nii.gz",)}
    touch(tmp_path / "d" / "imagesTs" / "y_0000.nii.gz")
    assert list(find_images(tmp_path / "d")) == ["y"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no volumes"):
        find_images(tmp_path / "empty")


def test_series_that_lie_deeper(tmp_path):
    """As in PATIENT/STUDY/SERIES: the folder to name is the one whose entries are series."""
    (tmp_path / "patient" / "study").mkdir(parents=True)
    write_dicom(tmp_path / "patient" / "study" / "series", [0, 3])
    for folder in (tmp_path, tmp_path / "patient"):
        study = tmp_path / "patient" / "study"
        with pytest.raises(InputError, match=f"its DICOM series lie deeper. Name the folder .*, such as {study}$"):
            find_images(folder)
    assert list(find_images(study)) == ["series"]
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no volumes\. Convert it"):
        find_images(tmp_path / "a")


def test_masks_of_other_programs_are_not_predicted(tmp_path):
    """Where a volume of the same name is there; without one, it is a volume's own name."""
    names = ("A", "A_seg", "A_GT", "B_0000", "B_mask", "C_0000", "C_0000_label", "D_seg", "A_0001_gt", "_gt")
    touch(*[tmp_path / f"{name}.nii.gz" for name in names])
    assert list(find_images(tmp_path)) == ["A", "A_0001_gt", "B", "C", "D_seg", "_gt"]


@pytest.mark.parametrize("names", [("A.seg", "A_segmentation"), ("A.seg", "A_segmentation.seg")], ids=str)
def test_two_masks_of_one_volume_are_refused(tmp_path, names):
    touch(*[tmp_path / f"{name}.nrrd" for name in ("A", *names)])
    with pytest.raises(InputErrors, match=r"the same case as A.*Keep one of the two"):
        pair_cases(tmp_path)


MAPS_TOO = ("A", "A_entropy", "A_probability_1")


def test_maps_beside_masks_are_no_cases(tmp_path):
    """What `predict` writes beside a mask; a volume of such a name without a mask beside it is one."""
    folder = tmp_path / "p"
    maps = ["A_entropy", "A_probability", "A_probability_12", "A_segmentation_entropy", "A_segmentation_probability_1"]
    touch(*[folder / f"{name}.mhd" for name in ("A", "A_segmentation", "B_entropy", "C_probability_map", *maps)])
    assert list(find_images(folder)) == ["A", "B_entropy", "C_probability_map"]
    assert [case.name for case in pair_cases(folder)[0]] == ["A"]
    touch(*[tmp_path / name / f"{end}.mhd" for name in ("i", "l", "m") for end in MAPS_TOO])
    cases, unpaired = pair_cases(tmp_path / "i", tmp_path / "l")
    assert ([case.name for case in cases], unpaired) == (["A"], [])
    pairs, unpredicted = pair_masks(tmp_path / "l", tmp_path / "m")
    assert ([name for name, *_ in pairs], unpredicted) == (["A"], [])
    touch(tmp_path / "maps" / "A_entropy.mhd")
    with pytest.raises(InputError, match="no predicted masks"):
        pair_masks(tmp_path / "maps", tmp_path / "l")


def test_a_mask_is_no_prediction_of_itself(tmp_path):
    touch(tmp_path / "l" / "A.mhd")
    (tmp_path / "link").symlink_to(tmp_path / "l")
    for predictions in (tmp_path / "l", tmp_path / "link", tmp_path / "l" / "A.mhd"):
        with pytest.raises(InputErrors, match="the prediction and its reference are one file"):
            pair_masks(predictions, tmp_path / "l")
    with pytest.raises(InputErrors, match="the prediction and its reference are one file"):
        pair_masks(tmp_path / "link" / "A.mhd", tmp_path / "l" / "A.mhd")


def test_predictions_and_references_pair(tmp_path):
    touch(tmp_path / "p" / "A.mhd", tmp_path / "p" / "A_probability.mhd", tmp_path / "p" / "B.mhd")
    touch(*[tmp_path / "l" / f"{name}{end}.mhd" for name in "ABC" for end in ("", "_segmentation")])
    touch(tmp_path / "p" / "high_probability_1x.mhd", tmp_path / "l" / "high_probability_1x_segmentation.mhd")
    pairs, unpredicted = pair_masks(tmp_path / "p", tmp_path / "l")
    assert pairs.pop()[0] == "high_probability_1x"
    assert [path.name for path in unpredicted] == ["C_segmentation.mhd"]
    assert [(name, reference.name) for name, _, reference in pairs] == [
        ("A", "A_segmentation.mhd"),
        ("B", "B_segmentation.mhd"),
    ]
    touch(tmp_path / "p" / "Z.mhd")
    with pytest.raises(InputErrors, match=r"Z.mhd: no reference mask for it"):
        pair_masks(tmp_path / "p", tmp_path / "l")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="no predicted masks"):
        pair_masks(tmp_path / "none", tmp_path / "l")


@pytest.mark.parametrize(("count", "folds"), [(40, 5), (11, 4), (5, 5), (7, 2)])
def test_folds_divide_the_cases(count, folds):
    cases = [f"case{i}" for i in range(count)]
    validated = []
    for fold in range(folds):
        training, validation = split(cases, folds, fold, seed=3)
        assert sorted(training + validation) == sorted(cases)
        assert validation
        validated += validation
        # each fold has at most one case of every block
        numbers = [int(name[4:]) // folds for name in validation]
        assert len(set(numbers)) == len(numbers)
    assert sorted(validated) == sorted(cases)


def test_folds_stay_the_same_on_every_machine():
    cases = [f"{i:02d}" for i in range(12)]
    assert split(cases, 4, 1, seed=0)[1] == ["02", "05", "10"]
    assert split(cases, 4, 1, seed=0) == split(cases, 4, 1, seed=0)
    assert split(cases, 4, 1, seed=0) != split(cases, 4, 1, seed=1)


def count(labels, tmp_path, binary=False, declared=None):
    cases = [Case(str(i), tmp_path / f"{i}.mha", tmp_path / f"{i}_mask.mha") for i in range(len(labels))]
    empty = np.zeros((1, 1, 1), np.uint8)
    prepared = [PreparedCase(case.name, empty, empty, empty, entry) for case, entry in zip(cases, labels, strict=True)]
    return count_classes(prepared, cases, binary, declared)


def test_classes_are_counted_from_the_labels(tmp_path):
    assert count([(0, 1), (0,)], tmp_path) == 2
    assert count([(0, 1), (0, 3), (2,)], tmp_path) == 4
    assert count([(0, 255)], tmp_path, binary=True) == 2
    assert count([(0, 1)], tmp_path, declared={0: "b", 1: "x", 2: "y"}) == 3
    with pytest.raises(InputError, match="all masks are empty"):
        count([(0,), (0,)], tmp_path)
    with pytest.raises(InputError, match=r"1_mask.mha: has label 255, but no mask has 2, 3, 4, 5, 6, …"):
        count([(0, 1), (0, 255)], tmp_path)
    with pytest.raises(
        InputError, match=r"1_mask.mha: has only the labels 0 and 255, .*Give --binary to treat 255 as the fore"
    ):
        count([(0, 255), (0, 255)], tmp_path)
    with pytest.raises(InputError, match=r"1_mask.mha: has label 2, which dataset.json does not name"):
        count([(0, 1), (0, 2)], tmp_path, declared={0: "b", 1: "x"})
    with pytest.raises(InputError, match=r"dataset.json: names label 3 but not 2"):
        count([(0, 1)], tmp_path, declared={0: "b", 1: "x", 3: "y"})


@pytest.mark.parametrize("content", ["{", "[]", '{"labels": {"a": "b"}}'])
def test_damaged_description(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset.json: not a description of a data set"):
        declared_labels(tmp_path)


def test_nnunets_description(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "gland": 1}}))
    assert declared_labels(tmp_path) == {0: "background", 1: "gland"}


def test_real_folders(real_data):
    promise = find_cases(real_data / "promise12")
    assert len(promise) == 40
    assert all(case.mask.name == f"{case.name}_segmentation.mhd" for case in promise)
    assert len(find_cases(real_data / "Task04_Hippocampus")) == 200
    assert declared_labels(real_data / "Task04_Hippocampus")[2] == "Posterior"


def test_a_real_file_is_found(tmp_path):
    write_case(tmp_path, "A")
    assert find_cases(tmp_path)[0].name == "A"
