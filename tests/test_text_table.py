import pytest

from vnet_fast.text_table import LONGEST_NAME, format_table, short_names

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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["one"], ["one"]),
        (["one", "other"], ["one", "other"]),
        (["/data/A/predictions", "/data/B/predictions", "C"], ["A", "B", "C"]),
        (["/data/predictions", "/data/A/predictions"], ["predictions", "A/predictions"]),
        # what remains of the first one is the name of the last one
        (["A/predictions", "B/predictions", "A"], ["A (1)", "B (2)", "A (3)"]),
        (["/data/A/run (Dice loss)", "/data/B/run (dice-ce)"], ["A/run (Dice loss)", "B/run (dice-ce)"]),
    ],
)
def test_short_names(names, expected):
    assert short_names(names) == expected


def test_short_names_of_long_ones():
    same = "a" * 100 + "{}" + "b" * 100
    first, second = short_names([same.format(1), same.format(2)])
    assert first != second
    assert max(len(first), len(second)) <= LONGEST_NAME + len(" (1)")
    (alone,) = short_names(["begin" + "x" * 250 + "end"])
    assert len(alone) <= LONGEST_NAME
    assert alone.startswith("begin")
    assert alone.endswith("end")
