"""The widgets against the drawings that were looked at."""

import pytest
from rich.cells import cell_len

from tests.tui.drawings import DRAWINGS, FOLDER, SIZES, drawing


@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_is_the_one_that_was_looked_at(name):
    """After a change on purpose: `python -m tests.tui.drawings`, then look at the difference."""
    assert drawing(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_no_drawing_is_forgotten():
    assert {path.stem for path in FOLDER.iterdir()} == set(DRAWINGS)


@pytest.mark.parametrize("name", [name for name in DRAWINGS if name.endswith("ascii")])
def test_ascii_drawing_is_ascii(name):
    assert drawing(name).isascii()


@pytest.mark.parametrize("name", DRAWINGS)
@pytest.mark.parametrize("width", [*range(0, 20, 3), 33, 47])
@pytest.mark.parametrize("height", [0, 1, 2, 3, 7])
def test_nothing_is_drawn_outside_when_there_is_little_room(name, width, height):
    title = 2 if name.startswith("chart") else 0
    lines = DRAWINGS[name](width, height)

    assert len(lines) <= max(2, height + title)
    if width >= 16 and not title:
        assert max(map(cell_len, lines), default=0) <= width


def test_sizes_are_those_of_the_screens():
    assert len(SIZES) == 5
