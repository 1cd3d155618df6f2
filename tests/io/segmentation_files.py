"""Writes small DICOM Segmentations and reads them by pydicom alone, without what they are tested against."""

import numpy as np

from tests.volumes import make_image
from vnet_fast.io import volumes
from vnet_fast.io.dicom_seg_writing import Code, Maker, Segment, read_slices, write_segments
from vnet_fast.io.grid import Grid

OBLIQUE = (0.96, -0.28, 0, 0.2104, 0.7214, -0.6598, 0.1848, 0.6334, 0.7514)
TISSUE = Code("85756007", "SCT", "Tissue")
MAKER = Maker("vnet_fast", "1")


def make_labels(size=(9, 7, 8), seed=0):
    """Random (z, y, x) labels 0, 1 and 2 with a slice of background at either end and one in the middle."""
    labels = np.random.default_rng(seed).integers(0, 3, size[::-1]).astype(np.uint8)
    labels[[0, 4, -1]] = 0
    return labels


def make_volume(size=(9, 7, 8), spacing=(0.7, 0.9, 2.5), direction=OBLIQUE, origin=(-31.5, 12.25, 40)):
    """A SimpleITK image of random int16."""
    axes = np.linalg.qr(np.array(direction, dtype=float).reshape(3, 3))
    # the closest orthonormal axes, which are given with four digits
    axes = (axes.Q * np.sign(np.diag(axes.R))).ravel()
    array = np.random.default_rng(1).integers(0, 900, size[::-1], dtype=np.int16)
    return make_image(array, spacing, origin, axes)


def segments(*names):
    """A Segment for each name."""
    return tuple(Segment(name, TISSUE, TISSUE, (200, 100, 50)) for name in names)


def write_segmentation(path, folder, voxels, names=("one", "two")):
    """Writes voxels, on the grid of the series in a folder, as `write_segments` takes them."""
    grid = Grid.of(volumes.read_image(folder))
    write_segments(voxels, grid, path, read_slices(folder), segments(*names), MAKER)
    return path


def decode(dataset):
    """The frames of a binary segmentation that pydicom has read: (segment, position, (y, x) array) of each."""
    count = dataset.Rows * dataset.Columns
    # the first voxel is in the lowest bit
    bits = (np.frombuffer(dataset.PixelData, np.uint8)[:, None] >> np.arange(8) & 1).ravel().astype(np.uint8)
    for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        yield number, position, bits[index * count : (index + 1) * count].reshape(dataset.Rows, dataset.Columns)


def masks_on(dataset, image):
    """The masks of a segmentation that pydicom has read, by segment, on the grid of an image with the same axes."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = [float(value) for value in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
    axes = np.array(image.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(cosines, axes[:, :2].T.ravel(), atol=1e-6)
    measures = shared.PixelMeasuresSequence[0]
    spacing = [*map(float, measures.PixelSpacing[::-1]), float(measures.SpacingBetweenSlices)]
    np.testing.assert_allclose(spacing, image.GetSpacing(), atol=1e-4)
    masks = {item.SegmentNumber: np.zeros(image.GetSize()[::-1], np.uint8) for item in dataset.SegmentSequence}
    for number, position, frame in decode(dataset):
        place = np.array(image.TransformPhysicalPointToContinuousIndex(position))
        np.testing.assert_allclose(place, [0, 0, round(place[2])], atol=1e-3)
        masks[number][round(place[2])] = frame
    return masks
