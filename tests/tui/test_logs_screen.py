"""The logs screen: sources, levels, filter, place, first error; the pager without an app."""

import pytest

from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import drive, held, look, screen_text, see, until
from tui.widgets.pager import Pages, TextLine, draw_page
from tui.widgets.rows import plain, row_width

HOSTILE = "[/bold] \x1b[2J\u202e 🧨 " + "wide " * 100


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def pages(num=100):
    return Pages(
        key="x", lines=tuple(TextLine(number=10 + i, text=f"line {i}") for i in range(num))
    )


def drawn(height=5, **options):
    return [plain(row) for row in draw_page(pages(), 40, height, **options)]


def test_end_is_followed_and_a_place_is_kept_by_its_number():
    assert drawn() == [f"line {i}" for i in range(95, 100)]
    assert drawn(first=30) == [f"line {i}" for i in range(20, 25)]
    assert drawn(first=0)[0] == "line 0"
    assert drawn(first=108) == ["line 98", "line 99"]


def test_long_lines_are_cut_or_whole():
    long = Pages(lines=(TextLine(number=0, text="word " * 20, time=0.0),))

    assert len(draw_page(long, 70, 10)) == 1
    rows = draw_page(long, 70, 10, wraps=True)
    assert "".join(plain(row) for row in rows).count("word") == 20
    assert plain(rows[1]).startswith(" " * 10)


@pytest.mark.parametrize("size", [(0, 0), (1, 1), (5, 2), (40, 5), (240, 67)])
@pytest.mark.parametrize("wraps", [True, False])
def test_hostile_text_stays_inside_and_is_text(size, wraps):
    hostile = Pages(lines=tuple(TextLine(number=i, text=HOSTILE, time=0.0) for i in range(99)))
    for first in (None, 50):
        rows = draw_page(hostile, *size, first=first, wraps=wraps)
        assert len(rows) <= size[1]
        for row in rows:
            assert row_width(row) <= max(size[0], 2)
            assert "\x1b" not in plain(row)
            assert "\u202e" not in plain(row)


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (160, 48)])
def test_first_error_is_that_of_the_rank_that_ended_the_run(root, size):
    text = see(root, races.failed(root).folder, "8", "wait", "j",
               until_text="CUDA out of [/bold] memory", size=size)  # fmt: skip

    assert "[rank3]✖2" in text
    assert "step 600: loss" in text  # what came before it


def test_events_come_first_with_their_time(root):
    text = look(root, run=races.failed(root).folder, keys=("8",))

    assert "[events]✖1" in text
    assert "failed, exit code 5, rank 3" in text


def test_level_filter_and_source_narrow_what_is_shown(root):
    folder = races.failed(root).folder
    keys = ("8", "wait", "right_square_bracket", "right_square_bracket")
    everything = see(root, folder, *keys, until_text="rank0  all lines  62 lines", size=(100, 30))
    warnings = see(root, folder, *keys, "l", until_text="warnings and errors", size=(100, 30))
    errors = see(root, folder, *keys, "l", "l", until_text="errors only", size=(100, 30))
    some = see(root, folder, *keys, "slash", *"step 1.0:", until_text="10 of 62", size=(100, 30))

    assert "peer: rank 3 is gone" in everything
    assert "1 of 62 lines" in warnings
    assert "this is [/red] text" in warnings
    assert "·" in warnings
    assert "no line fits" in errors
    assert "step 110: loss" in some


def test_wrong_expression_is_told_and_everything_is_shown(root):
    text = see(root, races.failed(root).folder, "8", "slash", "(", until_text="no regular expr")

    assert "exit code 5" in text


def test_place_is_kept_while_lines_come_and_end_follows_again(root):
    race = races.healthy(root, stop=50)
    race.folder.logs.mkdir()
    log = race.folder.log("rank0")
    log.write_text("".join(f"first {i}\n" for i in range(100)))
    texts = []

    async def steps(app, pilot):
        await pilot.press("8")
        await until(pilot, lambda: "rank0" in screen_text(app), "the log")
        await pilot.press("right_square_bracket", "home")
        with log.open("a") as file:
            file.write("".join(f"second {i}\n" for i in range(100)))
        race.train(*race.steps(60, start=50))
        await until(pilot, lambda: "200 lines" in screen_text(app), "the new lines")
        texts.append(screen_text(app))
        await pilot.press("end")
        await until(pilot, lambda: "second 99" in screen_text(app), "the end")

    with held(race.folder):
        drive(root, steps, run=race.folder)

    assert "first 0 " in texts[0]
    assert "second" not in texts[0]


def test_run_without_logs_has_its_events(root):
    text = look(root, run=rec.interrupted(root), keys=("8",))

    assert "[events]" in text
    assert "saved step_00000500" in text
