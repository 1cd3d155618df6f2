"""Volumes of several channels: their files, what a data set says about them, and how CT is normalised."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image, write_case
from vnet_fast.data.cache import Cache
from vnet_fast.data.cases import find_cases, find_images
from vnet_fast.data.channel_files import channels_of
from vnet_fast.data.channels import Channel, are_alike, check_order, declared_channels, find_errors, fitted, scale_case
from vnet_fast.data.preparation import IGNORED, prepare, read_case
from vnet_fast.errors import InputError, InputErrors

# which float32, in which NIfTI stores it, holds
SPACING, SIZE = (1.25, 1.0, 2.0), (20, 18, 16)


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def write_channels(folder, name, channels=2, seed=0, joined=True, size=(20, 18, 16), **options):
    """Writes imagesTr and labelsTr of a case whose further channels are noise; returns the arrays of the channels."""
    for part in ("imagesTr", "labelsTr", "made"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image_path, mask_path = write_case(folder / "made", name, seed, size, SPACING, ".nii.gz", **options)
    image = sitk.ReadImage(str(image_path))
    mask_path.rename(folder / "labelsTr" / f"{name}.nii.gz")
    generator = np.random.default_rng(seed + 100)
    arrays = [sitk.GetArrayFromImage(image)]
    arrays += [generator.normal(50 * n, 20, arrays[0].shape).astype(np.int16) for n in range(1, channels)]
    images = [make_image(array, image.GetSpacing()) for array in arrays]
    if joined:
        sitk.WriteImage(sitk.JoinSeries(images), str(folder / "imagesTr" / f"{name}.nii.gz"))
    else:
        for number, channel in enumerate(images):
            sitk.WriteImage(channel, str(folder / "imagesTr" / f"{name}_{number:04d}.nii.gz"))
    return arrays


def test_channels_in_files_of_their_own(tmp_path):
    touch(tmp_path / "imagesTr", "a_1_0000.nii", "a_1_0001.nii", "b_0000.nii.gz", "b_0001.nrrd")
    touch(tmp_path / "labelsTr", "a_1.nii", "b.nii.gz")
    (first, second) = find_cases(tmp_path)
    assert [path.name for path in first.images] == ["a_1_0000.nii", "a_1_0001.nii"]
    assert [path.name for path in second.images] == ["b_0000.nii.gz", "b_0001.nrrd"]
    assert {name: len(files) for name, files in find_images(tmp_path, several=True).items()} == {"a_1": 2, "b": 2}
    # for a network of one channel they are volumes
    assert list(find_images(tmp_path)) == ["a_1", "a_1_0001", "b", "b_0001"]
    assert channels_of(first.image) == first.images
    assert channels_of(first.others[0]) == first.others


def test_cases_that_are_named_like_channels_stay_cases(tmp_path):
    touch(tmp_path / "imagesTr", "a.nii", "a_0001.nii", "a_0002.nii")
    touch(tmp_path / "labelsTr", "a.nii", "a_0001.nii", "a_0002.nii")
    assert [case.name for case in find_cases(tmp_path)] == ["a", "a_0001", "a_0002"]
    touch(tmp_path / "p", "X_0000.mhd", "X_0001.mhd", "X_segmentation.mhd")
    assert [len(case.images) for case in find_cases(tmp_path / "p")] == [2]


def test_a_missing_channel_is_named(tmp_path):
    touch(tmp_path / "imagesTr", "a_0000.nii", "a_0002.nii", "b_0001.nii")
    touch(tmp_path / "labelsTr", "a.nii", "b.nii")
    with pytest.raises(InputErrors) as caught:
        find_cases(tmp_path)
    assert [str(error).split("/")[-1] for error in caught.value.errors] == [
        "a_0002.nii: its channel 0001 is missing. Add it, or take the case out",
        "b_0001.nii: its channel 0000 is missing. Add it, or take the case out",
    ]


@pytest.mark.parametrize("joined", [True, False])
def test_each_channel_is_normalised_by_itself(tmp_path, joined):
    arrays = write_channels(tmp_path, "A", channels=3, joined=joined)
    (case,) = find_cases(tmp_path)
    images, _, prepared = read_case(case, SPACING, SIZE)
    for image, array in zip(images, arrays, strict=True):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), array)
    assert prepared.channels == 3
    assert prepared.shape == arrays[0].shape
    for number, array in enumerate(arrays):
        alone = prepare("A", array.astype(np.float32), np.zeros(array.shape), [0])
        np.testing.assert_array_equal(prepared.ranks[number], alone.ranks)
        np.testing.assert_array_equal(prepared.image[number], alone.image)


@pytest.mark.parametrize("whole", [False, True])
def test_they_are_read_from_the_cache_as_they_were(tmp_path, whole):
    write_channels(tmp_path, "A", joined=False)
    (case,) = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache", SPACING, (16, 16, 16), whole)
    (first,), (again,) = cache.load([case]), cache.load([case])
    assert first.ranks.shape == (2, 16, 18, 20) if whole else (2, 16, 16, 16)
    for name in ("ranks", "table", "mask", "extent", "covering"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    # another file of a channel is another case
    key = cache.key(case)
    case.others[0].write_bytes(case.image.read_bytes())
    assert cache.key(case) != key


def test_channels_on_another_grid_are_refused(tmp_path):
    write_channels(tmp_path, "A", joined=False)
    (case,) = find_cases(tmp_path)
    sitk.WriteImage(make_image(np.random.default_rng(0).normal(size=(16, 18, 19)), SPACING), str(case.others[0]))
    message = r"A_0001\.nii\.gz: its size is 19 18 16, that of A_0000\.nii\.gz is 20 18 16\. Resample the channels"
    with pytest.raises(InputError, match=message):
        read_case(case, SPACING, SIZE)


def test_five_axes_and_channels_of_other_formats_are_refused(tmp_path):
    write_channels(tmp_path, "A")
    (case,) = find_cases(tmp_path)
    image = sitk.ReadImage(str(case.image))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(case.image))
    with pytest.raises(InputError, match=r"is 5-D \(20 x 18 x 16 x 2 x 2\)"):
        read_case(case, SPACING, SIZE)
    sitk.WriteImage(image, str(case.image))
    sitk.WriteImage(image, str(case.mask))
    with pytest.raises(InputError, match=r"is 4-D \(20 x 18 x 16 x 2\)"):
        read_case(case, SPACING, SIZE)


def described(folder, **content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "content",
    [{"modality": {"0": "FLAIR", "1": "CT"}}, {"channel_names": {"1": "CT", "0": "FLAIR"}},
     {"channel_names": ["FLAIR", "CT"], "modality": {"0": "other"}}],
    ids=["Decathlon", "nnU-Net", "list"],
)  # fmt: skip
def test_channels_that_a_data_set_declares(tmp_path, content):
    channels = declared_channels(described(tmp_path, **content))
    assert [(channel.name, channel.is_ct) for channel in channels] == [("FLAIR", False), ("CT", True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"channel_names": {}}, "its channel_names must be an object with a name for each channel"),
        ({"channel_names": 7}, "its channel_names must be an object with a name for each channel"),
        ({"modality": {"0": "MRI", "2": "T2"}}, "its modality must name the channels 0 to 1; 1 is None"),
        ({"channel_names": {"0": 7}}, "its channel_names must name the channels 0 to 0; 0 is 7"),
    ],
)
def test_descriptions_of_channels_that_are_none(tmp_path, content, message):
    with pytest.raises(InputError, match=message):
        declared_channels(described(tmp_path, **content))


def test_a_data_set_says_nothing(tmp_path):
    assert declared_channels(tmp_path) == declared_channels(described(tmp_path, labels={})) == ()
    # other programs call something else so
    assert declared_channels(described(tmp_path, modality=7)) == ()
    assert declared_channels(described(tmp_path, modality="CT")) == (Channel("CT"),)


def test_one_channel_may_have_another_name(tmp_path):
    described(tmp_path, channel_names={"0": "T1"})
    check_order(tmp_path, (Channel("MRI"),))
    with pytest.raises(InputError, match="names the channels T1, and the network was trained on CT"):
        check_order(tmp_path, (Channel("CT"),))
    # nothing to compare with
    (tmp_path / "dataset.json").write_text("{")
    check_order(tmp_path, (Channel(),))


def noise(name, channels, seed=0):
    generator = np.random.default_rng(seed)
    shape = (channels, 4, 5, 6) if channels > 1 else (4, 5, 6)
    return prepare(name, generator.normal(size=shape), np.ones((4, 5, 6)), [1])


def test_cases_with_other_numbers_of_channels_are_all_named(tmp_path):
    cases = [noise(name, channels) for name, channels in (("A", 2), ("B", 1), ("C", 2), ("D", 3))]
    images = {case.name: tmp_path / case.name for case in cases}
    errors = [str(error) for error in find_errors(cases, images, (), tmp_path)]
    assert errors == [
        f"{tmp_path}/B: has 1 channel, and other cases have 2. Add what is missing, or take the case out",
        f"{tmp_path}/D: has 3 channels, and other cases have 2. Add what is missing, or take the case out",
    ]
    errors = find_errors(cases, images, (Channel("T2"),), tmp_path)
    assert [error.cause for error in errors] == [
        f"has {n} channels, and dataset.json of {tmp_path} names 1" for n in (2, 2, 3)
    ]


@pytest.mark.parametrize("folder", ["", "imagesTr", "imagesTs"])
def test_channels_in_another_order_are_refused(tmp_path, folder):
    described(tmp_path, channel_names={"0": "T1c", "1": "FLAIR"})
    (tmp_path / folder).mkdir(exist_ok=True)
    check_order(tmp_path / folder, (Channel("t1c"), Channel("FLAIR")))
    check_order(tmp_path / folder, (Channel(), Channel()))
    with pytest.raises(InputError, match="names the channels T1c, FLAIR, and the network was trained on FLAIR, T1c"):
        check_order(tmp_path / folder, (Channel("FLAIR"), Channel("T1c")))


def test_ct_is_clipped_and_scaled_by_the_structures_of_the_data_set():
    generator, cases, inside = np.random.default_rng(0), [], []
    for index in range(3):
        values = np.rint(generator.normal(-300, 200, (12, 13, 14))).astype(np.float32)
        mask = np.zeros(values.shape, np.uint8)
        mask[2:9, 3:9, 4:10] = index + 1
        values[mask > 0] = np.rint(generator.normal(60 + 10 * index, 30, (mask > 0).sum()))
        values[0] = np.nan
        inside.append(values[mask > 0])
        cases.append(prepare(str(index), values, mask, [0, index + 1], raw=[True]))
    (channel,) = fitted([Channel("CT")], cases, "DIR")
    values = np.concatenate(inside).astype(np.float64)
    expected = [*np.percentile(values, [0.5, 99.5]), values.mean(), values.std()]
    np.testing.assert_allclose(channel.scaling, expected, atol=1.0)
    low, high, mean, deviation = channel.scaling
    scaled = scale_case(cases[0], [channel])
    raw = np.where(np.isnan(cases[0].image), 0, cases[0].image)
    np.testing.assert_allclose(scaled.image, (np.clip(raw, low, high) - mean) / deviation, atol=1e-5)
    # as in prediction, where there are no ranks
    np.testing.assert_allclose(channel.normalised(cases[0].image, cases[0].image), scaled.image, atol=1e-5)
    assert scaled.image.min() == pytest.approx((low - mean) / deviation, abs=1e-5)
    assert scale_case(cases[0], [Channel()]) is cases[0]


def test_ct_and_mr_in_one_volume(tmp_path):
    write_channels(tmp_path, "A", joined=False)
    (case,) = find_cases(tmp_path)
    cache = Cache(tmp_path / "cache", SPACING, SIZE, raw=[True, False])
    (prepared,) = cache.load([case])
    (again,) = cache.load([case])
    np.testing.assert_array_equal(again.table, prepared.table)
    assert cache.key(case) != Cache(tmp_path / "cache", SPACING, SIZE).key(case)
    raw = sitk.GetArrayFromImage(sitk.ReadImage(str(case.image)))
    np.testing.assert_allclose(prepared.image[0].mean(), raw.mean(), rtol=0.02)
    np.testing.assert_allclose(prepared.image[1].std(), 1, rtol=0.02)


def test_structures_of_one_value_can_not_scale_ct():
    case = prepare("A", np.arange(120.0).reshape(4, 5, 6), np.zeros((4, 5, 6)), [0], raw=[True])
    with pytest.raises(InputError, match=r"DIR: its masks have no structure to scale CT by"):
        fitted([Channel("CT")], [case], "DIR")
    case.mask[0, 0, 0] = 1
    with pytest.raises(InputError, match="DIR: all structures have the intensity 0 in channel 0, which is CT"):
        fitted([Channel("ct")], [case], "DIR")
    case.mask[:] = IGNORED
    with pytest.raises(InputError, match=r"DIR: its masks have no structure to scale CT by"):
        fitted([Channel("CT")], [case], "DIR", ignored=9)
    # a label like any other
    assert fitted([Channel("CT")], [case], "DIR")[0].scaling is not None


def test_scalings_may_differ_by_rounding():
    first = Channel("CT", (-100.0, 300.0, 50.0, 30.0)), Channel("T1")
    assert are_alike(first, (Channel("CT", (-100.0, 300.0, 50.0000001, 30.0)), Channel("T1")))
    for second in ((Channel("CT", (-100.0, 300.0, 51.0, 30.0)), first[1]), (first[0],), (Channel("CT"), first[1])):
        assert not are_alike(first, second)
