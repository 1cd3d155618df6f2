"""The grid that is planned for a data set."""

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image, write_case
from vnet_fast.data.cases import Case, find_cases
from vnet_fast.data.classes import Classes
from vnet_fast.data.planning import Geometry, find_geometries, make_plan
from vnet_fast.errors import InputErrors
from vnet_fast.regions import Region

MANY = 10**9


def cubes(spacing):
    return 16, 16, 16


def eights(spacing):
    return 8, 8, 8


def of(size, spacing, *structures):
    return Geometry(size, spacing, dict(enumerate(structures, start=1)))


def test_the_median_spacing_and_a_window_that_holds_the_median_volume():
    cases = [
        of((100, 120, 80), (1.0, 1.0, 1.5)),
        of((90, 110, 60), (0.8, 0.9, 2.0)),
        of((70, 130, 50), (1.2, 1.1, 1.0)),
    ]
    plan = make_plan(cases, MANY, cubes, coarse=False)
    assert plan.spacing == (1.0, 1.0, 1.5)
    # extents of 84 x 120 x 120 mm in the median
    assert plan.extent == (84.0, 120.0, 120.0)
    assert plan.size == (96, 128, 80)


@pytest.mark.parametrize(
    ("slices", "expected"),
    [([5.0, 5.0, 5.0, 3.6, 5.0], 4.16), ([5.0, 5.0, 5.0, 5.0, 0.4], 2.24), ([0.1, 0.1, 5.0, 5.0, 5.0], 0.8)],
    ids=["percentile", "between", "not finer than the others"],
)
def test_slices_that_lie_far_apart(slices, expected):
    cases = [of((256, 256, 20), (0.8, 0.8, length)) for length in slices]
    assert make_plan(cases, MANY, cubes, coarse=False).spacing == pytest.approx((0.8, 0.8, expected))


def test_slices_far_apart_of_which_there_are_many_keep_the_median():
    cases = [of((256, 256, 100), (0.8, 0.8, length)) for length in (5.0, 5.0, 2.0)]
    assert make_plan(cases, MANY, cubes, coarse=False).spacing == (0.8, 0.8, 5.0)


def test_a_window_is_shortened_where_it_holds_the_largest_share():
    plan = make_plan([of((300, 200, 100), (1.0, 1.0, 1.0))], 128 * 128 * 96, cubes, coarse=False)
    assert plan.spacing == (1.0, 1.0, 1.0)
    x, y, z = plan.size
    assert x * y * z <= 128 * 128 * 96
    assert all(length % 16 == 0 for length in plan.size)
    # no axis could have one more multiple
    assert min((x + 16) * y * z, x * (y + 16) * z, x * y * (z + 16)) > 128 * 128 * 96
    shares = np.array(plan.size) / (300, 200, 100)
    assert shares.max() - shares.min() < 16 / 100 + 16 / 200


def test_a_window_never_has_less_than_two_multiples():
    assert make_plan([of((500, 500, 3), (1.0, 1.0, 1.0))], 1, eights, coarse=False).size == (
        16,
        16,
        16,
    )


def test_a_coarse_grid_has_40_voxels_across_the_smallest_structure():
    large, small = (200.0, 200.0, 200.0), (100.0, 60.0, 36.0)
    cases = [of((400, 400, 300), (0.5, 0.5, 3.0), large, small)]
    plan = make_plan(cases, MANY, eights, coarse=True)
    assert plan.across == pytest.approx(60)
    # slices stay as far apart as they are
    assert plan.spacing == (1.5, 1.5, 3.0)
    assert plan.size == (136, 136, 304)
    assert make_plan(cases, MANY, eights, coarse=False).spacing == (0.5, 0.5, 3.0)


def test_a_coarse_grid_is_a_little_coarser_if_a_window_then_holds_the_volume():
    # 125 voxels of 1.6 mm; with 96 of 2.084 mm the volume fits
    cases = [of((400, 400, 400), (0.5, 0.5, 0.5), (64.0, 64.0, 64.0))]
    plan = make_plan(cases, 96**3, eights, coarse=True)
    assert plan.spacing == pytest.approx((2.084,) * 3, abs=2e-3)
    assert plan.size == (96, 96, 96)
    # but not by more than two fifths
    plan = make_plan(cases, 64**3, eights, coarse=True)
    assert plan.spacing == (1.6, 1.6, 1.6)
    assert plan.size == (64, 64, 64)


def test_without_structures_the_spacing_is_that_of_the_files():
    assert make_plan([of((40, 40, 40), (1.0, 1.0, 1.0))], MANY, eights, coarse=True).spacing == (1.0, 1.0, 1.0)


def test_what_is_given_is_kept():
    cases = [of((100, 100, 100), (1.0, 1.0, 1.0), (90.0, 90.0, 90.0))]
    plan = make_plan(cases, MANY, cubes, coarse=True, spacing=(2.0, 2.0, 2.5))
    assert (plan.spacing, plan.size) == ((2.0, 2.0, 2.5), (64, 64, 48))
    plan = make_plan(cases, MANY, cubes, coarse=False, size=(32, 16, 48))
    assert (plan.spacing, plan.size) == ((1.0, 1.0, 1.0), (32, 16, 48))


def test_a_tiny_spacing_is_planned_at_once():
    plan = make_plan([of((100, 100, 100), (1.0, 1.0, 1.0))], 10**6, cubes, coarse=False, spacing=(1e-6, 1e-6, 1e-6))
    x, y, z = plan.size
    assert 32**3 <= x * y * z <= 10**6


def test_geometries_are_along_the_patient(tmp_path):
    write_case(tmp_path, "A", size=(20, 18, 16), spacing=(1, 2, 3))
    (case,) = find_cases(tmp_path)
    mask = np.zeros((4, 5, 6), np.uint8)
    mask[1, 2:4, 1:5] = 1
    mask[0, 0, 0] = 3
    # x of the file is the patient's z, y is -x, z is -y
    turned = make_image(mask, (1.0, 2.0, 4.0), direction=(0, -1, 0, 0, 0, -1, 1, 0, 0))
    sitk.WriteImage(turned, str(tmp_path / "B.nii.gz"))
    (tmp_path / "C.nii.gz").write_bytes(b"no volume")
    others = [Case(name, tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.nii.gz") for name in "BC"]
    first, second = find_geometries([case, *others], Classes())
    assert (first.size, first.spacing) == ((20, 18, 16), (1.0, 2.0, 3.0))
    assert list(first.structures) == [1]
    assert second == Geometry((5, 4, 6), (2.0, 4.0, 1.0), {1: (4.0, 4.0, 4.0), 3: (2.0, 4.0, 1.0)})
    with pytest.raises(InputErrors, match=r"C\.nii\.gz"):
        find_geometries(others[1:], Classes())
    # what is no class does not count, and what is one counts together
    (one,) = find_geometries(others[:1], Classes(ignored=3))
    assert one.structures == {1: (4.0, 4.0, 4.0)}
    (one,) = find_geometries(others[:1], Classes(binary=True))
    assert one.structures == {1: (8.0, 8.0, 5.0)}
    (one,) = find_geometries(others[:1], Classes(regions=(Region("a", (3,)), Region("b", (1, 3)))))
    assert one.structures == {1: (2.0, 4.0, 1.0), 2: (8.0, 8.0, 5.0)}


def test_a_window_may_have_other_multiples_along_each_axis():
    plan = make_plan([of((200, 200, 20), (0.6, 0.6, 3.6))], 128 * 128 * 16, lambda spacing: (16, 16, 4), coarse=False)
    assert plan.size == (144, 144, 12)
    assert plan.spacing == (0.6, 0.6, 3.6)
