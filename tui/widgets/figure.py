"""A chart as values: what there is to draw, how it is looked at, and what it says in words."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from harness import format as fmt
from tui.widgets.axis import x_text
from tui.widgets.curve import AXES, Axis, Curve
from tui.widgets.forecast import Forecast
from tui.widgets.pyramid import Floats
from tui.widgets.rows import Role, Row, join_fitting

EventKind: TypeAlias = Literal["resume", "checkpoint", "throttle"]
VALIDATION, FORECAST, ODD = "◆", "◇", "×"
EVENT_SIGNS: dict[EventKind, tuple[str, Role]] = {
    "throttle": ("▲", "warn"),
    "resume": ("↻", "accent"),
    "checkpoint": ("▾", "dim"),
}
DECAYS = (0.0, 0.6, 0.9, 0.98)
# Smoothing that nobody chose: an average over few points would only lag behind them.
_DECAY_FROM = ((3000, 0.9), (600, 0.6))
# A forecast may widen the axis by so much of what there is; further ones leave it to the right.
_MAX_AHEAD = 0.5
_MIN_SPAN = 1e-6  # of the whole axis: closer is not looked
_MIN_STEPS = 4.0
_MIN_STOP = 1e-100  # of an axis: parts of less are no numbers any more


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMark:
    """Something that happened at a step."""

    step: float
    kind: EventKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Another curve on the same axes, told apart by its dashes as much as by its colour."""

    name: str
    curve: Curve = field(default_factory=Curve, compare=False)


class Dash(NamedTuple):
    """How an overlay is drawn: its role, cells drawn and cells left out in turn."""

    role: Role
    on: int
    off: int


# Of the overlays in their order; there are no more of them.
DASHES = (
    Dash("accent", 3, 1),
    Dash("mark", 2, 2),
    Dash("ghost", 1, 1),
    Dash("good", 4, 2),
    Dash("bad", 1, 3),
    Dash("text", 6, 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What to draw; two charts are the same when their `revision` is.

    Marks, events and forecast are placed by step, wherever the curve has that step on the axis
    that is shown. The ghost is another curve with axes of its own.
    """

    revision: tuple[object, ...] = ()
    name: str = "loss"
    curve: Curve = field(default_factory=Curve, compare=False)
    mark_steps: Floats = field(default_factory=lambda: np.empty(0), compare=False)
    mark_values: Floats = field(default_factory=lambda: np.empty(0), compare=False)
    target: float | None = None
    ghost: Curve | None = field(default=None, compare=False)
    ghost_name: str = "best run"
    overlays: tuple[Overlay, ...] = ()
    forecast: Forecast | None = None
    events: tuple[EventMark, ...] = ()
    empty: str = "no loss yet"
    unit: str = ""

    def text(self, y: float) -> str:
        """A value of the chart in words: nats to three decimals where they tell, else digits."""
        if self.unit or abs(y) >= 1000:
            return f"{fmt.tokens(y)} {self.unit}".rstrip()
        return fmt.loss(y) if abs(y) >= 0.01 or y != y else fmt.scientific(y)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of the x axis; an anchored one moves with the tail of the curve."""

    start: float
    stop: float
    is_anchored: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How a chart is looked at; without a window all of it. `cursor` is a place on the x axis.

    `decay` is that of the moving average, 0 for none; None takes what suits the number of points.
    """

    axis: Axis = "step"
    is_log: bool = False
    decay: float | None = None
    window: Window | None = None
    cursor: float | None = None
    has_guides: bool = True

    @property
    def is_moved(self) -> bool:
        """Whether there is something to go back from."""
        return self.window is not None or self.cursor is not None


def decay(chart: Chart, view: View) -> float:
    """The decay of the moving average that is drawn, 0 for none."""
    if view.decay is not None:
        return view.decay
    return next((decay for least, decay in _DECAY_FROM if len(chart.curve) >= least), 0.0)


def extent(chart: Chart, view: View) -> tuple[float, float]:
    """The whole x axis: from 0 to the last point or mark, or to the forecast when it is near."""
    stop = max([chart.curve.stop(view.axis), *(o.curve.stop(view.axis) for o in chart.overlays)])
    if len(chart.mark_steps):
        stop = max(stop, float(chart.curve.at(view.axis, chart.mark_steps[-1:])[0]))
    if chart.forecast is not None:
        ahead = float(chart.curve.at(view.axis, np.array([chart.forecast.step]))[0])
        stop = max(stop, min(ahead * 1.02, stop * (1 + _MAX_AHEAD)))
    return 0.0, stop if stop > _MIN_STOP else 1.0


def window(chart: Chart, view: View) -> tuple[float, float]:
    """The x range that is shown."""
    if view.window is None:
        return extent(chart, view)
    span = view.window.stop - view.window.start
    tail = chart.curve.stop(view.axis)
    if view.window.is_anchored and tail > 0:
        return tail - span, tail
    return view.window.start, view.window.stop


def zoomed(chart: Chart, view: View, factor: float, *, at: float | None = None) -> View:
    """The view with its x range `factor` times as wide around `at`; a followed tail stays put."""
    first, last = extent(chart, view)
    start, stop = window(chart, view)
    tail = chart.curve.stop(view.axis)
    at = view.cursor if at is None else at
    follows = at is None and (view.window is None or view.window.is_anchored)
    center = tail if follows else (start + stop) / 2 if at is None else at
    stop = min(stop, tail) if follows else stop
    least = (last - first) * _MIN_SPAN
    if view.axis == "step":
        least = max(least, min(_MIN_STEPS, last - first))
    span = max((stop - start) * factor, least)
    if span >= (last - first) * 0.999:
        return replace(view, window=None)
    frac = 1.0 if follows else min(1.0, max(0.0, (center - start) / (stop - start)))
    begin = center - frac * span
    begin = min(max(begin, first), last - span)
    moved = Window(start=begin, stop=begin + span, is_anchored=follows)
    return replace(view, window=moved)


def panned(chart: Chart, view: View, frac: float) -> View:
    """The view moved by a fraction of its width; at the tail it follows again."""
    if view.window is None:
        return view
    first, last = extent(chart, view)
    start, stop = window(chart, view)
    span = stop - start
    begin = min(max(start + frac * span, first), max(first, last - span))
    is_anchored = frac > 0 and begin + span >= chart.curve.stop(view.axis)
    return replace(view, window=Window(start=begin, stop=begin + span, is_anchored=is_anchored))


def with_cursor(chart: Chart, view: View, frac: float) -> View:
    """The view with its cursor moved by a fraction of the width; on first use it is at the tail."""
    start, stop = window(chart, view)
    if view.cursor is None:
        return replace(view, cursor=min(stop, max(start, chart.curve.stop(view.axis))))
    at = view.cursor + frac * (stop - start)
    return replace(view, cursor=min(stop, max(start, at)))


def with_next_axis(chart: Chart, view: View) -> View:
    """The view over the next x axis that the curve has, looking at the same points."""
    axis = view.axis
    for _ in AXES:
        axis = AXES[(AXES.index(axis) + 1) % len(AXES)]
        if chart.curve.has(axis):
            break
    moved, cursor = view.window, view.cursor
    if moved is not None:
        start, stop = (chart.curve.moved(x, view.axis, axis) for x in window(chart, view))
        moved = Window(start=start, stop=stop, is_anchored=moved.is_anchored)
        if not stop > start:
            moved = None
    if cursor is not None:
        cursor = chart.curve.moved(cursor, view.axis, axis)
    return replace(view, axis=axis, window=moved, cursor=cursor)


def with_next_decay(chart: Chart, view: View) -> View:
    """The view with the next smoothing."""
    now = decay(chart, view)
    at = DECAYS.index(now) if now in DECAYS else 0
    return replace(view, decay=DECAYS[(at + 1) % len(DECAYS)])


def title(chart: Chart, view: View) -> str:
    """The name of the chart and what is done to it; a toggle always shows its true state."""
    smoothing = decay(chart, view)
    parts = [chart.name, f"EMA {smoothing:g}".replace("0.", ".") if smoothing else "raw"]
    parts.append(f"x: {view.axis}")
    if view.is_log:
        parts.append("log y" if chart.curve.has_positive() else "log y: nothing above 0")
    if view.window is not None:
        parts.append("zoomed, following" if view.window.is_anchored else "zoomed")
    return "  ".join(parts)


def readout(chart: Chart, view: View, width: int) -> Row:
    """Every series at the cursor, nearest point each, as many as fit; empty without a cursor."""
    if view.cursor is None or not len(chart.curve):
        return ()
    smoothing = decay(chart, view)
    x, y, mean = chart.curve.nearest(view.axis, view.cursor, decay=smoothing)
    parts: list[Row] = [((x_text(view.axis, x), "strong"), (f" {chart.text(y)}", "text"))]
    if smoothing:
        parts.append((("EMA ", "dim"), (chart.text(mean), "line")))
    if len(chart.mark_steps):
        at = chart.curve.at(view.axis, chart.mark_steps)
        nearest = int(np.argmin(np.abs(at - view.cursor)))
        where = x_text(view.axis, float(at[nearest]))
        value = chart.text(float(chart.mark_values[nearest]))
        parts.append(((f"val at {where} ", "dim"), (value, "mark")))
    if chart.ghost is not None and len(chart.ghost):
        _, y, mean = chart.ghost.nearest(view.axis, view.cursor, decay=smoothing)
        parts.append(((f"{chart.ghost_name} ", "dim"), (chart.text(mean), "ghost")))
    for overlay, dash in zip(chart.overlays, DASHES, strict=False):
        if len(overlay.curve):
            _, _, mean = overlay.curve.nearest(view.axis, view.cursor, decay=smoothing)
            parts.append(((f"{overlay.name} ", "dim"), (chart.text(mean), dash.role)))
    if chart.forecast is not None:
        low, step, high = (
            x_text(view.axis, float(at), is_close=False)
            for at in chart.curve.at(
                view.axis,
                np.array([chart.forecast.low, chart.forecast.step, chart.forecast.high]),
            )
        )
        parts.append((("target at ", "dim"), (step, "accent"), (f" ({low} to {high})", "dim")))
    return join_fitting(parts, width, gap="  ")


def legend(chart: Chart, width: int) -> Row:
    """What the marks of this chart mean, as many as fit."""
    parts: list[Row] = []
    if len(chart.mark_steps):
        parts.append(((VALIDATION, "mark"), (" val", "dim")))
    if chart.forecast is not None:
        parts.append(((FORECAST, "accent"), (" forecast", "dim")))
    if chart.ghost is not None and len(chart.ghost):
        parts.append((("┄", "ghost"), (f" {chart.ghost_name}", "dim")))
    for overlay, dash, letter in zip(chart.overlays, DASHES, "abcdef", strict=False):
        stroke = "─" * min(dash.on, 3)
        parts.append(((f"{letter} {stroke}", dash.role), (f" {overlay.name}", "dim")))
    kinds = {event.kind for event in chart.events}
    for kind, (glyph, role) in EVENT_SIGNS.items():
        if kind in kinds:
            parts.append(((glyph, role), (f" {kind}", "dim")))
    return join_fitting(parts, width, gap="  ")
