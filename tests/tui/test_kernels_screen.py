"""The kernels screen: rows of the bench suite, what is slower, and a row's past."""

import csv
import os

import pytest

from bench import rows as suite
from harness import measure
from harness.errors import MachineError
from nmoe.paths import take_lock
from tests.bench.results import a_machine, a_row
from tests.tui import recordings as rec
from tests.tui.screen import drive, screen_text, until


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


@pytest.fixture
def results(tmp_path):
    """Two commits on one GPU: `up` slower, `down` faster, `sort` new and with a peer."""
    folder = tmp_path / "results"
    folder.mkdir()
    for commit, date, times in (
        ("a" * 40, "2026-01-01T00:00:00+00:00", {"up": 100.0, "down": 200.0}),
        ("b" * 40, "2026-01-02T00:00:00+00:00", {"up": 120.0, "down": 150.0, "sort": 50.0}),
    ):
        machine = a_machine(commit=commit, date=date, gpu="NVIDIA H200")
        rows = [
            a_row(what=what, shape="s1", us=us, spread_us=0.5, timings=30, percent=80.0,
                  machine=machine)
            for what, us in times.items()
        ]  # fmt: skip
        if "sort" in times:
            rows.append(a_row(what="sort", shape="s1", implementation="[/torch]", us=75.0,
                              spread_us=1.0, timings=30, machine=machine))  # fmt: skip
        suite.save(folder / f"kernels-{commit[:7]}.jsonl", rows)
    return folder


def visit(root, results, *keys, wanted="bench rows", size=(160, 48)):
    seen = []

    async def steps(app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "bench rows" in screen_text(app), "the rows")
        await pilot.press(*keys)
        await until(pilot, lambda: wanted in screen_text(app), wanted)
        seen.append(screen_text(app))

    drive(root, steps, size=size, bench_results=results)
    return seen[0]


def line_of(text, *parts):
    return next(line for line in text.splitlines() if all(part in line for part in parts))


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
def test_slower_and_faster_rows_are_told_with_their_share_of_the_ceiling(root, results, size):
    text = visit(root, results, size=size, wanted="rows 4, 1 slower")

    assert "▲ slower +20.0 %" in line_of(text, "up", "120.0 us")
    assert "▾ faster -25.0 %" in line_of(text, "down", "150.0 us")
    assert "○ first" in line_of(text, "sort", "50.0 us")
    assert "80 %" in line_of(text, "up", "120.0 us")
    if size[0] > 80:
        assert "1.50" in line_of(text, "sort", "50.0 us")
        assert "[/torch]" in text
        assert "bbbbbbb" in text


def test_row_under_the_cursor_has_its_past_below(root, results):
    text = visit(root, results, wanted="2026-01-01 aaaaaaa 100.0 us")

    assert "slower than before, beyond both spreads" in text


def test_filter_keeps_the_rows_with_every_word(root, results):
    text = visit(root, results, "slash", *"h200 slower", wanted="rows 1 of 4")

    assert "150.0 us" not in text


def test_nothing_measured_says_what_to_do(root, tmp_path):
    assert "n bench kernels" in visit(root, tmp_path / "none", wanted="no results yet")


def test_broken_line_is_told_beside_the_others(root, results):
    (results / "x.jsonl").write_text("[/bold]\n")
    text = visit(root, results, wanted="x.jsonl line 1 is not a row")

    assert "120.0 us" in text


def test_export_has_the_verdicts(root, results):
    visit(root, results, "e", "enter", wanted="written to", size=(200, 48))
    (path,) = root.exports.iterdir()
    rows = {(row["what"], row["implementation"]): row for row in csv.DictReader(path.open())}

    assert rows["up", "nmoe"]["verdict"] == "slower"
    assert float(rows["up", "nmoe"]["times_slower_than_before"]) == pytest.approx(1.2)


def started(monkeypatch, *, error=None):
    """The parts of the suite that were started; none is, and `error` raised, when there is one."""
    parts = []

    def start(part, _root):
        if error is not None:
            raise error
        parts.append(part)

    monkeypatch.setattr(measure, "start", start)
    return parts


def test_part_of_the_suite_is_started_after_a_question(root, results, monkeypatch):
    parts = started(monkeypatch)
    assert "Measure what?" in visit(root, results, "b", wanted="transport: dispatch and return")
    assert parts == []
    visit(root, results, "b", "enter", wanted="bench rows")
    assert parts == []

    async def steps(app, pilot):
        await pilot.press("7", "b")
        await until(pilot, lambda: "Measure what?" in screen_text(app), "the question")
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: bool(parts), "the start")

    drive(root, steps, bench_results=results)
    assert parts == ["loss"]


def test_what_keeps_the_suite_from_starting_is_told(root, results, monkeypatch):
    started(monkeypatch, error=MachineError("nothing to measure: [/no] driver", "Install it."))
    text = visit(root, results, "b", "down", "enter", wanted="nothing to measure: [/no] driver")
    assert "Install it." in text


def test_suite_at_work_is_shown_and_its_end_too(root, results, monkeypatch):
    monkeypatch.setattr("tui.screens.kernels.LOOK_S", 0.02)
    parts = started(monkeypatch)
    root.bench.mkdir()
    lock = take_lock(root.bench / "lock")
    (root.bench / "log").write_bytes(b"first\ntest_up[s1] \x1b[32mPASSED [/x]\n")

    async def steps(app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "measuring: test_up[s1]" in screen_text(app), "the suite")
        assert "PASSED [/x]" in screen_text(app)
        await pilot.press("b")
        await until(pilot, lambda: "at work already" in screen_text(app), "a refusal")
        for path in results.glob("*.jsonl"):
            path.unlink()
        (root.bench / "log").write_text("rows: kernels-x.jsonl\n")
        os.close(lock)
        await until(pilot, lambda: "ended: rows: kernels-x" in screen_text(app), "its end")
        await until(pilot, lambda: "no results yet" in screen_text(app), "what it left")
        assert "measuring" not in screen_text(app)

    drive(root, steps, size=(160, 48), bench_results=results)
    assert parts == []


def test_viewer_that_only_looks_measures_nothing(root, results):
    async def steps(app, pilot):
        await pilot.press("7")
        await until(pilot, lambda: "bench rows" in screen_text(app), "the rows")
        await pilot.press("b")
        await pilot.pause()
        assert "Measure what?" not in screen_text(app)

    drive(root, steps, size=(160, 48), bench_results=results, is_readonly=True)
