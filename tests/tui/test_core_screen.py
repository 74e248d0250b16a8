"""The CORE screen: tasks with their intervals, the record beside them, what is still to come."""

import csv
from dataclasses import replace

import pytest

from nmoe import events as ev
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import look, see
from tui.screens import scores


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def task(**changes):
    told = ev.CoreTaskEvent(
        name="arc_easy", index=1, count=22, items=100, acc=0.4, centered=0.2, seconds=1.0,
        baseline=0.25, ci95=(0.31, 0.49),
    )  # fmt: skip
    return replace(told, **changes)


def test_interval_is_centered_as_the_score_is():
    """Half of 0.31 to 0.49, over what is above chance: 0.09 / 0.75."""
    assert scores.half_width(task()) == pytest.approx(0.12)
    assert scores.half_width(task(ci95=None)) is None
    assert scores.half_width(task(baseline=None)) is None
    assert scores.half_width(task(baseline=1.0)) is None


def row_of(text, name):
    return next(line for line in text.splitlines() if f" {name} " in line)


def test_all_tasks_stand_beside_the_record_when_wide(root):
    text = see(root, races.ranked(root).folder, "4", until_text="record 0.0977", size=(160, 48))

    assert "17 of 22 tasks" in text
    assert "record on these tasks 0.1312" in text
    for name, _, _ in races.TASKS:
        assert name in text
    # 260 and 210 right of 1,000 items: z = 2.64; 377.5 and 340: z = 1.75
    found = row_of(text, "bigbench_qa_wikidata").split()
    assert found[7:12] == ["0.260", "±0.027", "0.210", "+0.050*", "0.0084"]
    found = row_of(text, "hellaswag_zeroshot").split()
    assert found[8:13] == ["0.170", "±0.040", "0.120", "+0.050", "0.0804"]
    assert row_of(text, "coqa").count("–") > 4


@pytest.mark.parametrize("size", [(60, 16), (80, 24)])
def test_small_screen_keeps_the_score_and_scrolls_to_the_last_task(root, size):
    folder = races.ranked(root).folder
    text = see(root, folder, "4", "end", until_text="bigbench_language_identif", size=size)

    assert "17 of 22 tasks" in text
    assert "centered" in text
    assert "hellaswag_zeroshot" not in text


def test_final_score_has_interval_change_and_notes(root):
    race = races.ranked(root)
    race.core()
    text = see(root, race.folder, "4", until_text="change", size=(160, 48))

    assert "CORE 0.0977 [0.0917, 0.1037]" in text
    assert "change +0.0000" in text
    assert "without boolq (ours) 0.1097" in text
    assert "cropped 253" in text


def test_run_alone_in_its_cohort_says_so(root):
    text = look(root, run=races.resumed(root).folder, keys=("4",))

    assert "no other run of this cohort is on a board" in text
    assert "3 of 22 tasks" in text


def test_interim_scores_name_their_step(root):
    recording = rec.training(root)
    recording.train(*(replace(event, step=1500, is_interim=True) for event in rec.core_events(2)))
    text = look(root, run=recording.folder, keys=("4",))

    assert "interim, step 1,500: so far 0.4650" in text
    assert "N/A" in row_of(text, "copy")  # old events tell neither chance nor interval


def test_columns_sort_either_way_and_back(root):
    folder = races.done(root).folder
    by_centered = look(root, run=folder, size=(160, 48), keys=("4", *["full_stop"] * 5))
    reverse = look(root, run=folder, size=(160, 48), keys=("4", *["full_stop"] * 5, "o"))

    assert "centered ↑" in by_centered
    first = [line for line in by_centered.splitlines() if "%" in line and "±" in line][0]
    assert "boolq" in first
    first = [line for line in reverse.splitlines() if "%" in line and "±" in line][0]
    assert "bigbench_cs_algorithms" in first


def test_strip_tells_seconds_ahead_of_the_best_run(root):
    races.done(root, slower=1.1)
    races.ranked(root)
    race = races.healthy(root, "super-20260102-000000-b202", stop=2000)
    text = see(root, race.folder, until_text="vs best", size=(160, 48))

    # the best run is a tenth slower, and a tenth slower per step
    assert "-" in text.partition(" vs best")[0].split()[-1]
    assert "┄ best run" in text


def test_export_has_record_and_interval(root):
    see(root, races.ranked(root).folder, "4", "e", "enter", until_text="written to",
        size=(160, 48))  # fmt: skip
    (path,) = root.exports.iterdir()
    rows = list(csv.DictReader(path.open()))

    assert len(rows) == 17
    assert float(rows[2]["centered"]) == pytest.approx(0.26)
    assert float(rows[2]["record_centered"]) == pytest.approx(0.21)
    assert float(rows[2]["p"]) == pytest.approx(0.0084, abs=1e-4)
