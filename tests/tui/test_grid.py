"""The table with a cursor as plain rows, without an app."""

import math

import pytest

from tui.widgets.grid import MARK, Record, Sorting, Table, draw_grid, ordered
from tui.widgets.rows import plain, row_width
from tui.widgets.table import Column


def table(num=50):
    values = [math.nan if i == 3 else None if i == 4 else float(-i) for i in range(num)]
    return Table(
        columns=(Column(title="name"), Column(title="value", align="right")),
        records=tuple(
            Record(id=str(i), cells=(f"row {i}", str(value)), orders=(f"row {i}", value),
                   is_marked=i == 2)
            for i, value in enumerate(values)
        ),
    )  # fmt: skip


def drawn(height=6, **options):
    return [plain(row) for row in draw_grid(table(), 30, height, sorting=Sorting(), **options)]


def test_only_rows_in_sight_are_drawn_and_the_cursor_is_marked():
    rows = drawn(top=10, cursor=12)

    assert [row[2:8].strip() for row in rows[1:]] == [f"row {i}" for i in range(10, 15)]
    assert [row.startswith(MARK) for row in rows] == [False, False, False, True, False, False]


def test_marked_record_has_its_sign():
    assert drawn(top=0)[3].startswith(" ◆row 2")


@pytest.mark.parametrize("is_reversed", [False, True])
def test_unknown_values_come_last_either_way(is_reversed):
    records = ordered(table(10), Sorting(column=1, is_reversed=is_reversed))
    ids = [record.id for record in records]

    assert set(ids[-2:]) == {"3", "4"}
    assert ids[:8] == sorted(ids[:8], key=int, reverse=not is_reversed)


def test_own_order_can_be_turned_round():
    assert [each.id for each in ordered(table(3), Sorting(is_reversed=True))] == ["2", "1", "0"]


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (3, 2), (10, 3), (80, 24)])
def test_nothing_is_drawn_outside(size):
    rows = draw_grid(table(), *size, sorting=Sorting(column=0), cursor=1)

    assert len(rows) <= size[1]
    assert all(row_width(row) <= max(size[0], 4) for row in rows)


def test_empty_table_says_so():
    empty = Table(columns=table().columns, empty="no rows")

    assert [plain(row) for row in draw_grid(empty, 30, 5, sorting=Sorting())] == ["no rows"]
