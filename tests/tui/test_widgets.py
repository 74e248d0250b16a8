"""Strip, numbers, tables, bars and logs as plain rows, without an app."""

import asyncio

import pytest
from textual.app import App

from tui.widgets.core import Core, Task, draw_core
from tui.widgets.logs import draw_log
from tui.widgets.numbers import Number, draw_numbers
from tui.widgets.progress import Job, Progress, draw_progress
from tui.widgets.prose import Prose
from tui.widgets.rows import clean, clip, plain, row_width, spread, wrap
from tui.widgets.states import SIGNS, sign
from tui.widgets.strip import Status, draw_strip
from tui.widgets.table import Column, draw_table

SIZES = [(0, 0), (1, 1), (2, 3), (10, 2), (40, 5), (80, 24), (240, 67)]
HOSTILE = "[/bold] 🧨 \x1b[31m \u202eright to left " + "long" * 150
STATUS = Status(
    status="training",
    note=clean(HOSTILE),
    facts=("pocket", "fp32", clean(HOSTILE)),
    clock="0:33 train",
    progress=((("val ", "dim"), ("1.855", "strong")), (("step 1,500 / 6,000", "text"),)),
    badge="FROZEN +3 new",
)
NUMBERS = tuple(Number(label=f"label {i}", text="1" * i) for i in range(9))
TASKS = tuple(
    Task(name=clean(HOSTILE), items=60, acc=0.5, centered=value, seconds=1.0)
    for value in (0.5, -0.2, 7.0, float("nan"))
)
JOBS = tuple(
    Job(name=HOSTILE, done=done, total=total, unit="bytes")
    for done, total in ((0, 0), (5, 10), (10, 10), (20, 10))
)
DRAWINGS = {
    "strip": lambda w, h: draw_strip(STATUS, w, h),
    "numbers": lambda w, h: draw_numbers(NUMBERS, w, h),
    "core": lambda w, h: draw_core(Core(tasks=TASKS, count=22), w, h),
    "log": lambda w, h: draw_log([(0.0, HOSTILE)] * 99, w, h),
    "progress": lambda w, h: draw_progress(Progress(heading="h", note="n", jobs=JOBS), w, h),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DRAWINGS)
def test_drawing_keeps_its_bounds_when_text_is_hostile(name, size):
    width, height = size
    rows = DRAWINGS[name](width, height)

    assert len(rows) <= max(height, 1)
    for row in rows:
        assert "\x1b" not in plain(row)
        if width >= 40:
            assert row_width(row) <= width


def test_clean_hides_what_moves_the_cursor_and_keeps_the_rest():
    assert clean("a\x1b[2Jb\nc\u202ed\te") == "a·[2Jb·c·d e"
    assert clean("[/bold] é 日本 🧨") == "[/bold] é 日本 🧨"


def test_clip_counts_cells_when_characters_are_wide():
    assert clip("日本語", 5) == "日本…"
    assert clip("日本語", 4) == "日…"
    assert clip("abc", 3) == "abc"


def test_spread_puts_both_ends_apart():
    assert plain(spread((("ab", "text"),), (("yz", "text"),), 10)) == "ab      yz"
    assert plain(spread((("abcdefgh", "text"),), (("yz", "text"),), 9)) == "abcdefgh"


def test_wrap_breaks_words_that_are_longer_than_the_width():
    assert [plain(row) for row in wrap("aa bbbbbb c", 4)] == ["aa", "bbbb", "bb c"]


def test_strip_is_one_line_with_state_and_progress_when_one_row_is_left():
    rows = draw_strip(STATUS, 58, 1)

    assert len(rows) == 1
    assert "● TRAINING" in plain(rows[0])
    assert "val 1.855" in plain(rows[0])


def test_strip_drops_facts_before_clock_when_narrow():
    text = plain(draw_strip(STATUS, 50, 2)[0])

    assert text.rstrip().endswith("0:33 train")
    assert "FROZEN" in text


def test_every_state_has_its_own_glyph_and_word():
    assert len({each.glyph for each in SIGNS.values()}) == len(SIGNS) == 16
    assert sign("no such state").span[0] == "? NO SUCH STATE"


def test_numbers_use_more_columns_when_wide():
    narrow, wide = draw_numbers(NUMBERS, 30, 99), draw_numbers(NUMBERS, 90, 99)

    assert len(narrow) == 9
    assert len(wide) == 3
    assert [plain(row).index("label", 5) for row in wide[:2]] == [19, 19]


def test_core_shows_the_newest_tasks_when_not_all_fit():
    tasks = tuple(
        Task(name=f"task {i}", items=60, acc=0.5, centered=0.1 * i, seconds=1.0) for i in range(9)
    )
    text = [plain(row) for row in draw_core(Core(tasks=tasks, count=22), 60, 5)]

    assert "9 of 22 tasks" in text[0]
    assert text[0].startswith("so far 0.4000")
    assert [line.split("  ")[0] for line in text[2:]] == ["task 6", "task 7", "task 8"]


def test_core_shows_the_score_when_it_is_final():
    task = Task(name="copy", items=60, acc=0.5, centered=0.3, seconds=1.0)

    assert "CORE 0.0644" in plain(draw_core(Core(tasks=(task,), score=0.0644), 60, 9)[0])


def test_core_tells_as_much_about_the_score_as_fits():
    task = Task(name="copy", items=60, acc=0.5, centered=0.3, seconds=1.0)
    core = Core(
        tasks=(task,) * 22, score=0.0644, ci95=(0.0581, 0.0707), without_boolq=0.071, cropped=1234,
        empty_regions=5,
    )  # fmt: skip
    assert plain(draw_core(core, 100, 9)[0]).split("  ")[-1] == (
        "22 tasks · 0.0710 without boolq (ours) · 1,234 cropped · 5 empty"
    )
    assert plain(draw_core(core, 100, 9)[0]).startswith("CORE 0.0644 [0.0581, 0.0707]")
    narrow = plain(draw_core(core, 50, 9)[0])
    assert narrow.startswith("CORE 0.0644 [0.0581, 0.0707]")
    assert narrow.endswith("22 tasks · 5 empty")


def test_core_names_the_step_when_training_goes_on():
    task = Task(name="copy", items=60, acc=0.5, centered=0.3, seconds=1.0)
    some = Core(tasks=(task,), count=2, step=1500)
    assert plain(draw_core(some, 60, 9)[0]).startswith("step 1,500 so far 0.3000")
    scored = Core(tasks=(task,), count=1, step=1500, score=0.3)
    assert plain(draw_core(scored, 60, 9)[0]).startswith("step 1,500 CORE 0.3000")


def test_log_keeps_the_newest_lines():
    lines = [(float(i), f"line {i}") for i in range(50)]

    assert [plain(row)[-7:] for row in draw_log(lines, 60, 3)] == ["line 47", "line 48", "line 49"]


def test_progress_says_percent_and_amount():
    job = Job(name="pocket/train", done=512, total=2048, unit="bytes")
    text = plain(draw_progress(Progress(jobs=(job,)), 80, 5)[0])

    assert "25 %" in text
    assert "512 B of 2 KiB" in text
    assert text.count("█") > 3


def test_table_drops_the_least_important_columns_when_narrow():
    columns = (
        Column(title="rank"),
        Column(title="tokens", align="right", rank=2),
        Column(title="run", rank=1),
    )
    records = [("1", "3.38M", "pocket-1"), ("2", "3.38M", "pocket-2")]

    wide = [plain(row) for row in draw_table(columns, records, 60)]
    narrow = [plain(row) for row in draw_table(columns, records, 16)]

    assert wide[1] == "1      3.38M  pocket-1"
    assert narrow[1] == "1     pocket-1"


def test_only_rows_that_became_others_are_painted_and_a_taller_value_gets_room():
    painted, heights = [], []

    class Counted(Prose):
        def render_line(self, y):
            painted.append(y)
            return super().render_line(y)

    class Shown(App[None]):
        CSS = "Prose { height: auto; }"

        def compose(self):
            yield Counted(rows("one", "two", "three"))

    def rows(*texts):
        return tuple(((text, "text"),) for text in texts)

    async def go():
        app = Shown()
        async with app.run_test() as pilot:
            panel = app.query_one(Counted)
            for texts in (("one", "2", "three"), ("one", "2", "three", "four")):
                await pilot.pause(0.1)
                painted.clear()
                panel.show(rows(*texts))
                await pilot.pause(0.1)
                heights.append((panel.size.height, sorted(set(painted))))

    asyncio.run(go())

    assert heights == [(3, [1]), (4, [0, 1, 2, 3])]
