"""Rows of the bench suite: read as it writes them, judged as it judges, beside a peer."""

import json
from dataclasses import replace

import pytest

from bench import rows as suite
from harness import benchmarks
from harness.benchmarks import Row, compare
from nmoe.paths import BENCH_RESULTS
from tests.bench.results import a_machine, a_row

ROW = Row(what="up", shape="s1", implementation="nmoe", gpu="NVIDIA H200", gpus=1,
          commit="aaaaaaa", date="2026-01-01", us=100.0, spread_us=1.0, timings=30)  # fmt: skip


def later(**changes):
    return replace(ROW, commit="bbbbbbb", date="2026-01-02", **changes)


def test_rows_of_the_repository_are_read_whole():
    found = benchmarks.read()
    lines = sum(len(path.read_text().splitlines()) for path in BENCH_RESULTS.glob("*.jsonl"))

    assert found.problems == ()
    assert sum(1 + len(bench.history) for bench in found.benches) == lines
    summary = json.loads((BENCH_RESULTS / "summary.json").read_text())
    assert {metric.name: metric.value for metric in found.metrics} == {
        name: value["value"] for name, value in summary.items()
    }


@pytest.mark.parametrize(
    ("us", "spread_us", "verdict"),
    [(104.0, 1.0, "slower"), (102.9, 0.1, "same"), (104.0, 5.0, "same"), (100.0, 1.0, "same"),
     (96.0, 1.0, "faster"), (97.5, 0.1, "same"), (50.0, 60.0, "same")],
)  # fmt: skip
def test_verdict_is_that_of_the_suite(us, spread_us, verdict):
    (bench,) = compare([ROW, later(us=us, spread_us=spread_us)])
    assert bench.verdict == verdict
    assert bench.change == pytest.approx(us / 100)

    old = a_row(us=100.0, spread_us=1.0, timings=30, machine=a_machine(commit="a"))
    new = a_row(us=us, spread_us=spread_us, timings=30, machine=a_machine(commit="b"))
    assert (verdict == "slower") == bool(suite.regressions([old], [new]))


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ({}, None, "first"),
        ({"timings": 1}, {"us": 200.0}, "unjudged"),
        ({"us": None, "rate": 10.0}, {"us": None, "rate": 5.0}, "unjudged"),
        ({}, {"us": None, "note": "not installed"}, "failed"),
    ],
)
def test_row_that_cannot_be_judged_has_another_word(old, new, verdict):
    rows = [replace(ROW, **old)] + ([] if new is None else [later(**new)])
    (bench,) = compare(rows)

    assert bench.verdict == verdict


def test_row_of_the_same_commit_is_no_before():
    again = replace(ROW, us=300.0, date="2026-01-03")
    (bench,) = compare([ROW, again])

    assert bench.row == again
    assert bench.before is None
    assert bench.history == (ROW,)


def test_other_gpus_are_never_compared():
    assert len(compare([ROW, later(gpu="NVIDIA H100"), later(gpus=2)])) == 3


def test_peer_is_the_fastest_other_implementation():
    torch = replace(ROW, implementation="torch", us=300.0)
    sonic = replace(ROW, implementation="sonicmoe", us=150.0)
    broken = replace(ROW, implementation="liger", us=None, note="not installed")
    ours, *others = compare([ROW, torch, sonic, broken])

    assert ours.peer == sonic
    assert ours.against_peer == pytest.approx(1.5)
    assert all(bench.peer is None for bench in others)


def test_rate_counts_the_other_way_round():
    old = replace(ROW, us=None, rate=100.0, unit="GB/s")
    (bench,) = compare([old, replace(later(), us=None, rate=80.0, unit="GB/s")])

    assert bench.change == pytest.approx(1.25)


def test_lines_that_are_no_rows_are_named_and_lose_nothing(tmp_path):
    good = suite.dump(a_row())
    (tmp_path / "a.jsonl").write_text(f"{good}\n{{\n[]\n" + '{"what": 5}\n')
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\n")
    (tmp_path / "summary.json").write_text("[]")

    found = benchmarks.read(tmp_path)

    assert len(found.benches) == 1
    assert [problem.split(" is ")[0] for problem in found.problems[:3]] == [
        f"a.jsonl line {number}" for number in (2, 3, 4)
    ]
    assert "b.jsonl cannot be read" in found.problems[3]
    assert "summary.json cannot be read" in found.problems[4]


def test_folder_that_is_not_there_is_empty(tmp_path):
    assert benchmarks.read(tmp_path / "none") == benchmarks.Results()
