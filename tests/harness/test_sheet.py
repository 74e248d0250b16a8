"""Tables that leave the program: what hostile text in them can do, which is nothing."""

import csv
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sheet import Sheet, escaped, markdown, one_line

HOSTILE = (
    '=HYPERLINK("http://evil","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    " =1",
    "\t=1",
    "a,b\n=1",
    'quote " comma ,',
    "\x1b[31mred\x1b[0m\u202e",
)


def cells(text):
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("text", HOSTILE)
def test_text_of_a_csv_is_one_cell_and_no_formula(text):
    rows = cells(Sheet(name="x", columns=("a", "b"), rows=[(text, 1)]).csv())
    assert rows[0] == ["a", "b"]
    assert len(rows) == 2
    assert rows[1][1] == "1"
    assert not rows[1][0].lstrip().startswith(("=", "+", "-", "@"))
    assert rows[1][0].isprintable()
    assert rows[1][0].lstrip("'") == one_line(text)


@given(st.lists(st.lists(st.text(), min_size=3, max_size=3), max_size=4))
def test_csv_has_a_row_a_row_whatever_the_text(rows):
    found = cells(Sheet(name="x", columns=("a", "b", "c"), rows=rows).csv())
    assert len(found) == len(rows) + 1
    assert all(len(row) == 3 for row in found)
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for row in found for cell in row)


@given(st.floats(allow_nan=False), st.integers())
def test_numbers_come_back_from_a_csv_as_they_were(value, count):
    (_, row) = cells(Sheet(name="x", columns=("a", "b"), rows=[(value, count)]).csv())
    assert (float(row[0]), int(row[1])) == (value, count)


def test_sheet_is_strict_json_and_csv_without_none():
    sheet = Sheet(name="x", columns=("a", "b"), rows=[(None, float("nan")), ('q"', True)])
    assert sheet.csv() == 'a,b\n,nan\n"q""",True\n'
    assert json.loads(sheet.json(), parse_constant=pytest.fail)[0] == {"a": None, "b": None}


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), max_size=4))
def test_markdown_has_a_line_a_row_and_as_many_cells_as_its_head(rows):
    lines = markdown(("a", "b"), rows)
    assert len(lines) == len(rows) + 2
    # An escaped backslash does not escape the bar behind it.
    bars = [len(re.findall(r"\|", re.sub(r"\\.", "", line))) for line in lines]
    assert bars == [3] * len(lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<img src=x onerror=alert(1)>", "&#60;img src=x onerror=alert(1)&#62;"),
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("https://evil and www.evil", "https:&#47;&#47;evil and www&#46;evil"),
        ("@everyone", "&#64;everyone"),
        ("`code` *b* _i_ ~s~ $m$", r"\`code\` \*b\* \_i\_ \~s\~ \$m\$"),
        ("two\nlines\r\x1b[1m", r"two lines ?\[1m"),
        ("super-20260101-000000-abcd", "super-20260101-000000-abcd"),
        ("2537.0 s", "2537.0 s"),
    ],
)
def test_markdown_shows_text_as_text(text, expected):
    assert escaped(text) == expected
