"""The run screen from recorded runs, as plain text at several sizes."""

import asyncio
import math
from dataclasses import replace

import pytest
from textual import events

from nmoe import events as ev
from tests.tui import recordings as rec
from tests.tui.screen import drive, held, look, screen_text, until

SIZES = [(80, 24), (160, 48), (60, 16)]


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def lines_of(text):
    return text.splitlines()


@pytest.mark.parametrize("size", SIZES)
def test_essentials_are_visible_when_training(root, size):
    folder = rec.training(root).folder
    with held(folder):
        text = look(root, run=folder, size=size)

    assert len(lines_of(text)) <= size[1]
    for essential in (
        "● TRAINING", "pocket · fp32 · CPU, 2 cores", "0:33 train", "val 1.885 → 1.700",
        "step 1,500 / 6,000", "╌ target ╌", "◆", "46.5K", "best val", "q detach",
    ):  # fmt: skip
        assert essential in text
    assert "ETA ~" in text


def test_wide_screen_shows_side_panels_and_log_when_training(root):
    folder = rec.training(root).folder
    with held(folder):
        text = look(root, run=folder, size=(160, 48))

    for detail in ("numbers", "CORE", "log", "router cv", "8/8", "MFU", "N/A", "bits per byte",
                   rec.RUN_ID, "grad norm", "checkpoint step 1,500"):  # fmt: skip
        assert detail in text


@pytest.mark.parametrize("size", SIZES)
def test_core_table_fills_when_tasks_arrive(root, size):
    recording = rec.scoring_core(root)
    with held(recording.folder):
        text = look(root, run=recording.folder, size=size)

    assert "▣ CORE-EVAL" in text
    assert "3 of 5 tasks" in text
    assert "close_bracket" in text
    assert "indent" not in text


@pytest.mark.parametrize("size", SIZES)
def test_core_table_names_the_step_when_training_goes_on(root, size):
    recording = rec.training(root)
    tasks = [replace(event, step=1500, is_interim=True) for event in rec.core_events(2)]
    recording.train(*tasks)
    with held(recording.folder):
        text = look(root, run=recording.folder, size=size)

    assert "step 1,500 so far 0.4650" in text
    assert "2 of 5 tasks" in text


@pytest.mark.parametrize("size", SIZES)
def test_result_is_told_when_done(root, size):
    text = look(root, run=rec.done(root), size=size)

    assert "✔ DONE" in text
    assert "Target 1.700 reached: 1.696 at step 3,300" in " ".join(text.split())
    assert "CORE 0.3020" in text


def test_bars_are_shown_instead_of_the_chart_when_preparing(root):
    folder = rec.preparing(root)
    with held(folder):
        text = look(root, run=folder)

    assert "▤ PREPARING" in text
    assert "✔ pocket/val" in text
    assert "42 %" in text
    assert "9.54 MiB of 22.9 MiB" in text
    assert "target" not in text


def test_cause_hint_and_last_words_are_shown_when_failed(root):
    text = look(root, run=rec.failed(root))

    assert "✖ FAILED" in text
    assert "Rank 0 ended by SIGKILL after step 700" in text
    assert "lower train.micro_batch" in text
    assert f"n resume {rec.RUN_ID}" in text
    assert "[/bold] out of memory" in text


def test_lost_steps_and_resume_are_named_when_interrupted(root):
    text = " ".join(look(root, run=rec.interrupted(root)).split())

    assert "⚡ INTERRUPTED" in text
    assert "saved step_00000500: 240 steps are lost" in text
    assert f"n resume {rec.RUN_ID}" in text


def test_nan_is_a_gap_and_named_when_diverged(root):
    text = look(root, run=rec.diverged(root), size=(100, 30))

    assert "≋ DIVERGED" in text
    assert "the loss is nan since step 600" in text
    assert "nan" in next(line for line in lines_of(text) if " loss " in line and "│" in line)


def test_stalled_is_told_when_the_trainer_is_silent(root):
    recording = rec.training(root, stop=100)
    recording.time -= 4000
    for path in (recording.folder.train, recording.folder.supervisor):
        path.unlink()
    late = rec.Recording(root, time=rec.START - 4000)
    late.plan()
    rec.prepare(late)
    late.train(*rec.steps(100), seconds=0.1)
    with held(late.folder):
        text = look(root, run=late.folder)

    assert "⏳ STALLED" in text
    assert "no word from the trainer for 1 h" in text


def test_gpus_that_answer_nothing_are_not_zero(root):
    folder = rec.with_gpus(root)
    with held(folder):
        text = look(root, run=folder, size=(160, 48))

    assert "8 x B200" in text
    assert "97 %" in text
    assert "5400 W" in text
    assert "✖ lost" in text
    assert "∅ n/a" in text


def test_gpus_are_one_row_when_there_is_little_room(root):
    folder = rec.with_gpus(root)
    with held(folder):
        text = look(root, run=folder)

    assert "GPU ██████?? ✖ lost 7 97 % 5400 W 70 °C" in text


def resumed(root):
    recording = rec.training(root, stop=900)
    recording.attempt = 1
    recording.train(ev.PhaseEvent(phase="training", resume_step=500))
    recording.train(*rec.steps(1200, start=500), seconds=0.1)
    return recording.folder


def test_chart_shows_where_a_run_was_saved_and_resumed(root):
    text = look(root, run=resumed(root), size=(100, 30))
    rule = next(line for line in lines_of(text) if "└" in line and "▾" in line)

    assert rule.index("↻") < rule.index("▾")
    assert "┊" in text
    assert "↻ resume" in text


def test_keys_change_how_the_chart_is_looked_at(root):
    folder = rec.training(root).folder
    seen = {
        keys: look(root, run=folder, keys=tuple(keys.split()))
        for keys in ("x", "x x", "x x x", "s s", "l", "i left", "plus", "plus left", "plus 0")
    }

    assert "x: tokens" in seen["x"]
    assert "500K" in seen["x"]
    assert "x: train" in seen["x x"]
    assert "x: wall" in seen["x x x"]
    assert "EMA .9 " in seen["s s"]
    assert "log y" in seen["l"]
    assert "val at 1,500 1.885" in seen["i left"]
    assert "zoomed, following" in seen["plus"]
    assert "zoomed " in seen["plus left"]
    assert "following" not in seen["plus left"]
    assert "zoomed" not in seen["plus 0"]
    assert "step 1,500" in seen["plus 0"]  # and the start screen is not shown


def test_wheel_zooms_at_the_pointer_and_a_click_reads(root):
    folder = rec.training(root).folder
    texts: list[str] = []

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        chart = app.screen.query_one("#chart")
        await pilot.click("#chart", offset=(40, 5))
        await pilot.pause()
        texts.append(screen_text(app))
        for _ in range(3):
            await pilot._post_mouse_events(
                [events.MouseScrollUp], widget=chart, offset=(40, 5), button=0
            )
        await pilot.pause()
        texts.append(screen_text(app))

    drive(root, steps, run=folder)

    assert "val at" in texts[0]
    assert "zoomed" not in texts[0]
    assert "zoomed " in texts[1]


def test_ascii_screen_has_nothing_else(root):
    folder = rec.with_gpus(root)
    for size in (*SIZES, (100, 30), (240, 67)):
        texts: list[str] = []

        async def steps(app, pilot, texts=texts):
            await until(pilot, lambda: app.view is not None, "the run")
            await pilot.pause()
            texts.append(screen_text(app))

        with held(folder):
            drive(root, steps, run=folder, size=size, is_ascii=True)
        assert [char for char in texts[0] if not char.isascii()] == []
        assert "* TRAINING" in texts[0]
        assert "- target -" in texts[0]


def test_screen_waits_when_the_folder_is_empty(root):
    folder = root.run(rec.RUN_ID)
    folder.root.mkdir(parents=True)

    assert "○ IDLE" in look(root, run=folder)


def test_hostile_names_are_shown_as_text(root):
    recording = rec.Recording(root)
    plan = recording.plan(preset="[/bold] 🧨 \u202e" + "x" * 500)
    assert plan.preset.startswith("[/bold]")
    rec.prepare(recording)
    recording.train(
        *rec.steps(100),
        ev.AlertEvent(code="x", level="warning", message="[/red] \x1b[2J 🧨 " + "y" * 500),
    )
    for size in (*SIZES, (240, 67)):
        text = look(root, run=recording.folder, size=size)
        assert "[/bold] 🧨" in text
        assert "\x1b" not in text
    assert "[/red] ·[2J" in text


def test_no_color_has_every_word_and_no_colour(root, monkeypatch):
    folder = rec.training(root).folder
    with held(folder):
        coloured = look(root, run=folder)
        monkeypatch.setenv("NO_COLOR", "1")
        plain = look(root, run=folder)
        colours: set[object] = set()

        async def steps(app, pilot):
            await until(pilot, lambda: app.view is not None, "the run")
            await pilot.pause()
            for strip in app.screen._compositor.render_strips():
                for segment in strip:
                    if segment.style and segment.style.color:
                        red, green, blue = segment.style.color.triplet
                        colours.add(red == green == blue)

        drive(root, steps, run=folder)

    assert plain == coloured
    assert colours == {True}


def test_resize_storm_down_to_one_column_keeps_the_screen(root):
    folder = rec.done(root)
    texts: list[str] = []

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        sizes = [(1, 1), (2, 40), (59, 24), (240, 67), (200, 1), (12, 3)]
        for key in (*"123456780", "question_mark", "ctrl+c"):
            await pilot.press(key)
            for size in sizes:
                await pilot.resize_terminal(*size)
                await pilot.pause()
        await pilot.press("escape", "escape", "1")
        for size in ((59, 24), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            texts.append(screen_text(app))

    drive(root, steps, run=folder)

    assert "✔ DONE" in texts[0]
    assert "loss" not in texts[0]
    assert "╭─ loss" in texts[1]


def test_new_events_appear_while_watching(root):
    recording = rec.training(root, stop=500)
    texts: list[str] = []

    async def steps(app, pilot):
        await until(pilot, lambda: "step 500 /" in screen_text(app), "step 500")
        recording.train(*rec.steps(1000, start=500), seconds=0.1)
        await until(pilot, lambda: "step 1,000 /" in screen_text(app), "step 1,000")
        texts.append(screen_text(app))

    with held(recording.folder):
        drive(root, steps, run=recording.folder)

    assert "val 2.027" in texts[0]


def test_freeze_holds_the_panels_and_counts_what_is_new(root):
    recording = rec.training(root, stop=500)
    texts: list[str] = []

    async def steps(app, pilot):
        await until(pilot, lambda: "step 500 /" in screen_text(app), "step 500")
        await pilot.press("space")
        recording.train(rec.val_event(510, loss=math.pi), rec.step_event(510))
        await until(pilot, lambda: "FROZEN +2 new" in screen_text(app), "the badge")
        texts.append(screen_text(app))
        await pilot.press("space")
        await until(pilot, lambda: "FROZEN" not in screen_text(app), "no badge")
        texts.append(screen_text(app))

    with held(recording.folder):
        drive(root, steps, run=recording.folder)

    assert "step 510 /" in texts[0]
    assert "validation loss 3.142" not in texts[0]
    assert "validation loss 3.142" in texts[1]


def test_screen_is_not_painted_when_nothing_happens(root):
    folder = rec.done(root)
    renders: list[int] = []

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        await pilot.pause(0.3)
        panels = list(app.screen.query("Panel"))
        counts = [0]
        for panel in panels:
            original = panel.render_line

            def counted(y, original=original):
                counts[0] += 1
                return original(y)

            panel.render_line = counted
        await asyncio.sleep(1.2)
        await pilot.pause()
        renders.append(counts[0])

    drive(root, steps, run=folder)

    assert renders == [0]


def test_problem_is_a_banner_when_the_run_cannot_be_read(root):
    folder = rec.training(root, stop=50).folder
    folder.train.write_text(folder.train.read_text().replace('"v":1', '"v":9'))
    texts: list[str] = []

    async def steps(app, pilot):
        await until(pilot, lambda: "version 9" in screen_text(app), "the banner")
        texts.append(screen_text(app))

    drive(root, steps, run=folder, size=(100, 30))

    assert "expected 1" in " ".join(texts[0].split())


def test_brackets_change_the_metric_and_keep_marks(root):
    folder = resumed(root)
    keys = "right_square_bracket"
    throughput = look(root, run=folder, size=(100, 30), keys=(keys,))
    rate = look(root, run=folder, size=(100, 30), keys=("left_square_bracket",))
    again = look(root, run=folder, size=(100, 30), keys=(keys,) * 5)

    assert "─ throughput, tok/s" in throughput
    assert "↻ resume" in throughput
    assert "46.545K" in throughput or "46.5" in throughput
    assert "─ learning rate" in rate
    assert "─ loss " in again
