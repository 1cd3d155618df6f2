"""The fields of MetaImage headers: split as ITK splits them, and refused where one that matters may be damaged."""

import numpy as np
import pytest
import SimpleITK as sitk

from tests.io.written_by_itk import ARRAY
from vnet_fast.errors import InputError
from vnet_fast.io import volumes
from vnet_fast.io.meta_fields import KNOWN, read_fields

LINES = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 -20 30
CenterOfRotation = 0 0 0
AnatomicalOrientation = RAI
ElementSpacing = 0.5 0.75 3
MORE
DimSize = 5 4 3
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


def write(folder, more, old="", new=""):
    """Writes a volume with more lines in its header, and a text of it replaced."""
    path = folder / "x.mha"
    path.write_bytes(LINES.replace("MORE", more).replace(old, new).encode() + ARRAY.tobytes())
    return path


@pytest.mark.parametrize(
    "more",
    ["a = b = c", "a: b", "d:e = f", "a = == b\nc = :3", "a =\nb = 2", "a =   \n\n  b\t = \t2", "x\ny = 1\nz = 2",
     "a = 1\nline\nline 2\nb = 2\nc = 3", "a = b\rOffset = 1 2 3", "x\ry = 1\nb = 1", "a \n = 3", "a = 1\r\nb = 2\r",
     "= 5\nb = 2", "a\0b = 1", "a = 1\0b", "Comment = a\nComment = b", "Modality = MET_MOD_CT\nModality = MET_MOD_MR",
     "a = " + "y" * 32_767, "n" * 200 + " = 1", "a = é\nb = ü", "qoffset_x = 1\ntoffset = 0\nHeader = 3",
     "ElementByteOrderMSB = False\nPosition = 10 -20 30"],
)  # fmt: skip
def test_unknown_fields_are_split_as_by_itk(tmp_path, more):
    path = write(tmp_path, more)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volumes.read_image(path)), ARRAY)
    assert volumes.read_image(path).GetOrigin() == image.GetOrigin() == (10, -20, 30)
    of_itk = {key for key in image.GetMetaDataKeys() if not key.startswith("ITK_")} - KNOWN
    assert read_fields(path)[0].keys() - KNOWN == of_itk


@pytest.mark.parametrize(
    ("more", "old", "new", "message"),
    [
        ("offsett = 1 2 3", "Offset = ", "Comment = ", "'offsett' is not a known field; Offset may be meant"),
        ("Foo = no", "Offset = ", "Comment = ", "Offset is missing, and 'Foo' is not a known field"),
        ("Foo = no", "BinaryDataByteOrderMSB", "Comment", "BinaryDataByteOrderMSB is missing, and 'Foo'"),
        ("Header Size = 7", "", "", "'Header Size' is not a known field; HeaderSize may be meant"),
        ("ElementSize = 1 1 1", "ElementSpacing", "ElementSpacng", "ElementSpacing may be meant"),
        ("text", "", "", "DimSize follows a line without `=`, so that it is not seen as a field"),
        ("x = 1", "Offset", "Color\nOffset", "Offset follows a line without `=`"),
        ("x\rHeaderSize = 1", "", "", "HeaderSize follows a line without `=`"),
        ("Offset = 10 -20 30", "", "", "Offset is given twice"),
        ("ElementByteOrderMSB = True", "", "", "BinaryDataByteOrderMSB and ElementByteOrderMSB are both given"),
        ("Position = 10 -20 31", "", "", "Offset and Position are both given"),
        ("a = " + "y" * 32_768, "", "", "its header has a line that is too long for ITK"),
        ("n" * 500 + " = 1", "", "", "its header has a line that is too long for ITK"),
        ("x = 1", "ElementDataFile", "ElementDatafile", "no ElementDataFile; 'elementdatafile' may be meant as it"),
        ("ElementDataFile = LOCAL", "", "", "DimSize is missing"),
    ],
)
def test_fields_that_may_be_damaged(tmp_path, more, old, new, message):
    with pytest.raises(InputError) as error:
        volumes.read_image(write(tmp_path, more, old, new) if old else write(tmp_path, more))
    assert message in str(error.value)
