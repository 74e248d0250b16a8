"""The best run of a cohort: who it is, and how far ahead of it another one is."""

import math
from dataclasses import replace

import pytest

from harness import best, leaderboard, score
from harness.best import Best
from harness.run_state import RunState
from nmoe import events as ev
from nmoe.config import read_plan
from nmoe.paths import DataRoot
from tests.harness.finished_run import make_plan, write_run

IDS = [f"pocket-20260101-00000{index}-abcd" for index in range(4)]


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="test")


def enter(root, run_id, *, train_s, **changes):
    folder = write_run(root, plan=make_plan(run_id, **changes), train_s=train_s)
    entry = leaderboard.make_entry(score.compute(folder, root))
    leaderboard.append(root.board, entry)
    return folder


def find(folder, root):
    return best.find(read_plan(folder.plan), root, repo_board=root.path / "none.json")


def test_fastest_other_entry_of_the_cohort_is_found(root):
    enter(root, IDS[0], train_s=70.0)
    enter(root, IDS[1], train_s=50.0)
    enter(root, IDS[2], train_s=10.0, dtype="bf16")
    own = enter(root, IDS[3], train_s=40.0)

    found = find(own, root)

    assert found.entry.result.run_id == IDS[1]
    assert found.state.train_s == 50.0


def test_cohort_of_a_plan_is_that_of_its_score(root):
    folder = enter(root, IDS[0], train_s=70.0)

    planned = score.plan_cohort(read_plan(folder.plan), root)
    assert planned == score.compute(folder, root).cohort


def test_run_in_the_middle_belongs_to_its_cohort(root):
    enter(root, IDS[0], train_s=70.0)
    plan = make_plan(IDS[1])
    going_on = write_run(root, plan=plan, events=[ev.PhaseEvent(phase="training")])

    assert find(going_on, root).entry.result.run_id == IDS[0]


def test_nobody_is_found_when_alone_or_when_the_board_is_broken(root):
    own = enter(root, IDS[0], train_s=70.0)
    assert find(own, root) is None

    other = enter(root, IDS[1], train_s=50.0)
    root.board.write_text("{")
    assert find(other, root) is None


def test_entry_whose_folder_is_gone_has_no_curve(root):
    folder = enter(root, IDS[0], train_s=70.0)
    own = enter(root, IDS[1], train_s=90.0)
    for path in folder.root.iterdir():
        path.unlink()
    folder.root.rmdir()

    found = find(own, root)

    assert found.entry.result.train_s == 70.0
    assert found.state is None
    assert best.ahead_s(RunState.of("x"), found) is None


def val(step, loss, train_s):
    return ev.ValEvent(step=step, loss=loss, bpb=1.0, tokens=1, train_s=train_s, seconds=0.1)


@pytest.mark.parametrize(
    ("loss", "seconds"),
    [(5.0, None), (4.0, 10.0), (3.5, 15.0), (3.0, 20.0), (2.0, 40.0), (1.9, None)],
)
def test_time_of_a_loss_lies_on_the_line_between_two_validations(loss, seconds):
    vals = (val(1, 4.0, 10.0), val(2, 3.0, 20.0), val(3, math.nan, 25.0), val(4, 2.0, 40.0))

    assert best.reached_s(vals, loss) == (None if seconds is None else pytest.approx(seconds))


def test_ahead_is_what_the_best_run_needed_more(root):
    folder = enter(root, IDS[0], train_s=70.0)
    found = find(enter(root, IDS[1], train_s=90.0), root)
    assert found.entry.result.run_id == folder.run_id
    theirs = replace(found.state, val_events=(val(1, 4.0, 10.0), val(2, 3.0, 20.0)))
    found = Best(entry=found.entry, state=theirs)

    mine = replace(RunState.of("x"), val=val(5, 3.5, 12.0))

    assert best.ahead_s(mine, found) == pytest.approx(3.0)
    assert best.ahead_s(RunState.of("x"), found) is None
