"""Scoreboards as files for others: a row an entry for programs, tables of Markdown for people."""

from collections.abc import Iterator, Sequence

from harness import format as fmt
from harness.entry import Entry
from harness.leaderboard import PUBLISHED_MARK, Board, Published, standings, time_of
from harness.sheet import Sheet, Value, escaped, markdown

COLUMNS = (
    *("board", "cohort", "task", "target", "machine", "devices", "dtype", "rank", "status"),
    *("preset", "train_s", "loss", "core", "core_low", "core_high", "step", "tokens", "wall_s"),
    *("tok_s", "mfu", "energy_j", "joules_per_token", "peak_memory_bytes", "repeats", "p"),
    *("seed", "finished", "run_id", "entry_id", "source"),
)


def sheet(boards: Sequence[Board]) -> Sheet:
    """A row an entry that has a place, best first within its cohort, then the published results.

    `train_s` is the time it is ranked by: of a set of repeats, their mean.
    """
    rows: list[Sequence[Value]] = []
    for board in boards:
        for standing in standings(board):
            rows += [_entry(board, row.rank, row.entry) for row in standing.rows]
        rows += [_published(board, each) for each in board.published]
    return Sheet(name="leaderboard", columns=COLUMNS, rows=rows)


def markdown_lines(boards: Sequence[Board]) -> list[str]:
    """A heading a board and a table a cohort; what others published stands apart."""
    lines: list[str] = []
    for board in boards:
        lines += (
            ["", f"## {escaped(str(board.path))}"] if lines else [f"## {escaped(str(board.path))}"]
        )
        lines += [] if board.entries or board.published else ["", "No entries yet."]
        for standing in standings(board):
            lines += ["", f"### {escaped(standing.cohort.label)}", ""]
            lines += markdown(
                ("#", "time", "steps", "tokens", "val loss", "CORE", "J/token", "preset", "status",
                 "date", "run"),
                (_cells(row.rank, row.entry) for row in standing.rows),
                right="rrrrrrr",
            )  # fmt: skip
        if board.published:
            lines += ["", f"### {PUBLISHED_MARK}", ""]
            lines += markdown(
                ("preset", "machine", "dtype", "time", "steps", "tokens", "val loss", "CORE",
                 "source"),
                _published_cells(board.published),
                right="   rrrrr",
            )  # fmt: skip
    return lines


def joules_per_token(entry: Entry) -> float | None:
    """GPU energy up to the target over the tokens trained on; None where GPUs did not tell."""
    joules, tokens = entry.result.energy_j, entry.result.tokens
    return None if joules is None or not tokens else joules / tokens


def _entry(board: Board, rank: int, entry: Entry) -> tuple[Value, ...]:
    result, cohort, core, repeats = entry.result, entry.cohort, entry.core, entry.replicates
    return (
        *(str(board.path), cohort.label, cohort.task, cohort.target, cohort.machine),
        *(cohort.devices, cohort.dtype, rank, entry.status, result.preset, time_of(entry)),
        *(result.loss, result.core, core.low, core.high, result.step, result.tokens),
        *(result.wall_s, result.tok_s, result.mfu, result.energy_j, joules_per_token(entry)),
        *(result.peak_memory_bytes, repeats.finished if repeats else None),
        *(repeats.p if repeats else None, result.seed, result.finished, result.run_id),
        *(entry.entry_id, None),
    )


def _published(board: Board, row: Published) -> tuple[Value, ...]:
    return (
        *(str(board.path), None, row.task, row.target, row.machine, row.devices, row.dtype),
        *(None, PUBLISHED_MARK, row.preset, row.train_s, row.loss, row.core, None, None),
        *(row.step, row.tokens, *(None,) * 12, row.source),
    )


def _cells(rank: int, entry: Entry) -> tuple[str, ...]:
    result = entry.result
    return (
        str(rank),
        fmt.exact_seconds(time_of(entry)),
        fmt.count(result.step),
        fmt.count(result.tokens),
        fmt.fixed(result.loss, decimals=5),
        fmt.fixed(result.core, decimals=5),
        fmt.fixed(joules_per_token(entry), decimals=4, none="N/A"),
        result.preset,
        entry.status,
        result.finished[:10],
        result.run_id,
    )


def _published_cells(rows: Sequence[Published]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        yield (
            row.preset,
            f"{row.devices}x {row.machine}",
            row.dtype,
            fmt.exact_seconds(row.train_s),
            fmt.count(row.step),
            fmt.count(row.tokens),
            fmt.fixed(row.loss, decimals=5),
            fmt.fixed(row.core, decimals=5),
            row.source,
        )
