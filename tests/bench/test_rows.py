"""Rows survive their file; what regressed; what enters the summary."""

import json
import math

import pytest

from bench.rows import BOTH, DISPATCH, SYNCS, dump, load, parse, regressions, right, save, summarize
from bench.rows import update_summary as update
from tests.bench.results import a_machine, a_row

COLUMNS = {
    *("what", "shape", "implementation", "us", "rate", "unit", "percent", "error"),
    *("commit", "gpu", "gpus", "driver", "versions", "date"),
}


def test_row_is_one_object_with_every_column():
    line = dump(a_row(errors={"y": 0.002, "dx": 0.003}))
    assert "\n" not in line
    record = json.loads(line)
    assert set(record) >= COLUMNS
    assert record["error"] == 0.003


def test_row_is_the_same_when_read_again(tmp_path):
    rows = [a_row(), a_row(us=None, timings=0, rate=None, note="sonicmoe is not installed")]
    save(tmp_path / "rows.jsonl", rows)
    assert load(tmp_path / "rows.jsonl") == rows


def test_error_is_nan_when_any_output_is():
    assert math.isnan(a_row(errors={"y": 0.1, "dx": math.nan, "dw1": 0.2}).error or 0.0)


@pytest.mark.parametrize(
    ("error", "is_right"), [(0.004, True), (0.02, False), (math.nan, False), (math.inf, False)]
)
def test_outputs_are_right_when_each_is_near(error, is_right):
    assert right({"y": 0.002, "dx": error}) is is_right


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"what": "up"}', dump(a_row())[:-1] + ', "x": 1}']
)
def test_parse_refuses_what_is_no_row(line):
    with pytest.raises(ValueError, match="not a row of results"):
        parse(line)


@pytest.mark.parametrize(
    ("old", "new", "regressed"),
    [
        ((100.0, 1.0), (104.0, 1.0), True),
        ((100.0, 1.0), (102.9, 0.1), False),  # within 3 %
        ((100.0, 5.0), (104.0, 1.0), False),  # within the old spread
        ((100.0, 1.0), (104.0, 5.0), False),  # within the new one
        ((100.0, 1.0), (50.0, 1.0), False),
        ((None, None), (104.0, 1.0), False),
        ((100.0, 1.0), (None, None), False),
    ],
)
def test_regression_is_slower_than_3_percent_and_both_spreads(old, new, regressed):
    before, after = (a_row(us=us, spread_us=spread) for us, spread in (old, new))
    assert bool(regressions([before], [after])) is regressed


@pytest.mark.parametrize(
    "change",
    [
        {"shape": "s4"},
        {"what": "sort"},
        {"implementation": "torch"},
        {"machine": a_machine(gpu="NVIDIA B200")},
        {"machine": a_machine(gpus=2)},
    ],
)
def test_rows_of_different_things_are_not_compared(change):
    assert regressions([a_row()], [a_row(**{"us": 9000.0, **change})]) == {}


def test_regression_says_how_many_times_slower():
    new = a_row(us=3000.0)
    assert regressions([a_row()], [new]) == {new.key: 1.5}


def test_summary_holds_the_figures_of_the_layer_and_the_transport():
    two = a_machine(gpus=2)
    summary = summarize(
        {},
        [
            a_row(),
            a_row(what=BOTH, us=5234.56),
            a_row(two, what=BOTH, us=6500.0),
            a_row(two, what=DISPATCH, us=280.0, rate=333.33, unit="GB/s"),
            a_row(what=SYNCS, us=None, timings=0, rate=0.0, unit="syncs"),
        ],
    )
    assert {name: (each["value"], each["unit"]) for name, each in summary.items()} == {
        "s1_fwd_ms_1gpu": (2.0, "ms"),
        "s1_fwdbwd_ms_1gpu": (5.2346, "ms"),
        "s1_fwdbwd_ms_2gpu": (6.5, "ms"),
        "dispatch_gbps_2gpu": (333.3, "GB/s"),
        "layer_host_syncs": (0.0, "syncs"),
    }
    assert summary["dispatch_gbps_2gpu"] == {
        "value": 333.3,
        "unit": "GB/s",
        "gpu": "NVIDIA H200",
        "gpus": 2,
        "commit": "0123456789abcdef",
        "date": "2026-01-02T00:00:00+00:00",
    }


@pytest.mark.parametrize(
    "row",
    [
        a_row(a_machine(gpu="cpu", gpus=0), us=1.0),
        a_row(a_machine(gpu="cpu", gpus=1), us=1.0),
        a_row(us=1.0, timings=29),
        a_row(a_machine(date="2026-01-01T00:00:00+00:00"), us=1.0),
        a_row(us=1.0, implementation="nmoe, graph replay"),
        a_row(us=None, timings=0, note="failed"),
    ],
)
def test_summary_keeps_what_it_has_when_a_row_does_not_count(row):
    summary = summarize({}, [a_row()])
    assert summarize(summary, [row]) == summary


def test_summary_takes_the_newer_and_keeps_other_machines():
    other = {"value": 1.0, "unit": "ms", "date": "2025", "gpu": "NVIDIA B200"}
    old = {"s1_fwdbwd_ms_2gpu": other, **summarize({}, [a_row()])}
    slower = a_row(a_machine(date="2026-02-01T00:00:00+00:00"), us=2500.0)
    new = summarize(old, [slower])
    assert new["s1_fwdbwd_ms_2gpu"] == other
    assert new["s1_fwd_ms_1gpu"]["value"] == 2.5


def test_summary_file_is_untouched_when_nothing_is_new(tmp_path):
    file = tmp_path / "summary.json"
    assert not update(file, [a_row(a_machine(gpu="cpu"))])
    assert not file.exists()
    assert update(file, [a_row()])
    assert not update(file, [a_row()])
    assert json.loads(file.read_text()) == summarize({}, [a_row()])
