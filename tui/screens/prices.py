"""Rows of the bench suite as values for the widgets. Pure functions."""

from collections.abc import Sequence

from harness import format as fmt
from harness.benchmarks import OURS, Bench, Metric, Results, Row
from harness.sheet import Sheet, Value
from tui.widgets import rows as wr
from tui.widgets.grid import Record, Table
from tui.widgets.meters import meter
from tui.widgets.rows import Role, clean
from tui.widgets.states import BENCH_SIGNS
from tui.widgets.table import Column

_BAR = 8
COLUMNS = (
    Column(title="what"),
    Column(title="shape", rank=1),
    Column(title="by"),
    Column(title="GPUs", rank=4),
    Column(title="time", align="right"),
    Column(title="rate", align="right", rank=5),
    Column(title="% of ceiling", align="right", rank=2),
    Column(title="before", rank=3),
    Column(title="x peer", align="right", rank=6),
    Column(title="error", align="right", rank=7),
    Column(title="commit", rank=8),
    Column(title="date", rank=9),
)


def machine(gpu: str, gpus: int) -> str:
    """A GPU by its product: 2 x H100."""
    words = [word for word in clean(gpu).split() if word.upper() != "NVIDIA"]
    name = words[0] if words else clean(gpu)
    return f"{gpus} x {name}" if gpus > 1 else name


def commit(text: str) -> str:
    """Seven digits of a commit, and whether the code was changed after it."""
    digits, plus, _ = clean(text).partition("+")
    return digits[:7] + plus


def key(bench: Bench) -> str:
    """What tells a row from the others."""
    return "\n".join(map(str, bench.row.key))


def select(results: Results, text: str) -> list[Bench]:
    """The rows in which every word stands somewhere."""
    words = text.lower().split()
    return [bench for bench in results.benches if all(word in _said(bench) for word in words)]


def _said(bench: Bench) -> str:
    row = bench.row
    parts = (row.what, row.shape, row.implementation, machine(row.gpu, row.gpus), row.commit,
             bench.verdict, row.note)  # fmt: skip
    return " ".join(parts).lower()


def table(benches: Sequence[Bench], *, empty: str) -> Table:
    """A row a key."""
    return Table(
        columns=COLUMNS,
        records=tuple(_record(bench) for bench in benches),
        empty=empty,
    )


def _record(bench: Bench) -> Record:
    row = bench.row
    error = "" if row.error is None else fmt.scientific(row.error)
    peer = bench.against_peer
    cells = (
        clean(row.what),
        clean(row.shape),
        clean(row.implementation),
        machine(row.gpu, row.gpus),
        _time(row),
        "" if row.rate is None else fmt.rate(row.rate, unit=clean(row.unit)),
        _share(row.percent),
        _before(bench),
        _faster(peer),
        error,
        commit(row.commit),
        clean(row.date[:10]),
    )
    orders = (row.what, row.shape, row.implementation, machine(row.gpu, row.gpus), row.us, row.rate,
              row.percent, bench.change, peer, row.error, row.commit, row.date)  # fmt: skip
    role: Role = "text" if row.implementation == OURS else "dim"
    return Record(id=key(bench), cells=cells, orders=orders, role=role)


def _time(row: Row) -> wr.Row:
    if row.us is None:
        return ((fmt.NOT_YET, "faint"),)
    return ((microseconds(row.us), "text"),)


def microseconds(us: float) -> str:
    """A time given in microseconds: 52.5 us, 1.87 ms."""
    return f"{fmt.fixed(us, decimals=1)} us" if us < 1000 else fmt.milliseconds(us / 1000)


def _share(percent: float | None) -> wr.Row:
    if percent is None:
        return ()
    return (*meter(percent / 100, _BAR, "line"), (f" {fmt.percent(percent / 100):>5}", "text"))


def _before(bench: Bench) -> wr.Row:
    """The word, and by how much where there is something before."""
    sign, change = BENCH_SIGNS[bench.verdict], bench.change
    more = ""
    if change is not None:
        more = f" {'+' if change >= 1 else ''}{fmt.percent(change - 1, decimals=1)}"
    return ((f"{sign.glyph} {sign.word}{more}", sign.role),)


def _faster(peer: float | None) -> wr.Row:
    """How many times as fast as the fastest other implementation."""
    if peer is None:
        return ()
    return ((f"{fmt.fixed(peer, decimals=2)}", "good" if peer >= 1 else "warn"),)


def metrics(found: Sequence[Metric]) -> tuple[tuple[wr.Row, ...], ...]:
    """The summary, each figure with its GPU and commit."""
    return (
        tuple(
            (
                (f"{clean(metric.name)} ", "dim"),
                (f"{_figure(metric.value)} {clean(metric.unit)}", "text"),
                (f" {machine(metric.gpu, metric.gpus)}@{commit(metric.commit)}", "faint"),
            )
            for metric in found
        ),
    )


def _figure(value: float) -> str:
    if value == int(value):
        return fmt.count(value)
    return fmt.fixed(value, decimals=2) if abs(value) < 1000 else fmt.count(value)


def detail(bench: Bench | None) -> tuple[tuple[wr.Row, ...], ...]:
    """One row: its spread, its peer, why there are no figures, and what came before it."""
    if bench is None:
        return ()
    row, peer = bench.row, bench.peer
    facts: list[wr.Row] = [
        ((BENCH_SIGNS[bench.verdict].meaning, BENCH_SIGNS[bench.verdict].role),),
        _fact(
            "spread", fmt.NOT_AVAILABLE if row.spread_us is None else microseconds(row.spread_us)
        ),
        _fact("timings", fmt.count(row.timings)),
        _fact("error of plain torch", _error(row.plain_error)),
        _fact("driver", clean(row.driver) or fmt.NOT_AVAILABLE),
    ]
    if peer is not None:
        facts.append(_fact("fastest peer", f"{clean(peer.implementation)} {_text(peer)}"))
    groups: list[tuple[wr.Row, ...]] = [tuple(facts)]
    if row.note:
        note: wr.Row = ((clean(row.note), "warn"),)
        groups.append((note,))
    for old in bench.history:
        groups.append((_fact(f"{clean(old.date[:10])} {commit(old.commit)}", _text(old)),))
    return tuple(groups)


def _error(value: float | None) -> str:
    return fmt.scientific(value, none=fmt.NOT_AVAILABLE)


def _text(row: Row) -> str:
    if row.us is not None:
        return microseconds(row.us)
    return fmt.rate(row.rate, unit=clean(row.unit)) if row.rate is not None else clean(row.note)


def _fact(label: str, text: str) -> wr.Row:
    return ((f"{label} ", "dim"), (text, "text"))


def sheet(benches: Sequence[Bench]) -> Sheet | None:
    """The rows, unformatted."""
    columns = ("what", "shape", "implementation", "gpu", "gpus", "us", "spread_us", "timings",
               "rate", "unit", "percent", "error", "times_slower_than_before", "verdict", "commit",
               "date", "note")  # fmt: skip
    rows: list[Sequence[Value]] = [
        (row.what, row.shape, row.implementation, row.gpu, row.gpus, row.us, row.spread_us,
         row.timings, row.rate, row.unit, row.percent, row.error, bench.change, bench.verdict,
         row.commit, row.date, row.note)
        for bench in benches
        for row in (bench.row,)
    ]  # fmt: skip
    return Sheet(name="kernels", columns=columns, rows=rows) if rows else None
