import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.axes import Axes

from tests.volumes import make_image, write_case
from vnet_fast import plotting
from vnet_fast.evaluation.comparison import Comparison
from vnet_fast.evaluation.evaluation import Evaluation, evaluate
from vnet_fast.evaluation.figures import choose_cases, draw, read_case
from vnet_fast.regions import Region


@pytest.fixture
def reference_case(tmp_path):
    """A case in LPS order, with a bright voxel at its right, anterior, inferior corner."""
    image, mask = write_case(tmp_path, "A", suffix=".nii.gz")
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
    array[0, 0, 0] = 5000
    sitk.WriteImage(make_image(array, (1.2, 1.1, 2.0)), str(image))
    return image, mask


@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAI", "PIR", "SLA"])
def test_pictures_are_radiological_whatever_the_order_of_the_file(reference_case, tmp_path, orientation):
    paths = []
    for path in reference_case:
        paths.append(tmp_path / f"turned_{path.name}")
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), orientation), str(paths[-1]))
    image, mask = paths
    figure = read_case(evaluate(["x"], [[("A", mask, mask)]]), "A", "worst", image, mask, [mask])
    # right, anterior, inferior: the upper left corner of the first slice, as seen from the feet
    assert figure.image[0, 0, 0] == 5000
    expected = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in reference_case]
    np.testing.assert_array_equal(figure.image, expected[0])
    np.testing.assert_array_equal(figure.reference, expected[1])
    np.testing.assert_array_equal(figure.predictions[""], expected[1])
    assert figure.spacing == pytest.approx((1.2, 1.1, 2.0), rel=1e-6)


def test_letters_at_the_edges(tmp_path, monkeypatch):
    """The patient's right is on the left of the picture, and anterior is up."""
    drawn = {}
    monkeypatch.setattr(Axes, "annotate", lambda axes, letter, place, **_: drawn.setdefault(letter, place))
    mask = np.ones((3, 8, 8), np.uint8)
    plotting.overlay(mask.astype(float), mask, {"": mask}, (1, 1, 1), "x", tmp_path / "x.png")
    assert drawn["R"][0] < 0.1 < 0.9 < drawn["L"][0]
    assert drawn["P"][1] < 0.1 < 0.9 < drawn["A"][1]


def test_a_case_without_structures_is_no_worst_case(tmp_path):
    files = [write_case(tmp_path, name, seed) for seed, name in enumerate("AB")]
    empty = tmp_path / "empty.nii.gz"
    sitk.WriteImage(make_image(np.zeros((3, 3, 3), np.uint8)), str(empty))
    pairs = [("A", files[0][1], files[1][1]), ("B", files[1][1], files[1][1]), ("empty", empty, empty)]
    (evaluation,) = evaluate(["x"], [pairs])
    assert np.isnan(evaluation.mean_dice("empty"))
    assert choose_cases(evaluation) == {"worst": "A", "best": "B"}


@pytest.mark.parametrize("unions", [(), (Region("core", (1, 4)),)], ids=["labels", "regions"])
def test_labels_that_are_not_measured_are_no_structures(reference_case, tmp_path, unions):
    """Neither what regions leave out, nor a label that only the prediction has."""
    image, path = reference_case
    mask = sitk.ReadImage(str(path))
    sitk.WriteImage(sitk.Cast((mask > 0) * (4 if unions else 1), sitk.sitkUInt8), str(path))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    other = labels.copy()
    other[:, :2] = 2
    changed = tmp_path / "changed.nii.gz"
    sitk.WriteImage(make_image(other, (1.2, 1.1, 2.0)), str(changed))
    # where regions are the classes, the reference has the label too
    reference = changed if unions else path
    evaluations = evaluate(["x"], [[("A", changed, reference)]], unions=unions)
    figure = read_case(evaluations, "A", "worst", image, reference, [changed])
    np.testing.assert_array_equal(figure.predictions[""], np.where(other == 2, 0, other))
    np.testing.assert_array_equal(figure.reference, np.where(other == 2, 0, other) if unions else labels)


@pytest.fixture
def titles(monkeypatch):
    """Makes the files of pictures without what they show, and collects the titles of differences."""
    found = []

    def draw_differences(values, title, path, theme):
        found.append(title)
        path.touch()

    monkeypatch.setattr(plotting, "differences", draw_differences)
    monkeypatch.setattr(plotting, "distribution", lambda *arguments: arguments[1].touch())
    monkeypatch.setattr(plotting, "overlay", lambda *arguments: arguments[5].touch())
    return found


@pytest.mark.parametrize("character", ["a", "\U0001f600"], ids=["letters", "characters of four bytes"])
def test_pictures_of_differences_of_sets_with_long_paths(reference_case, tmp_path, titles, character):
    """What they have in common is neither drawn nor in the name of the file; the class is."""
    image, mask = reference_case
    names = [f"/{character * 200}/{run}{character * 60}/predictions" for run in "AB"]
    evaluations = [Evaluation(name, {"A": {2: {"whole": {"dice": 0.5}}}}, class_names={2: "lesion"}) for name in names]
    comparison = Comparison(*names, 2, "dice", {"A": 0.1}, 1.0, "lesion")
    draw(tmp_path, evaluations, [[("A", mask, mask)]] * 2, {"A": image}, [comparison])
    (path,) = tmp_path.glob("difference-*.png")
    assert path.name.endswith("-class-2.png")
    (title,) = titles
    assert title.startswith("Dice of B")
    assert title.endswith(", lesion")
    assert len(title) < 90


@pytest.mark.usefixtures("titles")
def test_pictures_of_an_earlier_evaluation_are_removed(reference_case, tmp_path):
    """Other files stay."""
    image, mask = reference_case
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("best.png", "median.png", "calibration.png", "difference-a-b-class-1.png", "notes.txt", "x.png"):
        (folder / name).touch()
    pairs = [[("A", mask, mask)]]
    draw(folder, evaluate(["x"], pairs), pairs, {"A": image})
    assert {path.name for path in folder.iterdir()} == {"distribution.png", "worst.png", "notes.txt", "x.png"}
