"""MetaImage and NRRD files with headers as other programs write them: makers, as in `written_by_itk.py`.

The headers are put together here, with the programs' order of fields, and with fields of their own.
"""

import gzip
import zlib
from functools import partial

from tests.io.written_by_itk import ARRAY


def written_text(suffix, header, data_name=None, order="<", dtype="i2", pack=bytes, end="\n"):
    """A header in text, which may state the number of `packed` bytes, and voxels behind it or in a file of a name."""

    def make(folder):
        data = pack(ARRAY.astype(order + dtype).tobytes())
        text = header.format(packed=len(data)).replace("\n", end).encode()
        path = folder / f"x{suffix}"
        path.write_bytes(text if data_name else text + data)
        if data_name:
            (folder / data_name).write_bytes(data)
        return path

    return make


meta = partial(written_text, ".mha")
MATRIX = "0.96 0.28 0 -0.28 0.96 0 0 0 1"
META_START = "ObjectType = Image\nNDims = 3\nBinaryData = True\n"
PLASTIMATCH = f"""{META_START}BinaryDataByteOrderMSB = False
TransformMatrix = {MATRIX}
Offset = 10.000000 -20.000000 30.000000
CenterOfRotation = 0 0 0
ElementSpacing = 0.500000 0.750000 3.000000
DimSize = 5 4 3
AnatomicalOrientation = RAI
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""
ELASTIX = f"""{META_START}BinaryDataByteOrderMSB = False
CompressedData = True
CompressedDataSize = {{packed}}
TransformMatrix = {MATRIX}
Offset = 10 -20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.5 0.75 3
ITK_InputFilterName = MetaImageIO
Modality = MET_MOD_UNKNOWN
DimSize = 5 4 3
ElementType = MET_SHORT
ElementDataFile = result.0.zraw
"""
IMAGEJ = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = True
Comment = 8-bit: from a stack
Offset = 10.0 -20.0 30.0
ElementSpacing = 0.5 0.75 3.0
DimSize = 5 4 3
ElementType = MET_USHORT
ElementDataFile = x.raw
"""
VTK = f"""{META_START}BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 -20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = ???
ElementSpacing = 0.5 0.75 3
DimSize = 5 4 3
ElementType = MET_DOUBLE
ElementDataFile = x.raw
"""
PLUS = f"""{META_START}AnatomicalOrientation = RAI
BinaryDataByteOrderMSB = False
CenterOfRotation = 0 0 0
CompressedData = False
DimSize = 5 4 3         \nElementNumberOfChannels = 1
ElementByteOrderMSB = False
ElementSpacing = 0.5 0.75 3
ElementType = MET_UCHAR
Kinds = domain domain list
Offset = 10 -20 30
TransformMatrix = {MATRIX}
UltrasoundImageOrientation = MFA
UltrasoundImageType = BRIGHTNESS
Seq_Frame0000_ProbeToTrackerTransform = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1
Seq_Frame0000_ProbeToTrackerTransformStatus = OK
ElementDataFile = LOCAL
"""
MATLAB = """NDims = 3
DimSize = 5 4 3
ElementType = MET_USHORT
ElementSpacing = 0.50000 0.75000 3.00000
ElementByteOrderMSB = False
Position = 1.0e+01 -2.0e+01 3.0e+01
ElementDataFile = LOCAL
"""
SEVERAL_LINES = f"""{META_START}BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = {MATRIX}
Offset = 10 -20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.5 0.75 3
Note = one
two
three
Name of the patient: Müller = Meier
empty =

= nothing
Version: 2
DimSize = 5 4 3
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""

nrrd = partial(written_text, ".nrrd")
TEEM = "# Complete NRRD file format specification at:\n# http://teem.sourceforge.net/nrrd/format.html\n"
DIRECTIONS = "space directions: (0.48,0.14,0) (-0.21,0.72,0) (0,0,3)\n"
SLICER = f"""NRRD0005
{TEEM}type: short
dimension: 3
space: left-posterior-superior
sizes: 5 4 3
{DIRECTIONS}kinds: domain domain domain
endian: little
encoding: gzip
space origin: (10,-20,30)
measurement frame: (1,0,0) (0,1,0) (0,0,1)
DWMRI_b-value:=1000
modality:=DWMRI

"""
SLICER_DETACHED = SLICER.replace("encoding: gzip", "encoding: gzip\ndata file: ./x.raw.gz")
SLICER_SEGMENTATION = f"""NRRD0004
{TEEM}type: unsigned char
dimension: 3
space: left-posterior-superior
sizes: 5 4 3
{DIRECTIONS}kinds: domain domain domain
encoding: gzip
space origin: (10,-20,30)
Segment0_Color:=0.501961 0.682353 0.501961
Segment0_Extent:=0 4 0 3 0 2
Segment0_ID:=Segment_1
Segment0_Name:=gland: whole
Segment0_Tags:=Segmentation.Status:inprogress|TerminologyEntry:Anatomy~SCT^123037004^Structure~~^^|
Segmentation_ContainedRepresentationNames:=Binary labelmap|
Segmentation_ConversionParameters:=Decimation factor|0.0|Range: 0.0 (none) to 1.0 (as much as possible).{"&" * 3000}
Segmentation_MasterRepresentation:=Binary labelmap
Segmentation_ReferenceImageExtentOffset:=0 0 0

"""
MITK = f"""NRRD0004
{TEEM}type: short
dimension: 3
space: left-posterior-superior
sizes: 5 4 3
{DIRECTIONS}kinds: domain domain domain
endian: little
encoding: gzip
space origin: (10,-20,30)
DICOM_0008_0060:=MR
MITK_IO_reader_description:=MITK Image/NRRD (ITK NrrdImageIO)
org_mitk_timegeometry_type:=ProportionalTimeGeometry
org_mitk_timegeometry_timepoints:=0 1

"""
PYNRRD = f"""NRRD0005
# This NRRD file was generated by pynrrd
# on 2024-01-02 03:04:05(GMT).
{TEEM}type: int16
dimension: 3
space: RAS
sizes: 5 4 3
space directions: (-0.48,-0.14,0) (0.21,-0.72,0) (0,0,3)
kinds: domain domain domain
endian: big
encoding: raw
space origin: (-10,20,30)
custom field:=24.34
patient:=Müller

"""
DCM2NIIX_NRRD = f"""NRRD0005
{TEEM}# dcm2niix v1.0.20220720 NRRD export
type: int16
dimension: 3
space: right-anterior-superior
sizes: 5 4 3
thicknesses:  NaN  NaN 3
endian: little
encoding: gzip
data file: x.raw.gz
space units: "mm" "mm" "mm"
space origin: (-10,20,30)
space directions: (-0.48,-0.14,0) (0.21,-0.72,0) (0,0,3)
centerings: cell cell cell
kinds: space space space
DICOM_0008_0060_Modality:=MR
DICOM_0018_0081_EchoTime:=30

"""
UNU = """NRRD0004
# made by hand
content: permute(pad(x))
type: unsigned short
dimension: 3
sizes: 5 4 3
space dimension: 3
space directions: (0.5,0,0) (0,0.75,0) (0,0,3)
space origin: (10,-20,30)
centers: cell cell cell
labels: "x" "y" "z"
old min: 0
old max: 1
number: 60
encoding: raw
endian: little

"""

TEXTS = {
    "plastimatch .mha": meta(PLASTIMATCH, dtype="f4"),
    "elastix .mhd": written_text(".mhd", ELASTIX, "result.0.zraw", pack=zlib.compress),
    "imagej .mhd": written_text(".mhd", IMAGEJ, "x.raw", order=">", dtype="u2"),
    "paraview .mhd": written_text(".mhd", VTK, "x.raw", dtype="f8"),
    "plus .mha": meta(PLUS, dtype="u1"),
    "matlab .mha": meta(MATLAB, dtype="u2"),
    "windows .mha": meta(PLASTIMATCH, dtype="f4", end="\r\n"),
    "several lines .mha": meta(SEVERAL_LINES),
    "big-endian .mha": meta(SEVERAL_LINES.replace("MSB = False", "MSB = True"), order=">"),
    "slicer .nrrd": nrrd(SLICER, pack=gzip.compress),
    "slicer .seg.nrrd": nrrd(SLICER_SEGMENTATION, dtype="u1", pack=gzip.compress),
    "slicer .nhdr": written_text(".nhdr", SLICER_DETACHED, "x.raw.gz", pack=gzip.compress),
    "mitk .nrrd": nrrd(MITK, pack=gzip.compress),
    "pynrrd .nrrd": nrrd(PYNRRD, order=">"),
    "dcm2niix .nhdr": written_text(".nhdr", DCM2NIIX_NRRD, "x.raw.gz", pack=gzip.compress),
    "unu .nrrd": nrrd(UNU, dtype="u2"),
}
