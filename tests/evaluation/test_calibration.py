import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.axes import Axes

from tests.volumes import make_image
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.evaluation.calibration import BINS, Calibration, pooled
from vnet_fast.evaluation.evaluation import Evaluation, evaluate
from vnet_fast.evaluation.probabilities import calibrate, calibrate_case
from vnet_fast.evaluation.reliability import draw_calibration
from vnet_fast.regions import Region

SHAPE, SPACING = (8, 30, 30), (2.0, 1.0, 4.0)


def write(path, array):
    sitk.WriteImage(make_image(array, SPACING), str(path))
    return path


@pytest.fixture
def case(tmp_path):
    """A reference of two labels, a predicted mask that equals it, and probabilities of 0.8 inside and 0.1 outside."""
    reference = np.zeros(SHAPE, np.uint8)
    reference[3:5, 12:16, 14:18], reference[3:5, 12:16, 18:20] = 1, 2
    probabilities = [np.where(reference == label, 0.8, 0.1).astype(np.float32) for label in (1, 2)]
    for label, probability in enumerate(probabilities, start=1):
        write(tmp_path / f"A_probability_{label}.nii.gz", probability)
    return write(tmp_path / "A.nii.gz", reference), write(tmp_path / "reference.nii.gz", reference), reference


def test_the_error_by_hand():
    """Ten voxels at 0.15, of which two are inside, and ten at 0.95, of which seven are."""
    probability = np.array([0.15] * 10 + [0.95] * 10)
    inside = np.array([True] * 2 + [False] * 8 + [True] * 7 + [False] * 3)
    measured = Calibration.of(probability, inside)
    assert measured.error == pytest.approx((10 * 0.05 + 10 * 0.25) / 20)
    assert measured.voxels.tolist() == [0, 0, 10] + [0] * 11 + [10]
    assert measured.share[2] == pytest.approx(0.2)
    assert measured.mean_probability[14] == pytest.approx(0.95)
    assert np.isnan(measured.share[0])


def test_the_error_is_that_of_a_plain_definition():
    generator = np.random.default_rng(0)
    probability = generator.random((5, 6, 70)).astype(np.float32)
    inside = generator.random(probability.shape) < probability**2
    expected = 0.0
    for number in range(BINS):
        chosen = (probability >= number / BINS) & (probability < (number + 1) / BINS)
        expected += chosen.mean() * abs(inside[chosen].mean() - probability[chosen].mean())
    assert Calibration.of(probability, inside).error == pytest.approx(expected, rel=1e-6)


def test_certain_and_right_is_perfect():
    """Probabilities of exactly 0 and 1 are in the first and in the last bin."""
    inside = np.array([True, False, True])
    measured = Calibration.of(inside.astype(np.float32), inside)
    assert measured.error == 0
    assert measured.voxels.tolist() == [1] + [0] * (BINS - 2) + [2]


def test_cases_together():
    """Their voxels are added, which is not the mean of their errors."""
    one = Calibration.of(np.full(30, 0.5), np.ones(30, bool))
    other = Calibration.of(np.full(10, 0.5), np.zeros(10, bool))
    both = pooled([{1: one}, {1: other}, {}], 1)
    assert both.error == pytest.approx(0.25)
    assert pooled([{1: one}], 2) is None
    assert np.isnan(Calibration.of(np.zeros(0), np.zeros(0, bool)).error)


def test_voxels_of_a_box_with_a_margin_count(case):
    """10 mm are 5 columns, 10 rows and 3 slices."""
    mask, reference_path, _ = case
    measured = calibrate_case(mask, reference_path, [1, 2, 3])
    assert list(measured) == [1, 2]
    assert measured[1].voxels.sum() == (4 + 10) * (4 + 20) * (2 + 6)
    assert measured[2].voxels.sum() == (2 + 10) * (4 + 20) * (2 + 6)
    structure = 2 * 4 * 4
    outside = measured[1].voxels.sum() - structure
    assert measured[1].error == pytest.approx((0.2 * structure + 0.1 * outside) / (structure + outside), rel=1e-5)


def test_the_prediction_is_in_the_box_too(case, tmp_path):
    mask, reference_path, reference = case
    moved = np.zeros_like(reference)
    moved[0, 0, 0] = 1
    write(tmp_path / "A_probability_1.nii.gz", moved * np.float32(0.9))
    write(mask, moved)
    measured = calibrate_case(mask, reference_path, [1])
    assert measured[1].voxels.sum() == (18 + 5) * (16 + 10) * 8
    assert measured[1].voxels[13] == 1


def test_binary_probabilities_are_sums(case):
    mask, reference_path, reference = case
    measured = calibrate_case(mask, reference_path, [1], binary=True)
    assert measured[1].inside.sum() == (reference > 0).sum()
    assert measured[1].mean_probability[int(0.9 * BINS)] == pytest.approx(0.9)
    assert measured[1].mean_probability[int(0.2 * BINS + 1e-6)] == pytest.approx(0.2)


def test_voxels_that_do_not_count(case):
    mask, reference_path, reference = case
    everywhere = calibrate_case(mask, reference_path, [1])[1].voxels.sum()
    assert calibrate_case(mask, reference_path, [1], ignored=2)[1].voxels.sum() == everywhere - (reference == 2).sum()


def test_regions(case, tmp_path):
    mask, reference_path, reference = case
    unions = [Region("whole", (1, 2)), Region("core", (2,))]
    write(tmp_path / "A_probability_1.nii.gz", (reference > 0) * np.float32(0.7))
    measured = calibrate_case(mask, reference_path, [1, 2], unions=unions)
    assert [measured[number].inside.sum() for number in (1, 2)] == [(reference > 0).sum(), (reference == 2).sum()]
    assert measured[1].error == pytest.approx(0.3 * (reference > 0).sum() / measured[1].voxels.sum(), rel=1e-5)
    with pytest.raises(InputError, match="has 2 probabilities beside it, and there are 1 regions"):
        calibrate_case(mask, reference_path, [1], unions=unions[:1])


def test_the_order_of_the_regions(case, tmp_path):
    """It is that of the probabilities; what the largest component leaves out of a region is no other order."""
    mask, reference_path, reference = case
    whole, part = Region("whole", (1, 2)), Region("part", (1,))
    write(tmp_path / "A_probability_1.nii.gz", (reference > 0) * np.float32(0.7))
    write(tmp_path / "A_probability_2.nii.gz", (reference == 1) * np.float32(0.7))
    assert list(calibrate_case(mask, reference_path, [1, 2], unions=[whole, part])) == [1, 2]
    with pytest.raises(InputError, match=r"A.nii.gz: the probabilities.*Name the regions in the network's order"):
        calibrate_case(mask, reference_path, [1, 2], unions=[part, whole])
    with pytest.raises(InputError, match=r"_probability_2.nii.gz: not of the mask.*name them with --regions"):
        calibrate_case(mask, reference_path, [1, 2])
    write(mask, np.where(reference == 1, 2, reference))
    assert list(calibrate_case(mask, reference_path, [1, 2], unions=[whole, part])) == [1, 2]


def test_regions_are_not_taken_for_labels(case, tmp_path):
    """Where a label is always in its region, the probabilities fit the mask, but add up to more than 1."""
    mask, reference_path, reference = case
    write(tmp_path / "A_probability_1.nii.gz", (reference > 0) * np.float32(0.8))
    unions = [Region("whole", (1, 2)), Region("core", (2,))]
    assert list(calibrate_case(mask, reference_path, [1, 2], unions=unions)) == [1, 2]
    with pytest.raises(InputError, match=r"add up to more than 1, as those of regions.*name them with --regions"):
        calibrate_case(mask, reference_path, [1, 2])


def test_a_missing_file_is_named(case, tmp_path):
    """By a gap in the numbers, or by the labels of the mask."""
    mask, reference_path, reference = case
    write(tmp_path / "A_probability_3.nii.gz", np.zeros(SHAPE, np.float32))
    second = tmp_path / "A_probability_2.nii.gz"
    second.unlink()
    with pytest.raises(InputError, match=r"A_probability_2.nii.gz: missing, and there is A_probability_3.nii.gz"):
        calibrate_case(mask, reference_path, [1, 2])
    (tmp_path / "A_probability_3.nii.gz").unlink()
    for binary in (False, True):
        with pytest.raises(InputError, match=r"A_probability_2.nii.gz: missing, and A.nii.gz has label 2. Predict"):
            calibrate_case(mask, reference_path, [1], binary)
    write(mask, np.uint8(reference == 1))
    assert list(calibrate_case(mask, reference_path, [1])) == [1]


def test_a_file_that_other_cases_have_is_named(case, tmp_path):
    other = write(tmp_path / "B.nii.gz", np.uint8(case[2] == 1))
    write(tmp_path / "B_probability.nii.gz", (case[2] == 1) * np.float32(0.8))
    pairs = [("A", case[0], case[1]), ("B", other, case[1])]
    (evaluation,) = evaluate(["x"], [pairs])
    with pytest.raises(InputErrors, match=r"B_probability_1.nii.gz: missing, and A.nii.gz has 2 probabilities"):
        calibrate([evaluation], [pairs])


def test_files_of_two_networks_are_refused(case, tmp_path):
    mask, reference_path, reference = case
    write(tmp_path / "A_probability.nii.gz", (reference > 0) * np.float32(0.8))
    cause = "A.nii.gz: has probabilities of two networks beside it, A_probability.nii.gz and A_probability_1.nii.gz"
    with pytest.raises(InputError, match=f"{cause}. Delete the older"):
        calibrate_case(mask, reference_path, [1, 2])


def test_a_case_that_lacks_a_label(case, tmp_path):
    nothing = write(tmp_path / "nothing.nii.gz", np.zeros(SHAPE, np.uint8))
    write(case[0], np.zeros(SHAPE, np.uint8))
    measured = calibrate_case(case[0], nothing, [1, 2])
    assert all(label.voxels.sum() == 0 for label in measured.values())


def test_wrong_files(case, tmp_path):
    mask, reference_path, reference = case
    path = tmp_path / "A_probability_1.nii.gz"
    for values, message in (
        (reference * 2, "has values from 0 to 4, which are no probabilities"),
        (np.full(SHAPE, 0.1), "not of the mask beside it. Predict again with --probabilities"),
        (np.full((8, 30, 31), 0.9), "its size is 31 30 8, that of A.nii.gz is 30 30 8"),
    ):
        write(path, np.asarray(values, np.float32))
        with pytest.raises(InputError, match=message):
            calibrate_case(mask, reference_path, [1, 2])
    write(path, np.full(SHAPE, 0.9, np.float32))
    write(tmp_path / "A_probability_2.nii.gz", np.full(SHAPE, 0.8, np.float32))
    with pytest.raises(InputError, match=r"A.nii.gz: the probabilities beside it add up to more than 1.* --binary"):
        calibrate_case(mask, reference_path, [1], binary=True)


def test_all_cases_without_probabilities_are_named(case, tmp_path):
    others = [write(tmp_path / f"{name}.nii.gz", case[2]) for name in "BC"]
    pairs = [("A", case[0], case[1]), *((path.stem, path, case[1]) for path in others)]
    (evaluation,) = evaluate(["x"], [pairs])
    with pytest.raises(InputErrors) as raised:
        calibrate([evaluation], [pairs])
    assert [error.cause for error in raised.value.errors] == ["no probabilities beside it"] * 2


@pytest.mark.parametrize("labels", [1, 2, 4])
def test_the_picture(case, tmp_path, labels, monkeypatch):
    """It has a diagram for each class; of a class without probabilities, it is empty."""
    pairs = [[("A", case[0], case[1])]] * 2
    evaluations = evaluate(["x", "y"], pairs, known=range(1, labels + 1), binary=labels == 1)
    calibrate(evaluations, pairs, binary=labels == 1)
    draw_calibration(evaluations, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_class_without_voxels_has_no_error_in_the_diagram(tmp_path, monkeypatch):
    labels = []
    plot = Axes.plot

    def collect(axes, *values, label=None, **arguments):
        labels.append(label)
        return plot(axes, *values, label=label, **arguments)

    monkeypatch.setattr(Axes, "plot", collect)
    nothing = Calibration.of(np.zeros(0, np.float32), np.zeros(0, bool))
    evaluation = Evaluation("x", {"A": {1: {}}}, calibration={"A": {1: nothing}})
    draw_calibration([evaluation], tmp_path / "x.png")
    assert "ECE -" in labels
