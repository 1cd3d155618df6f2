import pytest

from vnet_fast.text_table import format_table

ROWS = [("case", "Dice", ""), ("A", "0.9", "1 x 2"), ("Case10", "10.25", "")]


def test_columns_are_left_aligned_by_default():
    assert format_table(ROWS) == ["case    Dice", "A       0.9    1 x 2", "Case10  10.25"]


def test_columns_are_right_aligned():
    assert format_table(ROWS, "right") == ["  case   Dice", "     A    0.9  1 x 2", "Case10  10.25"]


def test_each_column_has_its_alignment():
    assert format_table(ROWS, ["left", "right", "left"]) == ["case     Dice", "A         0.9  1 x 2", "Case10  10.25"]


def test_headings_alone():
    assert format_table([("case", "size")]) == ["case  size"]


def test_no_rows():
    assert format_table([]) == []


@pytest.mark.parametrize(
    ("rows", "align"),
    [([("a", "b"), ("c",)], "left"), ([("a", "b")], ["left"])],
    ids=["a row is shorter", "an alignment is missing"],
)
def test_numbers_of_cells_must_agree(rows, align):
    with pytest.raises(ValueError, match="zip"):
        format_table(rows, align)
