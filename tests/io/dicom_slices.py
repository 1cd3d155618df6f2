"""Writes folders of small DICOM slices."""

import struct

import numpy as np
import pytest
import SimpleITK as sitk

from tests.volumes import make_image

AXIAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)


def write_dicom(folder, positions, series="1.2.3.4", axes=AXIAL, size=(8, 6), shift=0.0, seed=None):
    """Writes a series of slices.

    Args:
        folder: made if it does not exist.
        positions: mm along z, one for each slice, in the order of the files' names.
        series: its unique identifier, with which the files' names begin.
        axes: direction cosines of rows and columns.
        size: voxels, x y.
        shift: mm along y per mm along z, as with a tilted gantry.
        seed: None for a ramp, or the seed of random voxels.

    Returns:
        the folder.
    """
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    generator = np.random.default_rng(seed)
    for index, z in enumerate(positions):
        ramp = np.arange(size[0] * size[1]).reshape(1, *size[::-1]) + 100 * index
        array = ramp if seed is None else generator.integers(0, 1000, (1, *size[::-1]))
        image = make_image(array.astype(np.int16), (0.7, 0.7, 3))
        tags = {
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0008|0018": f"{series}.{index + 1}",
            "0020|0032": f"-5\\{-6 + shift * z}\\{z}",
            "0020|0037": "\\".join(map(str, axes)),
            "0020|0013": str(index),
            "0018|0050": "3",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}-{index}.dcm"))
        writer.Execute(image)
    return folder


def write_series(folder, image, order=None, series="1.2.3.4", frame_of_reference="1.2.9", **tags):
    """Writes an image in any direction as a complete series.

    Args:
        folder: made if it does not exist.
        image: 3-D SimpleITK image, int16.
        order: the slice in each file, in the order of the files' names; that of the image without.
        series: its unique identifier.
        frame_of_reference: its unique identifier, or None.
        **tags: further ones, such as `x00100010="Name"`.

    Returns:
        the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    cosines = np.array(image.GetDirection()).reshape(3, 3)[:, :2].T.ravel()
    slices = range(image.GetSize()[2]) if order is None else order
    for number, index in enumerate(slices):
        single = image[:, :, index : index + 1]
        texts = {
            "0008|0060": "MR",
            "0010|0010": "Doe^Jane",
            "0010|0020": "P1",
            "0020|000d": "1.2.3",
            "0020|000e": series,
            "0008|0018": f"{series}.{index + 1}",
            "0020|0011": "7",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{value:.10g}" for value in image.TransformIndexToPhysicalPoint((0, 0, index))),
            "0020|0037": "\\".join(f"{value:.10g}" for value in cosines),
            "0018|0050": f"{image.GetSpacing()[2]:g}",
            **({"0020|0052": frame_of_reference} if frame_of_reference else {}),
            **{f"{name[1:5]}|{name[5:]}": text for name, text in tags.items()},
        }
        for tag, value in texts.items():
            single.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number:03d}.dcm"))
        writer.Execute(single)
    return folder


def write_thick_slice(folder, thickness, gap=None):
    """Writes a slice that states its thickness, mm, as a text, and perhaps its distance to others.

    Returns:
        the folder.
    """
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    (path,) = write_dicom(folder, [6]).iterdir()
    header = pydicom.dcmread(path)
    header.SpacingBetweenSlices, header.SliceThickness = gap, thickness
    if gap is None:
        del header.SpacingBetweenSlices
    header.save_as(path)
    return folder


def write_frames(folder, positions, scales=None, described=True, spacing=(0.5, 0.7), **changes):
    """Writes one file of several frames, which the ramp of `write_dicom` numbers.

    Args:
        folder: made if it does not exist.
        positions: of the frames, mm, x y z.
        scales: the slope of each frame's intensities, or None.
        described: whether the file says where each frame lies.
        spacing: of a frame, mm, y x.
        **changes: elements of the file to set or, with None, to leave out of its functional groups.

    Returns:
        the folder.
    """
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

    folder.mkdir(exist_ok=True)
    meta = FileMetaDataset()
    # Enhanced MR Image Storage
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.3.4.1"
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = FileDataset(folder / "frames.dcm", {}, file_meta=meta, preamble=bytes(128))
    elements = {
        "SOPClassUID": meta.MediaStorageSOPClassUID, "SOPInstanceUID": "1.2.3.4.1", "Modality": "MR",
        "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Rows": 6, "Columns": 8,
        "NumberOfFrames": len(positions), "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 0,
    }  # fmt: skip

    def item(**values):
        dataset = Dataset()
        for name, value in values.items():
            setattr(dataset, name, value)
        return pydicom.Sequence([dataset])

    shared = {
        "PixelMeasuresSequence": item(PixelSpacing=list(spacing), SliceThickness=3),
        "PlaneOrientationSequence": item(ImageOrientationPatient=list(AXIAL)),
    }
    groups = []
    for index, position in enumerate(positions):
        group = Dataset()
        group.PlanePositionSequence = item(ImagePositionPatient=list(position))
        if scales is not None:
            group.PixelValueTransformationSequence = item(RescaleSlope=scales[index], RescaleIntercept=0)
        groups.append(group)
    if described:
        left = {name: value for name, value in shared.items() if name not in changes}
        elements["SharedFunctionalGroupsSequence"] = item(**left)
        elements["PerFrameFunctionalGroupsSequence"] = pydicom.Sequence(groups)
    for name, value in elements.items():
        setattr(file, name, value)
    ramp = np.arange(48, dtype=np.uint16).reshape(6, 8)
    file.PixelData = np.stack([ramp + 100 * index for index in range(len(positions))]).astype(np.uint16).tobytes()
    file.save_as(folder / "frames.dcm", enforce_file_format=True)
    return folder


def write_without_pixels(path, storage_class):
    """Writes a DICOM file of a storage class that has a patient and a modality, but no pixels."""

    def element(group, number, kind, text):
        value = text.encode() + b" " * (len(text) % 2) if kind != b"UI" else text.encode() + b"\0" * (len(text) % 2)
        return struct.pack("<2H2sH", group, number, kind, len(value)) + value

    meta = element(2, 2, b"UI", storage_class) + element(2, 3, b"UI", "1.2.3.4.5")
    meta += element(2, 0x10, b"UI", "1.2.840.10008.1.2.1")
    length = struct.pack("<2H2sHI", 2, 0, b"UL", 4, len(meta))
    content = element(8, 0x16, b"UI", storage_class) + element(8, 0x18, b"UI", "1.2.3.4.5")
    content += element(8, 0x60, b"CS", "OT") + element(16, 0x10, b"PN", "A")
    path.write_bytes(bytes(128) + b"DICM" + length + meta + content)
