"""Turns, failures, medians; the arithmetic from times to rows."""

from collections.abc import Callable

import pytest

from bench.machine import Ceilings
from bench.report import Report
from bench.rows import OURS, Row
from bench.timing import Contest, median, spread
from nmoe.probe import Stopwatch, gbps, tflops
from tests.bench.results import a_machine


def entrant(calls: list[str], name: str) -> Callable[[], dict[str, float]]:
    def run() -> dict[str, float]:
        calls.append(name)
        return {"x": float(len(calls))}

    return run


def failing() -> dict[str, float]:
    raise RuntimeError("Can process at most 1024 groups\nmore")


def test_entrants_take_turns_and_each_begins_once():
    calls: list[str] = []
    contest = Contest(
        prepare=lambda: calls.append("new"), entrants={n: entrant(calls, n) for n in "abc"}
    )
    for _ in range(3):
        contest.round()
    assert "".join(calls).split("new") == ["", "abc", "bca", "cab"]
    assert contest.taken("a", "x", last=2) == [8.0, 11.0]


def test_peer_that_fails_is_out_with_its_reason():
    calls: list[str] = []
    contest = Contest(prepare=lambda: None, entrants={OURS: entrant(calls, OURS), "peer": failing})
    for _ in range(2):
        contest.round()
    assert contest.failures == {"peer": "failed: Can process at most 1024 groups"}
    assert contest.taken("peer", "x", last=2) == []
    assert calls == [OURS, OURS]


def test_failure_of_our_own_is_no_note():
    contest = Contest(prepare=lambda: None, entrants={OURS: failing})
    with pytest.raises(RuntimeError, match="1024 groups"):
        contest.round()


def test_pieces_are_timed_from_one_start():
    order: list[str] = []
    first, second = Stopwatch("cpu").time(
        lambda: order.append("a"), lambda: order.append("b"), ready=lambda: order.append("ready")
    )
    assert order == ["ready", "a", "b"]
    assert 0 < first < second


def test_spread_is_the_interquartile_range():
    assert median([3.0, 1.0, 2.0, 100.0]) == 2.5
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0
    assert spread([7.0]) == 0.0


def test_rates_are_of_work_and_time():
    assert tflops(812e9, 1000.0) == pytest.approx(812)
    assert gbps(4e9, 1000.0) == pytest.approx(4000)


def test_row_is_the_median_beside_the_ceiling():
    rows: list[Row] = []
    ceilings = Ceilings(matmul=800.0, copy=4000.0, peer=400.0)
    report = Report(rows=rows, machine=a_machine(), ceilings=ceilings)
    contest = Contest(prepare=lambda: None, entrants={})
    contest.times = {(OURS, "up"): [900.0, 1000.0, 1100.0], ("peer", "up"): [2000.0]}
    contest.failures = {"other": "failed: no"}
    facts = {"what": "up", "shape": "s1"}
    report.add(
        contest, OURS, **facts, work=4e11, unit="TFLOP/s", errors={"h": 0.1, "a": 0.2}, plain={}
    )
    report.add(contest, "peer", **facts, work=4e9, unit="GB/s", plain={"a": 0.3})
    report.add(contest, "peer", **facts, work=4e8, unit="GB/s", ceiling=ceilings.peer)
    report.add(contest, "other", **facts, work=1.0, unit="GB/s")
    ours, copied, sent, other = rows
    assert (ours.us, ours.timings, ours.spread_us) == (1000.0, 3, 100.0)
    assert (ours.rate, ours.percent, ours.error) == (pytest.approx(400), pytest.approx(50), 0.2)
    assert (copied.percent, copied.plain_error) == (pytest.approx(50), 0.3)
    assert sent.percent == pytest.approx(50)
    assert (other.us, other.note) == (None, "failed: no")
