"""Every screen against the pictures that were looked at."""

import pytest

from tests.tui.pictures import FOLDER, OF_A_RUN, OF_ALL, RUNS, SIZES, STORIES, draw


@pytest.mark.parametrize("story", STORIES)
def test_screens_are_those_that_were_looked_at(story):
    """After a change on purpose: `python -m tests.tui.pictures`, then look at the difference."""
    drawn = draw(story)

    for name, text in drawn.items():
        assert text == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), name
        for line in text.splitlines():
            assert len(line) <= max(width for width, _ in SIZES)


def test_no_picture_is_forgotten():
    names = {f"{screen}-{run}" for screen in OF_A_RUN for run in RUNS}
    names |= {f"{screen}-all" for screen in OF_ALL}

    assert {path.stem for path in FOLDER.iterdir()} == names
