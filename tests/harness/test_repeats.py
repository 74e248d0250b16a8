"""Sets of repeats: what is registered, who counts, what makes an entry replicated."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import board_file, campaign, leaderboard, repeats, verify
from harness.compare import compare_runs
from harness.entry import Check, StatusChange, Verification
from harness.errors import RunError, UsageError
from harness.repeats import Series
from harness.tables import run_comparison_lines
from nmoe.config import Plan
from nmoe.events import OutcomeEvent, PhaseEvent
from nmoe.paths import DataRoot
from tests.harness.finished_run import make_plan, write_run

LOSSES = (1.290, 1.288, 1.292)


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(path=tmp_path, reason="test")


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch, root: DataRoot) -> None:
    """Made-up runs have no checkpoint: their verification is taken as passed."""

    def trust(name: str, _: DataRoot, *, level: int, steps: int = 0) -> Any:
        checks = tuple(Check(id=each, verdict="pass", reason="") for each in verify.NEEDED)
        made = Verification(checks=checks, utc="2026-01-02T00:00:00+00:00")
        after, board = board_file.amend(root.board, name, lambda e: verify.judged(e, made))
        return verify.Report(
            run_id=name, verification=made, status=after.status, board=str(board.path)
        )

    monkeypatch.setattr(verify, "verify", trust)


def base(steps: int = 200) -> Plan:
    plan = make_plan()
    return replace(plan, train=replace(plan.train, steps=steps))


def write_set(
    root: DataRoot,
    losses: Sequence[float | None] = LOSSES,
    *,
    times_s: Sequence[float] | None = None,
    seed: int | None = None,
    plan: Plan | None = None,
) -> Series:
    """A registered set; a loss of None is a run that never started."""
    series, plans = repeats.make_plans(plan or base(), times=len(losses), seed=seed)
    repeats.register(series, root)
    for i, (each, loss) in enumerate(zip(plans, losses, strict=True)):
        if loss is not None:
            is_reached = loss <= each.target.target_loss
            outcome = {} if is_reached else {"status": "missed", "loss": None}
            folder = write_run(
                root,
                plan=each,
                loss=loss,
                train_s=times_s[i] if times_s else 60.0 + i,
                changes={OutcomeEvent: outcome},
            )
            leaderboard.finish(folder, root)
    return series


def concluded(root: DataRoot, series: Series) -> campaign.Conclusion:
    return campaign.conclude(series, root, say=lambda *_: None)


def spoil(root: DataRoot, series: Series, index: int) -> None:
    """A run that came to an end without a word: its outcome is gone."""
    train = root.run(series.runs[index].run_id).train
    lines = train.read_text().splitlines(keepends=True)
    train.write_text("".join(lines[: len(lines) // 2]))


# ---------------------------------------------------------------------------------- registration


def test_registration_names_runs_and_seeds_before_any_starts(root: DataRoot) -> None:
    series, plans = repeats.make_plans(base(), times=5, seed=None)
    path = repeats.register(series, root)
    told = json.loads(path.read_text())
    assert [each["run_id"] for each in told["runs"]] == [plan.run_id for plan in plans]
    assert [each["seed"] for each in told["runs"]] == [plan.train.seed for plan in plans]
    assert len({plan.run_id for plan in plans}) == len({plan.train.seed for plan in plans}) == 5
    assert {plan.target.stop_rule for plan in plans} == {"fixed_horizon"}
    assert {plan.series for plan in plans} == {series.series}
    assert told["horizon"] == 200
    assert repeats.read(series.series, root) == series
    with pytest.raises(RunError, match="registered once"):
        repeats.register(series, root)


def test_seeds_count_up_when_one_is_named(root: DataRoot) -> None:
    series, _ = repeats.make_plans(base(), times=3, seed=7)
    assert [each.seed for each in series.runs] == [7, 8, 9]


def test_plan_of_a_set_is_the_recipe_of_the_one_it_was_made_from() -> None:
    plan = base()
    _, plans = repeats.make_plans(plan, times=2, seed=None)
    for each in plans:
        assert each.digests.config == plan.digests.config
        assert replace(each, run_id="", series=None, target=plan.target, train=plan.train) == (
            replace(plan, run_id="")
        )


@pytest.mark.parametrize("times", [0, -1, 101])
def test_number_of_runs_is_refused_when_it_is_none(times: int) -> None:
    with pytest.raises(UsageError, match="--repeat"):
        repeats.make_plans(base(), times=times, seed=None)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', "{" * 9999, "\udcff"])
def test_registration_that_cannot_be_read_is_refused(root: DataRoot, text: str) -> None:
    series, _ = repeats.make_plans(base(), times=3, seed=None)
    path = repeats.register(series, root)
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(RunError):
        repeats.read(series.series, root)


# ---------------------------------------------------------------------------------- the verdict


def test_three_repeats_below_the_target_are_replicated(root: DataRoot) -> None:
    series = write_set(root)
    found = concluded(root, series)
    made = found.replicates
    assert found.entry is not None
    assert made is not None
    assert found.entry.status == "replicated"
    assert (made.n, made.started, made.finished, made.failed) == (3, 3, 3, 0)
    assert made.mean_loss == pytest.approx(1.29)
    assert made.sd_loss == pytest.approx(0.002)
    assert made.z == pytest.approx((1.30 - 1.29) * 3**0.5 / 0.002)
    assert (made.sigma_df, made.sigma_from) == (2, "1 set(s) of repeats of this cohort")
    assert 0.005 < made.p < 0.01  # Student's t of 8.66 with two degrees of freedom
    assert made.mean_train_s == 61.0
    assert found.entry.result.run_id == series.runs[1].run_id  # the median time
    history = [change.status for change in found.entry.status_history]
    assert history == ["provisional", "verified", "replicated"]


def test_set_is_one_row_on_the_board_ranked_by_its_mean(root: DataRoot) -> None:
    concluded(root, write_set(root, times_s=[50.0, 60.0, 90.0]))
    single = write_run(root, plan=make_plan("pocket-single"), train_s=63.0)
    leaderboard.finish(single, root)
    board = leaderboard.load(root.board)
    (standing,) = leaderboard.standings(board)
    assert not leaderboard.verify(board)
    # the single run has the better time than the mean of 66.7 s, a worse one than the median
    assert [row.entry.result.run_id for row in standing.rows][0] == "pocket-single"
    assert len(standing.rows) == 2
    assert leaderboard.time_of(standing.rows[1].entry) == pytest.approx(200 / 3)


def test_verdict_is_the_same_when_it_is_given_again(root: DataRoot) -> None:
    series = write_set(root)
    first = concluded(root, series)
    lines = len(leaderboard.load(root.board).lines)
    again = concluded(root, series)
    assert again.replicates == first.replicates
    assert len(leaderboard.load(root.board).lines) == lines


@pytest.mark.parametrize(
    ("losses", "status", "reason"),
    [
        ((1.29, 1.28), "verified", "fewer than 3"),
        ((1.29, 1.28, 1.27, None), "verified", "1 runs did not come to the horizon"),
        ((1.29, 1.28, 1.40), "verified", "is above the target"),
        ((1.29, 1.28, 1.305), "replicated", "3 of 3 runs"),
        (tuple(1.28 + i / 1000 for i in range(10)), "certified", "10 of 10 runs"),
        ((*(1.28 + i / 1000 for i in range(9)), None), "certified", "9 of 10 runs"),
        ((*(1.28 + i / 1000 for i in range(8)), None, None), "verified", "2 runs did not come"),
    ],
)
def test_misses_and_failures_count(
    root: DataRoot, losses: Sequence[float | None], status: str, reason: str
) -> None:
    found = concluded(root, write_set(root, losses))
    assert found.entry is not None
    assert found.entry.status == status
    assert reason in found.reason
    made = found.replicates
    assert made is not None
    assert made.failed == sum(loss is None for loss in losses)
    assert len(made.run_ids) == len(losses)  # those that failed stay visible
    assert not leaderboard.verify(leaderboard.load(root.board))


def test_run_that_died_is_a_failure_of_its_set(root: DataRoot) -> None:
    series = write_set(root)
    spoil(root, series, 1)
    found = concluded(root, series)
    made = found.replicates
    assert made is not None
    assert made.statuses == ("done", "failed", "done")
    assert (made.finished, made.failed) == (2, 1)
    assert found.entry is not None
    assert found.entry.status == "verified"


def test_set_with_a_disputed_run_is_not_replicated(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = write_set(root)
    bad = series.runs[0].run_id
    trusted = verify.verify

    def doubt(name: str, *args: Any, **kwargs: Any) -> Any:
        report = trusted(name, *args, **kwargs)
        if name == bad:
            failure = Verification(checks=(Check(id="V2.reeval", verdict="fail", reason=""),))
            board_file.amend(root.board, name, lambda e: verify.judged(e, failure))
        return report

    monkeypatch.setattr(verify, "verify", doubt)
    found = concluded(root, series)
    assert found.entry is not None
    assert found.entry.status == "verified"
    assert f"disputed: {bad}" in found.reason


def test_copies_of_one_run_are_no_repeats(root: DataRoot) -> None:
    found = concluded(root, write_set(root, [1.29, 1.29, 1.29]))
    assert found.entry is None
    assert "all equal" in found.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 5}, "seed: got 5, registered"),
        ({"steps": 300}, "ended at step 300, registered 200"),
        ({"series": "another"}, "belongs to another set"),
        ({"commit": "d" * 40}, "code, data or cohort differ"),
        ({"config": "e" * 64}, "its recipe is not the registered one"),
    ],
)
def test_run_that_is_not_as_registered_spoils_its_set(
    root: DataRoot, changes: dict[str, Any], reason: str
) -> None:
    series, plans = repeats.make_plans(base(), times=3, seed=None)
    repeats.register(series, root)
    for i, (each, loss) in enumerate(zip(plans, LOSSES, strict=True)):
        steps = 200
        if i == 2:
            steps = changes.get("steps", 200)
            train = replace(each.train, seed=changes.get("seed", each.train.seed))
            digests = replace(
                each.digests,
                commit=changes.get("commit", each.digests.commit),
                config=changes.get("config", each.digests.config),
            )
            name = changes.get("series", each.series)
            each = replace(each, train=train, digests=digests, series=name)
        leaderboard.finish(write_run(root, plan=each, loss=loss, steps=steps), root)
    found = concluded(root, series)
    assert found.entry is None
    assert reason in found.reason


def test_spread_of_a_cohort_is_pooled_over_its_sets(root: DataRoot) -> None:
    first = concluded(root, write_set(root)).replicates
    second = concluded(root, write_set(root, [1.281, 1.285, 1.283])).replicates
    assert first is not None
    assert second is not None
    assert (second.sigma_df, second.sigma_from) == (4, "2 set(s) of repeats of this cohort")
    assert second.sigma == pytest.approx(0.002)


def test_forged_repeats_are_found_on_the_board(root: DataRoot) -> None:
    found = concluded(root, write_set(root, LOSSES[:2]))
    entry, made = found.entry, found.replicates
    assert entry is not None
    assert made is not None
    change = StatusChange(status="replicated", utc="2026-01-03T00:00:00+00:00", reason="please")
    board_file.amend(
        root.board,
        entry.result.run_id,
        lambda before: replace(
            before, status="replicated", status_history=(*before.status_history, change)
        ),
    )
    problems = leaderboard.verify(leaderboard.load(root.board))
    assert any("fewer than 3 repeats that finished" in each for each in problems)


# -------------------------------------------------------------------------------------- comparing


def test_compare_gives_paired_intervals_of_loss_and_time(root: DataRoot) -> None:
    a = write_set(
        *(root, [1.290, 1.292, 1.288, 1.291, 1.290, 1.289]),
        times_s=[60.0, 61.0, 60.5, 60.2, 60.4, 60.6],
    )
    b = write_set(
        *(root, [1.280, 1.283, 1.279, 1.280, 1.281, 1.279]),
        times_s=[58.0, 58.9, 58.4, 58.3, 58.5, 58.6],
    )
    found = compare_runs(a.series, b.series, root)
    assert found.loss.n == 6
    assert found.loss.mean == pytest.approx(-0.058 / 6)
    assert found.loss.high is not None
    assert found.loss.high < 0
    assert found.train_s.mean == pytest.approx(-12 / 6)
    assert found.is_other_loss
    assert found.is_other_time
    assert any("not interleaved" in note for note in found.notes)
    text = "\n".join(run_comparison_lines(found))
    assert "loss: B is lower; time: B is lower" in text


def test_compare_finds_nothing_in_noise(root: DataRoot) -> None:
    a = write_set(root, [1.290, 1.292, 1.288], times_s=[60.0, 61.0, 60.5])
    b = write_set(root, [1.292, 1.289, 1.289], times_s=[60.5, 60.2, 60.9])
    found = compare_runs(a.series, b.series, root)
    assert not found.is_other_loss
    assert not found.is_other_time
    assert "loss: no difference shown" in "\n".join(run_comparison_lines(found))


def test_compare_shows_nothing_with_few_pairs_however_alike_they_are(root: DataRoot) -> None:
    a = write_set(root, [1.290, 1.292, 1.288], times_s=[60.0, 61.0, 60.5])
    b = write_set(root, [1.280, 1.283, 1.279], times_s=[50.0, 51.0, 50.5])
    found = compare_runs(a.series, b.series, root)
    assert found.train_s.high is not None
    assert found.train_s.high < 0
    assert (found.is_other_loss, found.is_other_time) == (False, False)
    assert any("fewer than 6 pairs" in note for note in found.notes)


def test_compare_of_single_runs_has_no_interval(root: DataRoot) -> None:
    for number, loss in enumerate((1.29, 1.28)):
        write_run(root, plan=make_plan(f"pocket-{number}"), loss=loss)
    found = compare_runs("pocket-0", "pocket-1", root)
    assert found.loss.low is None
    assert found.loss.mean == pytest.approx(-0.01)
    assert any("one pair has no interval" in note for note in found.notes)
    assert "no interval" in "\n".join(run_comparison_lines(found))


def test_compare_refuses_across_cohorts(root: DataRoot) -> None:
    a = write_set(root)
    plan = base()
    b = write_set(root, plan=replace(plan, hardware=replace(plan.hardware, cores=64)))
    with pytest.raises(UsageError, match="devices: 2 and 64"):
        compare_runs(a.series, b.series, root)


def test_compare_refuses_a_run_without_a_final_loss(root: DataRoot) -> None:
    plan = make_plan("pocket-0")
    folder = write_run(root, plan=make_plan("pocket-1"))
    write_run(root, plan=plan, events=[PhaseEvent(phase="training")])
    with pytest.raises(UsageError, match="no run with a final loss"):
        compare_runs("pocket-0", folder.run_id, root)


def test_compare_says_when_steps_differ_or_a_partner_is_missing(root: DataRoot) -> None:
    a = write_set(root, [1.29, 1.28, 1.285])
    b = write_set(root, [1.29, 1.28])
    notes = compare_runs(a.series, b.series, root).notes
    assert any("3 and 2 runs" in note for note in notes)
    write_run(root, plan=make_plan("long"), steps=300)
    write_run(root, plan=make_plan("short"), steps=200)
    notes = compare_runs("long", "short", root).notes
    assert any("different steps: 200, 300" in note for note in notes)
