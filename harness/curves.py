"""The curves of a run: as rows for programs, as charts for people; pure functions of its state."""

import math
from collections.abc import Iterable, Iterator, Sequence

from harness import format as fmt
from harness import svg
from harness.run_state import CURVES, RunState
from harness.series import Point, Series
from harness.sheet import Sheet, Value

# Of the moving average: some ten step events are in it.
DECAY = 0.9
# Samples come every second or two.
MAX_GAP_S = 10.0
COLUMNS = (
    *("kind", "step", "tokens", "train_s", "wall_s", "loss", *CURVES),
    *("bpb", "val_tokens", "seconds"),
)


def sheet(state: RunState) -> Sheet:
    """A row a step event and a row a validation, in their order; numbers are those of the events.

    Columns have the names and units of the events' fields. `tokens` are those trained on, and
    `val_tokens` those a validation counted; its `train_s` is the clock it stopped.
    """
    steps = [
        ((point.step, 0), ("step", *_place(point), *curve, None, None, None))
        for point, curve in zip(state.losses, _curves(state), strict=True)
    ]
    blank = (None,) * len(CURVES)
    vals = [
        (
            (val.step, 1),
            (
                *("val", val.step, point.tokens, val.train_s, None, val.loss, *blank),
                *(val.bpb, val.tokens, val.seconds),
            ),
        )
        for val, point in zip(state.val_events, state.vals, strict=True)
    ]
    rows = [row for _, row in sorted((*steps, *vals), key=lambda item: item[0])]
    return Sheet(name="curves", columns=COLUMNS, rows=rows)


def loss_chart(state: RunState) -> svg.Chart:
    """Validation loss, training loss under its moving average, target, and what happened."""
    raw = [(float(point.step), point.value) for point in state.losses]
    mean = list(zip((x for x, _ in raw), averages([y for _, y in raw], DECAY), strict=True))
    vals = [(float(val.step), val.loss) for val in state.val_events]
    target = state.target
    return svg.Chart(
        title=f"loss of {state.run_id}",
        x_label=_x_label(state),
        y_label="loss, nats a token",
        lines=(
            svg.Line("training", raw, "raw"),
            svg.Line(f"training, average {DECAY:g}", mean, "mean"),
            svg.Line("validation", vals, "val"),
        ),
        marks=tuple(svg.Mark(float(mark.step), mark.kind) for mark in state.marks),
        level=None if target is None else (target, f"target {target:g}"),
        height=380,
        cuts_head=True,
    )


def speed_charts(state: RunState, power: Sequence[tuple[float, float]]) -> list[svg.Chart]:
    """Throughput, learning rate and, where GPUs told it, the power of all of them."""
    marks = tuple(svg.Mark(float(mark.step), mark.kind) for mark in state.marks)
    charts = [
        svg.Chart(
            title=f"{title} of {state.run_id}",
            x_label=_x_label(state),
            y_label=label,
            lines=(svg.Line(title, _points(state.curves.get(name, Series()))),),
            marks=marks,
            height=230,
            floor=0.0,
        )
        for name, title, label in (
            ("tok_s", "throughput", "tokens a second"),
            ("lr", "learning rate", "learning rate"),
        )
    ]
    if power:
        charts.append(
            svg.Chart(
                title=f"GPU power of {state.run_id}",
                x_label="seconds since training began",
                y_label="power of all GPUs, W",
                lines=(svg.Line("power", list(_with_gaps(power))),),
                height=230,
                floor=0.0,
            )
        )
    return charts


def averages(values: Iterable[float], decay: float) -> Iterator[float]:
    """The moving average, without the pull towards 0 that its first values would feel.

    What is not finite leaves it alone; it is NaN before the first finite value.
    """
    total, weight = 0.0, 0.0
    for value in values:
        if math.isfinite(value):
            total = decay * total + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        yield total / weight if weight else math.nan


def _place(point: Point) -> tuple[Value, ...]:
    return (point.step, point.tokens, point.train_s, point.wall_s, point.value)


def _curves(state: RunState) -> list[tuple[Value, ...]]:
    """The other fields of every step event; NaN is None where a field may be unknown."""
    series = [state.curves.get(name, Series()).values for name in CURVES]
    return [
        tuple(
            None if name == "mfu" and math.isnan(value) else value
            for name, value in zip(CURVES, row, strict=True)
        )
        for row in zip(*series, strict=True)
    ]


def _with_gaps(points: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points with a break where nobody sampled, as between two attempts."""
    before = math.inf
    for x, y in points:
        if x - before > MAX_GAP_S:
            yield x, math.nan
        yield x, y
        before = x


def _points(series: Series) -> list[tuple[float, float]]:
    return [(float(point.step), point.value) for point in series]


def _x_label(state: RunState) -> str:
    if state.plan is None:
        return "step"
    return f"step of {fmt.count(state.plan.train.batch_size * state.plan.train.seq_len)} tokens"
