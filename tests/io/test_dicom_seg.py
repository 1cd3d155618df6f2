"""DICOM Segmentations that are written, and read back by highdicom, by pydicom alone and by the own reader."""

import sys
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")

from pydicom.uid import (  # noqa: E402
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)

from tests.io.dicom_slices import SAGITTAL, write_dicom, write_series  # noqa: E402
from tests.io.segmentation_files import (  # noqa: E402
    MAKER,
    OBLIQUE,
    make_labels,
    make_volume,
    masks_on,
    segments,
    write_segmentation,
)
from vnet_fast.errors import InputError  # noqa: E402
from vnet_fast.io import dicom_seg, formats, volumes  # noqa: E402
from vnet_fast.io.dicom_meta import read_meta  # noqa: E402
from vnet_fast.io.dicom_seg_writing import read_slices, write_segments  # noqa: E402
from vnet_fast.io.grid import Grid  # noqa: E402

IDENTITY = (1, 0, 0, 0, 1, 0, 0, 0, 1)
# from the last slice to the first: the third axis is against the normal of the slices
REVERSED = (1, 0, 0, 0, 1, 0, 0, 0, -1)
SAGITTAL_AXES = (0, 0, -1, 1, 0, 0, 0, -1, 0)
SHUFFLED = (3, 0, 7, 5, 1, 6, 2, 4)


def same_grid(first, second, tolerance=1e-4):
    for name in ("size", "spacing", "origin", "direction"):
        np.testing.assert_allclose(getattr(Grid.of(first), name), getattr(Grid.of(second), name), atol=tolerance)


@pytest.fixture
def series(tmp_path):
    """The folder of an oblique series whose files are not sorted."""
    return write_series(tmp_path / "series", make_volume(), SHUFFLED)


@pytest.fixture
def written(tmp_path, series):
    """The file of a segmentation of the series, and its labels."""
    labels = make_labels()
    return write_segmentation(tmp_path / "mask.dcm", series, labels), labels


def changed(path, change, **how):
    """Writes a segmentation again after a change of its elements."""
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path, **how)
    return path


@pytest.mark.parametrize(
    ("direction", "order"),
    [(IDENTITY, None), (REVERSED, None), (REVERSED, SHUFFLED), (OBLIQUE, SHUFFLED), (SAGITTAL_AXES, SHUFFLED)],
    ids=["axial", "reversed", "reversed and shuffled", "oblique", "sagittal"],
)
def test_voxels_and_geometry_come_back(tmp_path, direction, order):
    folder = write_series(tmp_path / "series", make_volume(direction=direction), order)
    image, labels = volumes.read_image(folder), make_labels()
    path = write_segmentation(tmp_path / "mask.dcm", folder, labels)
    # by the own reader
    mask = volumes.read_mask(path, image, folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)
    same_grid(mask, image, 0)
    # by pydicom alone
    masks = masks_on(pydicom.dcmread(path), image)
    for number in (1, 2):
        np.testing.assert_array_equal(masks[number], labels == number)
    # by highdicom, on the grid that it takes from the slices
    slices = [pydicom.dcmread(file) for file in folder.iterdir()]
    source = highdicom.get_volume_from_series(slices)
    found = highdicom.seg.segread(path).get_volume(combine_segments=True).match_geometry(source)
    theirs = source.array
    flipped = not np.array_equal(theirs, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(theirs[::-1] if flipped else theirs, sitk.GetArrayFromImage(image))
    np.testing.assert_array_equal(found.array[::-1] if flipped else found.array, labels)


def test_what_a_segmentation_says(tmp_path):
    folder = write_series(tmp_path / "series", make_volume(), x00080005="ISO_IR 100", x00100010="M\u00fcller^Jane")
    for file in folder.iterdir():
        changed(file, lambda header: setattr(header, "PatientName", "M\u00fcller^Jane"))
    path = write_segmentation(tmp_path / "mask.dcm", folder, make_labels(), ("größer", "前立腺"))
    said, slices = pydicom.dcmread(path), read_slices(folder)
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert said[name].value == slices[0][name].value
    assert (str(said.PatientName), said.SeriesNumber, said.Modality) == ("Müller^Jane", 701, "SEG")
    assert said.SeriesInstanceUID != slices[0].SeriesInstanceUID
    assert [item.SegmentLabel for item in said.SegmentSequence] == ["größer", "前立腺"]
    assert dicom_seg.read_names(path) == {1: "größer", 2: "前立腺"}
    item = said.SegmentSequence[0]
    assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "85756007"
    assert (item.SegmentAlgorithmType, item.SegmentAlgorithmName) == ("AUTOMATIC", "vnet_fast")
    referenced = said.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == slices[0].SeriesInstanceUID
    assert {entry.ReferencedSOPInstanceUID for entry in referenced.ReferencedInstanceSequence} == {
        header.SOPInstanceUID for header in slices
    }


def test_slices_that_are_left_out_are_background(written, series):
    path, labels = written
    groups = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    # two segments in five of the eight slices
    assert len(groups) == 10
    alone = volumes.read_mask(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(alone), labels[1:7])
    image = volumes.read_image(series)
    np.testing.assert_allclose(alone.GetOrigin(), image.TransformIndexToPhysicalPoint((0, 0, 1)), atol=1e-6)
    np.testing.assert_allclose(alone.GetSpacing(), image.GetSpacing(), atol=1e-6)


def test_an_empty_mask(tmp_path, series, capfd, caplog):
    path = write_segmentation(tmp_path / "mask.dcm", series, np.zeros((8, 7, 9), np.uint8))
    image = volumes.read_image(series)
    assert not sitk.GetArrayViewFromImage(volumes.read_mask(path, image, series)).any()
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_single_slice(tmp_path):
    folder = write_series(tmp_path / "series", make_volume((9, 7, 1)))
    labels = np.random.default_rng(0).integers(0, 3, (1, 7, 9)).astype(np.uint8)
    path = write_segmentation(tmp_path / "mask.dcm", folder, labels)
    for mask in (volumes.read_mask(path, volumes.read_image(folder), folder), volumes.read_mask(path)):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)


def rounded_position(header):
    header.ImagePositionPatient = [round(float(value), 1) for value in header.ImagePositionPatient]


def test_positions_that_are_rounded(tmp_path):
    image = make_volume((9, 7, 8), (0.7, 0.9, 5 / 3), IDENTITY)
    folder = write_series(tmp_path / "series", image)
    for file in folder.iterdir():
        changed(
            file, lambda h: setattr(h, "ImagePositionPatient", [round(float(v), 1) for v in h.ImagePositionPatient])
        )
    labels = make_labels()
    path = write_segmentation(tmp_path / "mask.dcm", folder, labels)
    mask = volumes.read_mask(path, volumes.read_image(folder), folder)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_mask(path)), labels[1:7])


def test_segments_that_overlap(tmp_path, series):
    labels = make_labels()
    both = np.stack([labels > 0, labels == 2], axis=-1).astype(np.uint8)
    path = write_segmentation(tmp_path / "mask.dcm", series, both, ("whole", "core"))
    image = volumes.read_image(series)
    masks = masks_on(pydicom.dcmread(path), image)
    np.testing.assert_array_equal(masks[1], labels > 0)
    np.testing.assert_array_equal(masks[2], labels == 2)
    with pytest.raises(InputError, match=r"mask.dcm: segments 1 \(whole\) and 2 \(core\) overlap, and a mask has one"):
        volumes.read_mask(path, image, series)


def test_probabilities(tmp_path, series):
    values = np.random.default_rng(0).random((8, 7, 9, 2)).astype(np.float32)
    path = write_segmentation(tmp_path / "p.dcm", series, values)
    dataset, image = pydicom.dcmread(path), volumes.read_image(series)
    found = np.full_like(values, np.nan)
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        index = image.TransformPhysicalPointToIndex(position)[2]
        found[index, ..., number - 1] = frame / dataset.MaximumFractionalValue
    np.testing.assert_allclose(found, values, atol=0.5 / 255 + 1e-6)
    with pytest.raises(InputError, match=r"p.dcm: a fractional segmentation, which holds no labels"):
        volumes.read_mask(path, image, series)


def test_a_fractional_segmentation_of_whole_voxels_is_a_mask(tmp_path, series):
    labels = make_labels()
    both = np.stack([labels == 1, labels == 2], axis=-1).astype(np.float32)
    path = write_segmentation(tmp_path / "mask.dcm", series, both)
    mask = volumes.read_mask(path, volumes.read_image(series), series)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)


@pytest.mark.parametrize("turned", [(0, 1, 2), (1, 0, 2), (2, 0, 1)], ids=str)
@pytest.mark.parametrize("flipped", [(False,) * 3, (True, False, True), (True,) * 3], ids=str)
def test_axes_in_any_order_and_direction(tmp_path, written, series, turned, flipped):
    """As of a NIfTI file that another program has made of the series."""
    path, labels = written
    image = sitk.Flip(sitk.PermuteAxes(volumes.read_image(series), turned), flipped)
    mask = volumes.read_mask(path, image)
    expected = Grid.of(volumes.read_image(series)).image_from(labels)
    expected = sitk.Flip(sitk.PermuteAxes(expected, turned), flipped)
    same_grid(mask, image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), sitk.GetArrayFromImage(expected))


def other_volume(**how):
    return lambda image: make_volume(**how)


def shifted(x, y, z):
    def shift(image):
        image.SetOrigin(image.TransformContinuousIndexToPhysicalPoint((x, y, z)))
        return image

    return shift


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (other_volume(size=(9, 8, 8)), r"its frames have 9 x 7 voxels, the slices of volume\.mha 9 x 8"),
        (other_volume(spacing=(0.7, 0.95, 2.5)), r"its spacing is 0\.7 0\.9, that of volume\.mha is 0\.7 0\.95"),
        (other_volume(direction=IDENTITY), r"its direction is .* that of volume\.mha is 1 0 0 0 1 0 0 0 1"),
        (other_volume(spacing=(0.7, 0.9, 2.9)), r"a frame lies at .* mm, which is no slice of volume\.mha"),
        (other_volume(size=(9, 7, 6)), "which is no slice of"),
        (shifted(0, 0, 0.5), "which is no slice of"),
        (shifted(0, 0, 0.2), "which is no slice of"),
        (shifted(0, 0, 2), "which is no slice of"),
        (shifted(1, 0, 0), "which is no slice of"),
        (shifted(0, -0.5, 0), "which is no slice of"),
    ],
)
def test_another_geometry_is_one_line(tmp_path, written, series, other, message):
    path, _ = written
    with pytest.raises(InputError, match=rf"mask\.dcm: .*{message}") as raised:
        volumes.read_mask(path, other(volumes.read_image(series)), "volume.mha")
    assert "\n" not in str(raised.value)


def test_another_frame_of_reference(tmp_path, written):
    path, _ = written
    other = write_series(tmp_path / "other", make_volume(), series="1.2.3.5", frame_of_reference="1.2.10")
    with pytest.raises(InputError, match=r"its frame of reference is 1\.2\.9, that of other is 1\.2\.10"):
        volumes.read_mask(path, volumes.read_image(other), other)


def test_two_masks_on_one_grid(tmp_path, written, series):
    path, labels = written
    moved = np.roll(labels, 1, axis=0)
    other = write_segmentation(tmp_path / "other.dcm", series, moved)
    # the first has voxels in slices 1 to 6, the second in 2 to 7
    mask, reference = volumes.read_masks(path, other)
    same_grid(mask, reference, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels[1:])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(reference), moved[1:])
    plain = tmp_path / "plain.nii.gz"
    sitk.WriteImage(Grid.of(volumes.read_image(series)).image_from(moved), str(plain))
    for pair in ((path, plain), (plain, path)):
        for file, found in zip(pair, volumes.read_masks(*pair), strict=True):
            np.testing.assert_array_equal(sitk.GetArrayFromImage(found), labels if file == path else moved)


def test_masks_of_two_series_are_not_compared(tmp_path, written):
    path, labels = written
    for name, how in {"spacing": {"spacing": (0.7, 0.8, 2.5)}, "frame": {}}.items():
        uid = "1.2.9" if name == "spacing" else "1.2.10"
        folder = write_series(tmp_path / name, make_volume(**how), frame_of_reference=uid)
        other = write_segmentation(tmp_path / f"{name}.dcm", folder, labels)
        with pytest.raises(InputError, match=r"mask\.dcm: .* (differ from its own in|frame of reference)"):
            volumes.read_masks(path, other)


def label_map(dataset):
    slices, labels, source = dataset
    described = [
        highdicom.seg.SegmentDescription(
            number, name, highdicom.sr.CodedConcept("85756007", "SCT", "Tissue"),
            highdicom.sr.CodedConcept("85756007", "SCT", "Tissue"), "MANUAL",
        )
        for number, name in ((1, "one"), (2, "two"))
    ]  # fmt: skip
    return highdicom.seg.Segmentation(
        slices, labels, "LABELMAP", described, "1.2.5", 1, "1.2.6", 1, "maker", "model", "1", "none", **source
    )


@pytest.mark.parametrize("syntax", ["plain", "RLE", "JPEG-LS"])
def test_label_maps(tmp_path, series, syntax):
    labels, path = make_labels(), tmp_path / "map.dcm"
    how = {"RLE": {"transfer_syntax_uid": RLELossless}, "JPEG-LS": {"transfer_syntax_uid": JPEGLSLossless}}
    label_map((read_slices(series), labels, how.get(syntax, {}))).save_as(path)
    image = volumes.read_image(series)
    if syntax == "JPEG-LS":
        with pytest.raises(InputError, match=r"its voxels are stored as JPEG-LS Lossless .*, which is not read"):
            volumes.read_mask(path, image, series)
        return
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_mask(path, image, series)), labels)
    assert dicom_seg.read_names(path) == {1: "one", 2: "two"}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_encodings_of_the_elements(written, series, syntax):
    path, labels = written
    changed(path, lambda d: setattr(d.file_meta, "TransferSyntaxUID", syntax),
            implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)  # fmt: skip
    mask = volumes.read_mask(path, volumes.read_image(series), series)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels)


def test_big_endian_is_not_read(written):
    path, _ = written
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(path, dataset, implicit_vr=False, little_endian=False)
    with pytest.raises(InputError, match="its voxels are stored as Explicit VR Big Endian, which is not read"):
        volumes.read_mask(path)


def test_a_deflated_bomb(written, monkeypatch):
    path, _ = written
    changed(path, lambda d: setattr(d.file_meta, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian),
            implicit_vr=False, little_endian=True)  # fmt: skip
    content = path.read_bytes()
    _, head = read_meta(path)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join([deflate.compress(bytes(1 << 20)) for _ in range(20)]) + deflate.flush()
    path.write_bytes(content[:head] + bomb)
    monkeypatch.setattr("vnet_fast.io.dicom_elements.MAX_INFLATED", 1 << 24)
    with pytest.raises(InputError, match=r"mask\.dcm: inflates to more than 16 MB"):
        volumes.read_mask(path)
    path.write_bytes(content[:-40])
    with pytest.raises(InputError, match="truncated: the compressed data ends early"):
        volumes.read_mask(path)


def without(*names):
    def change(dataset):
        for name in names:
            delattr(dataset, name)

    return change


def with_value(name, value):
    return lambda dataset: setattr(dataset, name, value)


def in_frame(change, index=0):
    return lambda dataset: change(dataset.PerFrameFunctionalGroupsSequence[index])


def shared(change):
    return lambda dataset: change(dataset.SharedFunctionalGroupsSequence[0])


def segment_number(number):
    return lambda group: setattr(group.SegmentIdentificationSequence[0], "ReferencedSegmentNumber", number)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("PixelData"), r"truncated: it has no voxels \(PixelData is missing\)"),
        (with_value("PixelData", b"\0\0"), r"truncated: 2 bytes of voxels where its header states 79"),
        (with_value("PixelData", b"\0" * 90), r"damaged: 90 bytes of voxels where its header states 79"),
        (with_value("Rows", 8), "truncated: 80 bytes of voxels where its header states 90"),
        (with_value("Rows", 0), "its header gives 10 frames of 9 x 0 voxels"),
        (without("Columns"), "damaged DICOM file: Columns is missing"),
        (with_value("NumberOfFrames", 9), "damaged"),
        (with_value("NumberOfFrames", 2**31 - 1), "truncated: 80 bytes of voxels where its header states"),
        (with_value("BitsAllocated", 8), "damaged: it is of type BINARY with 8 bits"),
        (with_value("SegmentationType", "OTHER"), "damaged: it is of type OTHER with 1 bits"),
        (with_value("SamplesPerPixel", 3), "damaged: it is of type BINARY"),
        (without("SegmentSequence"), "damaged DICOM file: SegmentSequence is missing"),
        (without("PerFrameFunctionalGroupsSequence"), "PerFrameFunctionalGroupsSequence is missing"),
        (lambda d: d.PerFrameFunctionalGroupsSequence.pop(), "damaged: it has 10 frames, and describes 9"),
        (with_value("SOPClassUID", "1.2.840.10008.5.1.4.1.1.4"), "truncated or damaged: not a DICOM Segmentation"),
        (in_frame(without("PlanePositionSequence")), r"do not say where they lie .*\(PlanePositionSequence is missing"),
        (in_frame(segment_number(3)), "damaged: it does not describe segment 3"),
        (in_frame(segment_number(0)), "damaged: frame 1 is of segment 0"),
        (in_frame(segment_number(2)), "has two frames of segment 2 in one slice"),
        (shared(without("PlaneOrientationSequence")), r"\(PlaneOrientationSequence is missing\)"),
        (shared(without("PixelMeasuresSequence")), r"\(PixelMeasuresSequence is missing\)"),
        (shared(lambda g: setattr(g.PixelMeasuresSequence[0], "PixelSpacing", [0, 1])), "its spacing is 1 0 1 mm"),
        (
            shared(lambda g: setattr(g.PlaneOrientationSequence[0], "ImageOrientationPatient", [1, 0, 0, 1, 0, 0])),
            "whose axes are not perpendicular unit vectors",
        ),
        (lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 1), "damaged: it describes segment 1 twice"),
        (lambda d: setattr(d.SegmentSequence[1], "SegmentNumber", 300), "has segment 300, and a mask has labels up to"),
    ],
)  # fmt: skip
def test_a_damaged_segmentation_is_one_line(written, series, change, message):
    path, _ = written
    changed(path, change)
    with pytest.raises(InputError, match=rf"mask\.dcm: .*{message}") as raised:
        volumes.read_mask(path, volumes.read_image(series), series)
    assert "\n" not in str(raised.value)


def test_a_truncated_file_is_one_line(written, series):
    path, _ = written
    content, image = path.read_bytes(), volumes.read_image(series)
    # the last byte only makes the number of bytes even
    for length in [*range(1, len(content), 97), len(content) - 2]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"mask\.dcm: "):
            volumes.read_mask(path, image, series)


def test_a_file_of_another_program(tmp_path):
    """One of dcmqi, of which pydicom has the first frame, the places of all three, and no number of frames."""
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("liver_1frame.dcm", download=False))
    expected = dataset.pixel_array > 0
    dataset.save_as(tmp_path / "liver.dcm")
    with pytest.raises(InputError, match=r"liver\.dcm: damaged: it has 1 frames, and describes 3"):
        volumes.read_mask(tmp_path / "liver.dcm")
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:1]
    dataset.save_as(tmp_path / "liver.dcm")
    mask = volumes.read_mask(tmp_path / "liver.dcm")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), expected[None])
    np.testing.assert_allclose(mask.GetSpacing(), (0.810547, 0.810547, 1), atol=1e-6)
    assert dicom_seg.read_names(tmp_path / "liver.dcm") == {1: "Liver"}


def test_files_that_are_no_segmentations(tmp_path, series, written):
    path, _ = written
    with pytest.raises(InputError, match=r"000\.dcm: a DICOM slice, not a volume"):
        volumes.read_mask(series / "000.dcm")
    for read in (volumes.read_image, lambda file: volumes.read_channels([file])):
        with pytest.raises(InputError, match=r"mask\.dcm: a DICOM Segmentation, which is a mask, not a volume"):
            read(path)
    path.rename(series / "mask.dcm")
    with pytest.raises(InputError, match=r"mask\.dcm: a DICOM Segmentation, which is a mask"):
        volumes.read_image(series)


def test_segmentations_are_found(tmp_path, series, written):
    path, _ = written
    assert formats.volumes_in(tmp_path) == {"mask": path, "series": series}
    (tmp_path / "mask").mkdir()
    inner = path.rename(tmp_path / "mask" / "1-1")
    assert formats.volumes_in(tmp_path) == {"mask": inner, "series": series}
    assert not formats.is_dicom_folder(tmp_path / "mask")
    (tmp_path / "mask" / "second.dcm").write_bytes(inner.read_bytes())
    assert formats.volumes_in(tmp_path) == {"series": series}
    assert formats.stem_of("a.b.dcm") == "a.b"


def test_a_package_that_is_missing(written, series, monkeypatch):
    path, _ = written
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"DICOM Segmentations need pydicom, .* pip install 'vnet_fast\["):
        volumes.read_mask(path)


@pytest.mark.parametrize("number", ["-3", "0", "2147483647", ""])
def test_any_number_of_a_series(tmp_path, number):
    folder = write_series(tmp_path / "series", make_volume(), x00200011=number)
    path = write_segmentation(tmp_path / "mask.dcm", folder, make_labels())
    assert 1 <= pydicom.dcmread(path).SeriesNumber < 2**31


@pytest.mark.parametrize("given", [{}, {"SliceThickness": ""}], ids=["missing", "empty"])
def test_slices_without_a_thickness(tmp_path, given):
    """Their distance takes its place."""
    folder = write_series(tmp_path / "series", make_volume())
    for file in folder.iterdir():
        changed(file, lambda header: (header.pop("SliceThickness"), header.update(given)))
    path = write_segmentation(tmp_path / "mask.dcm", folder, make_labels())
    shared = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0]
    assert float(shared.PixelMeasuresSequence[0].SliceThickness) == pytest.approx(2.5)


def test_series_of_which_none_can_be_written(tmp_path):
    folder = write_series(tmp_path / "series", make_volume(), frame_of_reference=None)
    with pytest.raises(InputError, match=r"000\.dcm: lacks FrameOfReferenceUID, to which a DICOM Segm"):
        read_slices(folder)
    other = write_dicom(tmp_path / "other", [0, 3, 6], axes=SAGITTAL)
    with pytest.raises(InputError, match="the same position"):
        read_slices(other)
    (tmp_path / "one").mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.uint8)), str(tmp_path / "one" / "x.dcm"))
    with pytest.raises(InputError, match=r"x\.dcm: has several frames, of which no DICOM Segmentation is written"):
        read_slices(tmp_path / "one")


def test_a_file_is_whole_or_not_there(tmp_path, series, monkeypatch):
    slices, grid = read_slices(series), Grid.of(volumes.read_image(series))
    path = tmp_path / "mask.dcm"

    def fail(self, file, **how):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(highdicom.seg.Segmentation, "save_as", fail)
    with pytest.raises(InputError, match=r"mask\.dcm: can't be written \(No space left on device\)"):
        write_segments(make_labels(), grid, path, slices, segments("one", "two"), MAKER)
    assert [file.name for file in tmp_path.iterdir()] == ["series"]


def test_sheared_frames_are_no_grid(written):
    path, _ = written

    def shear(dataset):
        for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
            x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
            group.PlanePositionSequence[0].ImagePositionPatient = [x + number, y, z]

    changed(path, shear)
    with pytest.raises(InputError, match=r"mask\.dcm: its frames (do not lie on a regular grid|are not evenly spaced)"):
        volumes.read_mask(path)


@pytest.mark.parametrize(
    ("gap", "thickness"), [("2.5", "4"), (None, "4"), ("0.25", "2.5"), (None, None), ("0", "1")], ids=str
)
def test_the_distance_of_slices(written, gap, thickness):
    """Some programs leave it out, or state the distance from edge to edge."""
    path, labels = written

    def change(dataset):
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        for name, value in (("SpacingBetweenSlices", gap), ("SliceThickness", thickness)):
            delattr(measures, name)
            if value is not None:
                setattr(measures, name, value)

    mask = volumes.read_mask(changed(path, change))
    assert mask.GetSpacing()[2] == pytest.approx(2.5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask), labels[1:7])
