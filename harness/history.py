"""Curves of runs, out of their Parquet metrics with DuckDB: rows (run, tag, step, ts_ms, value).

The trainer writes its own; what GPUs said once a second becomes such rows after the run, each at
the step that was logged last. Names and tags are bound as values, never pasted into a query.
"""

import glob
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import duckdb

from harness.errors import RunError
from nmoe.events import GpuEvent
from nmoe.paths import DataRoot, RunFolder

# A step that was run again after a resume is in two parts: the later row counts.
_CURVE = """
SELECT step, max(ts_ms), arg_max(value, ts_ms)
FROM read_parquet($files)
WHERE run = $run AND tag = $tag
GROUP BY step
ORDER BY step
"""
# What a sample has of numbers; None is no row.
_FIELDS = [
    item.name
    for item in fields(GpuEvent)
    if item.name != "index" and not item.name.startswith("is_")
]
_NAMES, _TYPES = ", ".join(_FIELDS), ", ".join(f"{name}: 'DOUBLE'" for name in _FIELDS)
_GPU_ROWS = f"""
CREATE TABLE gpu_rows AS
WITH samples AS (
    SELECT t, "index", {_NAMES}
    FROM read_json($gpus, format = 'newline_delimited', ignore_errors = true, columns = {{
        t: 'DOUBLE', k: 'VARCHAR', index: 'BIGINT', {_TYPES}
    }})
    WHERE k = 'gpu'
), steps AS (
    SELECT t, max(step) AS step
    FROM read_json($train, format = 'newline_delimited', ignore_errors = true, columns = {{
        t: 'DOUBLE', k: 'VARCHAR', step: 'BIGINT'
    }})
    WHERE k = 'step'
    GROUP BY t
), told AS (
    UNPIVOT samples ON {_NAMES} INTO NAME field VALUE value
)
SELECT $run AS run, 'gpu/' || "index" || '/' || field AS tag, coalesce(step, 0) AS step,
    CAST(told.t * 1000 AS BIGINT) AS ts_ms, value
FROM told ASOF LEFT JOIN steps ON told.t >= steps.t
ORDER BY ts_ms, tag
"""
# Every value passes through the hash: statistics of a part cannot answer for damaged pages.
_READ_ALL = "SELECT sum(hash(run, tag, step, ts_ms, value)) FROM read_parquet($files)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One tag of one run by step; `problems` name the parts that could not be read."""

    steps: tuple[int, ...] = ()
    ts_ms: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    problems: tuple[str, ...] = ()


def write_gpus(folder: RunFolder) -> None:
    """Make gpu.parquet of a run's samples, whole or not at all; nothing when there are none.

    Raises RunError when they cannot be read or written.
    """
    if not (folder.gpus.is_file() and folder.train.is_file()):
        return
    values = {"gpus": glob.escape(str(folder.gpus)), "train": glob.escape(str(folder.train))}
    temporary = folder.gpu_metrics.with_suffix(".tmp")
    try:
        with closing(duckdb.connect(":memory:", config={"threads": 1})) as connection:
            connection.execute(_GPU_ROWS, {**values, "run": folder.run_id})
            rows = connection.table("gpu_rows")
            if len(rows):
                rows.write_parquet(str(temporary))
                temporary.replace(folder.gpu_metrics)
    except (duckdb.Error, OSError) as error:
        temporary.unlink(missing_ok=True)
        reason = str(error).partition("\n")[0]
        raise RunError(f"{folder.gpu_metrics} was not written: {reason}") from None


def curve(root: DataRoot, run_id: str, tag: str) -> Curve:
    """The values of `tag` in a run, one a step; empty with a problem when there are no metrics."""
    rows, problems = _query(root, run_id, _CURVE, {"run": run_id, "tag": tag})
    return Curve(
        steps=tuple(row[0] for row in rows),
        ts_ms=tuple(row[1] for row in rows),
        values=tuple(row[2] for row in rows),
        problems=problems,
    )


def _query(
    root: DataRoot, run_id: str, query: str, values: dict[str, str]
) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    """The rows of a query over the whole parts of a run, and what is wrong with the others."""
    folder = root.run(run_id).metrics
    files = sorted(folder.glob("step_*.parquet"))
    gpus = root.run(run_id).gpu_metrics
    files += [gpus] if gpus.is_file() else []
    if not files:
        return [], (f"no metrics in {folder}",)
    with closing(duckdb.connect(":memory:", config={"threads": 1})) as connection:
        try:
            return _ask(connection, query, files, values), ()
        except duckdb.Error:
            problems = _problems(connection, files)
        whole = [file for file in files if file not in problems]
        rows = _ask(connection, query, whole, values) if whole else []
        return rows, tuple(problems.values())


def _problems(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> dict[Path, str]:
    """What is wrong with each part that cannot be read to its end."""
    problems: dict[Path, str] = {}
    for file in files:
        try:
            _ask(connection, _READ_ALL, [file], {})
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            problems[file] = f"{file.name} is torn or no part of these metrics: {reason}"
    return problems


def _ask(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    files: Sequence[Path],
    values: dict[str, str],
) -> list[tuple[Any, ...]]:
    # DuckDB takes a path for a pattern, and a data root may well have brackets in its name.
    names = [glob.escape(str(file)) for file in files]
    return connection.execute(query, {**values, "files": names}).fetchall()
