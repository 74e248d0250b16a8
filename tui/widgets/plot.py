"""The drawing of a chart: layers of dots and marks on a canvas, between a y axis and an x axis.

From the ground up: band of the raw values, ghost, line, then on what is blank the target line with
its ETA band, guides and cursor; forecast and marks on top. Cost follows columns, not points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness import format as fmt
from tui.widgets import figure
from tui.widgets.ascii import Charset
from tui.widgets.axis import Tick, log_ticks, x_rows, x_ticks, y_ticks
from tui.widgets.canvas import Canvas
from tui.widgets.curve import Columns, positions
from tui.widgets.figure import Chart, View
from tui.widgets.pyramid import Floats
from tui.widgets.raster import DOTS, Scale, band, characters, dashed, line, path
from tui.widgets.rows import Role, Row, pad

MIN_WIDTH, MIN_HEIGHT = 12, 3
_MIN_PLOT = 8
_TARGET_LINE, _BAND, _GUIDE, _CURSOR = "╌", "═", "┊", "│"
_MARK_GAP = 3  # cells between two marks, so that they do not hide the curve
# The first steps may fall so fast that drawing them whole flattens the rest: when all but the
# highest columns need less than this share of the height, those leave the chart at the top.
_HEAD_QUANTILE, _HEAD_SHARE = 0.93, 0.7
_MAX_Y = 1e100


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where the plot is: x range, y scale, size in cells, and cells of the y axis before it."""

    start: float
    stop: float
    scale: Scale
    w: int
    h: int
    gutter: int
    is_log: bool
    charset: Charset

    def columns(self, x: Floats) -> list[int]:
        """Cells of places on the x axis; those far outside stay just outside."""
        with np.errstate(all="ignore"):
            frac = np.clip((x - self.start) / (self.stop - self.start), -1.0, 2.0)
        return np.rint(frac * (self.w - 1)).astype(int).tolist()

    def row(self, y: float) -> int:
        """The cell row of a drawn y."""
        dot = float(self.scale.rows(np.array([y]))[0])
        return math.floor(round(dot) / DOTS[self.charset].y)

    def place(self, y: float) -> float:
        """A value as it is drawn: its logarithm on a log axis, NaN when it has none."""
        if not self.is_log:
            return y
        return math.log10(y) if y > 0 and math.isfinite(y) else math.nan

    @property
    def edges(self) -> Floats:
        return positions(self.start, self.stop, self.w * DOTS[self.charset].x)


def draw_chart(
    chart: Chart, width: int, height: int, *, view: View | None = None, charset: Charset = "braille"
) -> list[Row]:
    """The chart in `width` x `height` cells; the message of an empty one is centered."""
    view = _settled(chart, view or View())
    laid = _lay_out(chart, view, width, height, charset)
    if laid is None:
        is_small = (width < MIN_WIDTH or height < MIN_HEIGHT) and len(chart.curve)
        return _message("no room" if is_small else chart.empty, width, height)
    frame, ticks = laid
    columns = _columns(chart, view, frame)
    canvas = Canvas(frame.w, frame.h)
    _draw_curves(canvas, chart, view, frame, columns)
    _draw_forecast(canvas, chart, view, frame)
    _draw_lines(canvas, chart, view, frame)
    _draw_marks(canvas, chart, view, frame, columns)
    gutters = _gutters(chart, frame, ticks)
    rows = [(*gutter, *row) for gutter, row in zip(gutters, canvas.rows(), strict=True)]
    return [*rows, *_footer(chart, view, frame, height - frame.h)]


def cursor_at(chart: Chart, view: View, size: tuple[int, int], x: int, charset: Charset) -> float:
    """The place on the x axis of a cell of the drawing; NaN when nothing is drawn."""
    laid = _lay_out(chart, _settled(chart, view), *size, charset)
    if laid is None:
        return math.nan
    frame = laid[0]
    frac = min(1.0, max(0.0, (x - frame.gutter) / max(1, frame.w - 1)))
    return frame.start + frac * (frame.stop - frame.start)


def _settled(chart: Chart, view: View) -> View:
    return replace(view, decay=figure.decay(chart, view))


def _lay_out(
    chart: Chart, view: View, width: int, height: int, charset: Charset
) -> tuple[Frame, list[Tick]] | None:
    """Frame and y ticks; None when there is no room or nothing finite."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return None
    start, stop = figure.window(chart, view)
    h = height - (2 if height >= 9 else 1)
    is_log = view.is_log and chart.curve.has_positive()
    edges = positions(start, stop, width)
    columns = chart.curve.columns(view.axis, edges, decay=view.decay or 0.0, is_log=is_log)
    others = [overlay.curve for overlay in chart.overlays]
    if chart.ghost is not None:
        others.append(chart.ghost)
    others = [
        curve.columns(view.axis, edges, decay=view.decay or 0.0, is_log=is_log) for curve in others
    ]
    y_range = _y_range(chart, view, columns, others, is_log=is_log)
    if y_range is None:
        return None
    bottom, top = y_range
    ticks = (log_ticks if is_log else y_ticks)(bottom, top, h // 3 + 1)
    texts = [tick.text for tick in ticks]
    if chart.target is not None:
        texts.append(fmt.loss(chart.target))
    gutter = max(map(len, texts), default=0) + 2
    if width - gutter < _MIN_PLOT:
        return None
    scale = Scale(bottom=bottom, top=top, num_rows=h * DOTS[charset].y)
    frame = Frame(
        start=start,
        stop=stop,
        scale=scale,
        w=width - gutter,
        h=h,
        gutter=gutter,
        is_log=is_log,
        charset=charset,
    )
    return frame, ticks


def _columns(chart: Chart, view: View, frame: Frame) -> Columns:
    return chart.curve.columns(view.axis, frame.edges, decay=view.decay or 0.0, is_log=frame.is_log)


def _y_range(
    chart: Chart, view: View, columns: Columns, others: Sequence[Columns], *, is_log: bool
) -> tuple[float, float] | None:
    """Lowest and highest y to draw, with a margin; a steep first fall may leave at the top.

    All of the axis shows the target, too; a part of it only the values of that part.
    """
    highs = columns.high_C[np.isfinite(columns.high_C)]
    lows = columns.low_C[np.isfinite(columns.low_C)]
    outside = [point[1] for point in (columns.before, columns.after) if point is not None]
    if not len(highs):
        highs = lows = np.array(outside, dtype=np.float64)
    for other in others:
        means = other.mean_C[np.isfinite(other.mean_C)]
        lows, highs = np.r_[lows, means], np.r_[highs, means]
    if not len(highs):
        return None
    is_whole = view.window is None
    marks = chart.mark_values if is_whole else np.empty(0)
    targets = [chart.target] if is_whole and chart.target is not None else []
    marks, targets = _placed(marks, is_log=is_log), _placed(np.array(targets), is_log=is_log)
    lows, highs = np.clip(lows, -_MAX_Y, _MAX_Y), np.clip(highs, -_MAX_Y, _MAX_Y)
    bottom = min([float(lows.min()), *marks, *targets])
    top, calm_top = float(highs.max()), float(np.quantile(highs, _HEAD_QUANTILE))
    if is_whole and calm_top - bottom < _HEAD_SHARE * (top - bottom):
        top = calm_top
    top = max([top, *targets])
    span = top - bottom
    if span <= abs(top) * 1e-9:
        span = max(abs(top) * 0.1, 1e-6)
    return bottom - span * 0.06, top + span * 0.04


def _placed(values: Floats, *, is_log: bool) -> list[float]:
    """Values as they are drawn, without those that are not."""
    with np.errstate(all="ignore"):
        places = np.log10(values) if is_log else values
    return np.clip(places[np.isfinite(places)], -_MAX_Y, _MAX_Y).tolist()


def _draw_curves(canvas: Canvas, chart: Chart, view: View, frame: Frame, columns: Columns) -> None:
    """Raw values, ghost, moving average."""
    texture = "." if view.decay else ""
    raw = characters(band(columns, frame.scale), frame.charset, texture=texture)
    canvas.layer(*raw, "faint" if view.decay else "line")
    if chart.ghost is not None and len(chart.ghost):
        decay = view.decay or figure.DECAYS[1]
        ghost = chart.ghost.columns(view.axis, frame.edges, decay=decay, is_log=frame.is_log)
        dots = dashed(line(ghost, frame.scale), on=DOTS[frame.charset].x, off=DOTS[frame.charset].x)
        canvas.layer(*characters(dots, frame.charset, texture="~"), "ghost")
    _draw_overlays(canvas, chart, view, frame)
    if view.decay:
        canvas.layer(*characters(line(columns, frame.scale), frame.charset), "line")


def _draw_overlays(canvas: Canvas, chart: Chart, view: View, frame: Frame) -> None:
    """Averages of the other curves; in ASCII each has a letter."""
    decay, cell = view.decay or 0.0, DOTS[frame.charset].x
    for overlay, dash, letter in zip(chart.overlays, figure.DASHES, "abcdef", strict=False):
        if len(overlay.curve):
            of = overlay.curve.columns(view.axis, frame.edges, decay=decay, is_log=frame.is_log)
            dots = dashed(line(of, frame.scale), on=dash.on * cell, off=dash.off * cell)
            canvas.layer(*characters(dots, frame.charset, texture=letter), dash.role)


def _draw_forecast(canvas: Canvas, chart: Chart, view: View, frame: Frame) -> None:
    """The line of the forecast from the last point on, dashed."""
    if chart.forecast is None or not len(chart.curve):
        return
    since = chart.curve.stop("step")
    steps = np.linspace(since, max(since, chart.forecast.step), 64)
    at = chart.curve.at(view.axis, steps)
    losses = np.array([frame.place(chart.forecast.loss(step)) for step in steps.tolist()])
    centers = (frame.edges[:-1] + frame.edges[1:]) / 2
    is_ahead = (centers > at[0]) & (centers <= at[-1])
    if is_ahead.any():
        values = np.where(is_ahead, np.interp(centers, at, losses), np.nan)
        x = DOTS[frame.charset].x
        dots = dashed(path(values, frame.scale), on=2 * x, off=x)
        canvas.layer(*characters(dots, frame.charset, texture="="), "accent")


def _draw_lines(canvas: Canvas, chart: Chart, view: View, frame: Frame) -> None:
    """Target with the band of the ETA, guides, cursor: all on blank cells only."""
    target = math.nan if chart.target is None else frame.place(chart.target)
    if frame.scale.bottom <= target <= frame.scale.top:
        row = frame.row(target)
        if chart.forecast is not None:
            steps = np.array([chart.forecast.low, chart.forecast.high])
            low, high = frame.columns(chart.curve.at(view.axis, steps))
            low, high = max(0, low), min(frame.w - 1, high)
            canvas.under(row, _BAND * (high - low + 1), "accent", x=low)
        canvas.under(row, _target_line(frame.w), "good")
    if view.has_guides:
        resumes = [event.step for event in chart.events if event.kind == "resume"]
        for column in frame.columns(chart.curve.at(view.axis, np.array(resumes, dtype=float))):
            canvas.column(column, _GUIDE, "faint")
    if view.cursor is not None and frame.start <= view.cursor <= frame.stop:
        canvas.column(frame.columns(np.array([view.cursor]))[0], _CURSOR, "dim")


def _target_line(width: int) -> str:
    label = "╌╌ target ".ljust(width, _TARGET_LINE)
    return label if len(label) == width else _TARGET_LINE * width


def _draw_marks(canvas: Canvas, chart: Chart, view: View, frame: Frame, columns: Columns) -> None:
    """Where values are not finite, the forecast's end, and validations from the newest back."""
    width = DOTS[frame.charset].x
    odd_w = columns.odd_C.reshape(-1, width).any(axis=1)
    for x in np.flatnonzero(odd_w).tolist():
        canvas.over(0, figure.ODD, "bad", x=x)
    target = math.nan if chart.target is None else frame.place(chart.target)
    if chart.forecast is not None and frame.scale.bottom <= target <= frame.scale.top:
        column = frame.columns(chart.curve.at(view.axis, np.array([chart.forecast.step])))[0]
        canvas.over(frame.row(target), figure.FORECAST, "accent", x=column)
    free_before = frame.w
    at = frame.columns(chart.curve.at(view.axis, chart.mark_steps))
    for column, value in zip(reversed(at), reversed(chart.mark_values.tolist()), strict=True):
        if not 0 <= column < free_before:
            continue
        y = frame.place(value)
        if not math.isfinite(value):
            canvas.over(0, figure.ODD, "bad", x=column)
        elif frame.scale.bottom <= y <= frame.scale.top:
            canvas.over(frame.row(y), figure.VALIDATION, "mark", x=column)
            free_before = column - _MARK_GAP + 1


def _gutters(chart: Chart, frame: Frame, ticks: list[Tick]) -> list[Row]:
    """The y axis, one row a cell row: tick labels, and the target's in its own role."""
    labels: dict[int, tuple[str, Role]] = {}
    target = math.nan if chart.target is None else frame.place(chart.target)
    is_shown = frame.scale.bottom <= target <= frame.scale.top
    target_row = frame.row(target) if is_shown else None
    for tick in ticks:
        row = frame.row(tick.value)
        if 0 <= row < frame.h and (target_row is None or abs(row - target_row) > 1):
            labels[row] = (tick.text, "dim")
    if target_row is not None:
        labels[target_row] = (fmt.loss(chart.target), "good")
    rows: list[Row] = []
    for y in range(frame.h):
        text, role = labels.get(y, ("", "dim"))
        axis = "┤" if text else "│"
        label = pad(text, frame.gutter - 2, align="right")
        rows.append(((label, role), (" ", "text"), (axis, "faint")))
    return rows


def _footer(chart: Chart, view: View, frame: Frame, height: int) -> list[Row]:
    """The rule with the marks of events, when there is room for it, and the labels."""
    ticks = x_ticks(view.axis, frame.start, frame.stop, max(2, frame.w // 11))
    columns = frame.columns(np.array([tick.value for tick in ticks]))
    placed = [(column, tick.text) for column, tick in zip(columns, ticks, strict=True)]
    rule, labels = x_rows(view.axis, placed, frame.w, frame.gutter)
    if height < 2:
        return [labels]
    canvas = Canvas(frame.gutter + frame.w, 1)
    canvas.over(0, "".join(text for text, _ in rule), "faint")
    order = list(figure.EVENT_SIGNS)
    events = sorted(chart.events, key=lambda event: -order.index(event.kind))
    at = chart.curve.at(view.axis, np.array([event.step for event in events], dtype=float))
    for event, column in zip(events, frame.columns(at), strict=True):
        if 0 <= column < frame.w:
            glyph, role = figure.EVENT_SIGNS[event.kind]
            canvas.over(0, glyph, role, x=frame.gutter + column)
    return [*canvas.rows(), labels]


def _message(text: str, width: int, height: int) -> list[Row]:
    if height < 1 or width < 1:
        return []
    above: list[Row] = [((" ", "text"),)] * ((height - 1) // 2)
    left = max(0, (width - len(text)) // 2)
    return [*above, ((" " * left, "text"), (text, "dim"))]
