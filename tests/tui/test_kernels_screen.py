"""The kernels screen: rows of the bench suite, what is slower, and a row's past."""

import csv

import pytest

from bench import rows as suite
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
