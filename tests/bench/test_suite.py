"""The suite as its user runs it, on a machine without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.kernels import KERNELS
from bench.rows import OURS, Row, load, parse, save
from tests.bench.results import a_machine, a_row
from tests.conftest import REPO_ROOT

SUMMARY = REPO_ROOT / "bench" / "results" / "summary.json"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In an environment of its own: not that of the worker that runs this test."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=REPO_ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    before = SUMMARY.read_bytes() if SUMMARY.exists() else None
    done = bench("kernels", "--shapes", "tiny", "--json", "--commit", "abc")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (SUMMARY.read_bytes() if SUMMARY.exists() else None) == before
    return [parse(line) for line in done.stdout.splitlines()]


def test_rows_hold_every_kernel_and_the_layer(rows: list[Row]):
    timed = {row.what for row in rows if row.implementation == OURS and row.us}
    assert timed == {kernel.name for kernel in KERNELS} | {
        "layer forward",
        "layer forward + backward",
    }
    assert {row.machine.commit for row in rows} == {"abc"}
    assert {row.machine.gpu for row in rows} == {"cpu"}
    assert all(row.timings == 30 for row in rows if row.us)


def test_errors_are_no_larger_than_those_of_plain_torch(rows: list[Row]):
    ours = {row.what: row for row in rows if row.implementation == OURS and row.us}
    for row in ours.values():
        assert row.error is not None
        assert row.plain_error is not None
        assert row.error <= row.plain_error * 1.05, row.what
    assert ours["sort"].error == 0


def test_loss_is_measured_and_no_worse_than_plain_torch():
    done = bench("loss", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row.implementation: row for row in map(parse, done.stdout.splitlines()) if row.us}
    assert set(rows) == {OURS, "torch chunked"}
    assert set(rows[OURS].errors) == {"dx", "dw"}
    assert rows[OURS].error is not None
    assert rows[OURS].plain_error is not None
    assert 0 < rows[OURS].error <= rows[OURS].plain_error * 1.05


def test_peers_that_are_absent_say_why(rows: list[Row]):
    absent = {row.implementation: row.note for row in rows if row.note}
    assert set(absent) >= {"SonicMoE", "Liger"}
    assert set(absent.values()) == {"measured on GPUs only"}


def test_transport_is_measured_on_two_processes_and_compared(tmp_path: Path):
    rows, old = tmp_path / "rows.jsonl", tmp_path / "old.jsonl"
    here, whole = a_machine(gpu="cpu", gpus=0), "layer forward + backward"
    names = (OURS, "all_to_all_single")
    save(
        old,
        [
            a_row(here, what=whole, shape="tiny", implementation=name, us=0.001, spread_us=0.0)
            for name in names
        ],
    )
    done = bench("transport", "--rows", str(rows), "--compare", str(old))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {(row.implementation, row.what) for row in load(rows) if row.us}
    for name in names:
        assert {(name, "dispatch"), (name, "return"), (name, whole)} <= found
    assert "REGRESSION" in done.stdout
    assert f"rows: {rows}" in done.stdout
    assert bench("show", str(rows), "--compare", str(old)).stdout in done.stdout


def test_bench_needs_none_of_what_a_bare_machine_lacks():
    absent = ("textual", "duckdb", "datasets", "pynvml", "typer", "rich")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent})); import bench.__main__"
    subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, check=True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("kernels", "--shapes", "s9"), "error: shapes: got s9, expected some of tiny, tiny-zipf."),
        (("kernels", "--compare", "nowhere"), "error: [Errno 2] No such file"),
        (("transport", "--compare", "README.md"), "error: not a row of results"),
        (("summary", "README.md"), "error: not a row of results"),
        (("steps",), "n bench: error: argument WHAT: invalid choice"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(arguments, reason):
    done = bench(*arguments)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(reason)
