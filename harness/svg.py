"""Charts as SVG, from numbers alone: for a page of a light or dark theme, or a file of their own.

Nothing in them is fetched or run, and every text is escaped. A line has no more points than a
column of pixels can show: first, lowest, highest and last of each; what is not finite breaks it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal, NamedTuple

from harness import format as fmt

Role = Literal["raw", "mean", "val", "plain"]
MarkKind = Literal["resume", "checkpoint", "throttle"]
Points = Sequence[tuple[float, float]]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 720, 78, 16, 34, 56
INNER = WIDTH - LEFT - RIGHT
LEGEND = 26
# So near to the right edge, the label of a tick ends at it.
EDGE = 30
MAX_TICKS = 6
# The beginning of a curve that may be cut off at the top, so that its end can be read.
HEAD = 0.15
_MARK_WORDS = {"resume": "resumed", "checkpoint": "checkpoint", "throttle": "GPU slowed"}
STYLE = """
.nx{display:block;width:100%;height:auto;font:13px system-ui,sans-serif}
.nx text{fill:#475569}.nx .nx-name{fill:#0f172a;font-weight:600}
.nx path,.nx line{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}
.nx .nx-grid{stroke:#e2e8f0;stroke-width:1}.nx .nx-axis{stroke:#94a3b8;stroke-width:1}
.nx .nx-raw{stroke:#a9bfd6;stroke-width:1}.nx .nx-mean,.nx .nx-plain{stroke:#1d6fb8}
.nx .nx-val{stroke:#c2410c}.nx .nx-dot{fill:#c2410c}
.nx .nx-target{stroke:#15803d;stroke-dasharray:7 4}.nx .nx-target-text{fill:#15803d}
.nx .nx-resume{stroke:#7c3aed;stroke-dasharray:2 3}.nx .nx-throttle{stroke:#b45309}
.nx .nx-checkpoint{stroke:#64748b;stroke-width:3}
@media (prefers-color-scheme:dark){
.nx text{fill:#a8b3c4}.nx .nx-name{fill:#e8edf4}
.nx .nx-grid{stroke:#2a3342}.nx .nx-axis{stroke:#5b6779}
.nx .nx-raw{stroke:#42607f}.nx .nx-mean,.nx .nx-plain{stroke:#6bb3f2}
.nx .nx-val{stroke:#fb923c}.nx .nx-dot{fill:#fb923c}
.nx .nx-target{stroke:#4ade80}.nx .nx-target-text{fill:#4ade80}
.nx .nx-resume{stroke:#c4a5ff}.nx .nx-throttle{stroke:#fbbf24}.nx .nx-checkpoint{stroke:#8b98ab}
}
"""
# A file of its own has a ground of its own; a page has one already.
_GROUND = """
.nx-ground{fill:#ffffff}@media (prefers-color-scheme:dark){.nx-ground{fill:#10151d}}
"""


class Line(NamedTuple):
    """A curve: its name in the legend, its points in the order of x, how it is drawn."""

    name: str
    points: Points
    role: Role = "plain"


class Mark(NamedTuple):
    """Something that happened at `x`."""

    x: float
    kind: MarkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Lines over one pair of axes; `level` is a line across, such as a target, and its name."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    level: tuple[float, str] | None = None
    height: int = 320
    cuts_head: bool = False
    # The smallest range of y that is drawn; a curve that hardly moves is shown as one.
    floor: float | None = field(default=None)

    @property
    def is_empty(self) -> bool:
        """Whether there is no finite point to draw."""
        return not any(math.isfinite(y) for line in self.lines for _, y in line.points)


class _Frame(NamedTuple):
    """The part of the plane that is drawn, and where it lies on the picture."""

    left: float
    right: float
    low: float
    high: float
    height: float

    def x(self, value: float) -> float:
        return (value - self.left) / (self.right - self.left) * INNER

    def y(self, value: float) -> float:
        return (self.high - value) / (self.high - self.low) * self.height


def document(chart: Chart) -> str:
    """The chart as a file of its own, with its legend below."""
    rows = _legend_rows(chart)
    height = chart.height + LEGEND * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nx" {_attributes(chart, height)}>'
        f"<style>{STYLE}{_GROUND}</style>"
        f'<rect class="nx-ground" width="{WIDTH}" height="{height}"/>'
        f"{_drawing(chart)}{''.join(rows)}</svg>\n"
    )


def inline(chart: Chart) -> str:
    """The chart for a page that holds STYLE and shows `legend` beside it."""
    return f'<svg class="nx" {_attributes(chart, chart.height)}>{_drawing(chart)}</svg>'


def legend(chart: Chart) -> list[tuple[str, str]]:
    """(sample, name) of everything drawn: a small SVG and plain text."""
    return [
        (f'<svg class="nx" width="26" height="10" viewBox="0 0 26 10">{sample}</svg>', name)
        for sample, name in _legend(chart)
    ]


def ticks(low: float, high: float, *, most: int = MAX_TICKS, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, `most` at the most."""
    span = high - low
    if not (span > 0 and math.isfinite(span)):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most - 1)
    step = max(1.0, step) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Points, columns: int, left: float, right: float) -> list[tuple[float, float]]:
    """The points that a drawing of so many columns shows: extremes and ends of each column."""
    if len(points) <= 4 * columns or right <= left:
        return list(points)
    kept: dict[int, None] = {}
    for start, stop in _columns(points, columns, left, right):
        finite = [i for i in range(start, stop) if math.isfinite(points[i][1])]
        odd = next((i for i in range(start, stop) if not math.isfinite(points[i][1])), None)
        chosen = {start, stop - 1} | ({odd} if odd is not None else set[int]())
        if finite:
            chosen |= {min(finite, key=lambda i: points[i][1])}
            chosen |= {max(finite, key=lambda i: points[i][1])}
        kept |= dict.fromkeys(sorted(chosen))
    return [points[i] for i in kept]


def _columns(points: Points, columns: int, left: float, right: float) -> Iterator[tuple[int, int]]:
    """Runs of indices [start, stop) that fall into the same column."""
    start, at = 0, None
    for i, (x, _) in enumerate(points):
        column = math.floor((x - left) / (right - left) * columns)
        if at is not None and column != at:
            yield start, i
            start = i
        at = column
    if start < len(points):
        yield start, len(points)


def _attributes(chart: Chart, height: int) -> str:
    return f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(chart.title)}"'


def _drawing(chart: Chart) -> str:
    """Everything but the legend; an empty chart says so."""
    if chart.is_empty:
        return (
            f'<text x="{WIDTH / 2:g}" y="{chart.height / 2:g}" text-anchor="middle">no data</text>'
        )
    frame = _frame(chart)
    lines = "".join(_line(line, frame) for line in chart.lines)
    level = "" if chart.level is None else _level(chart.level, frame)
    return (
        f'<g transform="translate({LEFT} {TOP})">{_grid(chart, frame)}'
        f'<svg width="{INNER}" height="{frame.height:g}">{_marks(chart, frame)}{lines}</svg>'
        f"{level}</g>"
    )


def _frame(chart: Chart) -> _Frame:
    xs = [x for line in chart.lines for x, y in line.points if math.isfinite(y)]
    right = max(xs)
    left = min(0.0, *xs)
    shown = [y for _, y in _shown(chart, left + HEAD * (right - left))]
    low, high = min(shown), max(shown)
    if chart.floor is not None:
        low, high = min(low, chart.floor), max(high, chart.floor)
    if chart.level is not None:
        low, high = min(low, chart.level[0]), max(high, chart.level[0])
    room = (high - low) * 0.06 or abs(high) * 0.06 or 1.0
    low = low if chart.floor is not None and low >= chart.floor else low - room
    return _Frame(
        left, right if right > left else left + 1.0, low, high + room, chart.height - TOP - BOTTOM
    )


def _shown(chart: Chart, head: float) -> list[tuple[float, float]]:
    """The finite points that the range of y is made for."""
    finite = [p for line in chart.lines for p in line.points if math.isfinite(p[1])]
    behind = [p for p in finite if p[0] >= head]
    return behind if chart.cuts_head and len(behind) > 1 else finite


def _grid(chart: Chart, frame: _Frame) -> str:
    parts: list[str] = []
    whole = ticks(frame.low, frame.high)
    for value in whole:
        y = f"{frame.y(value):.1f}"
        parts.append(f'<line class="nx-grid" x1="0" x2="{INNER}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text x="-8" y="{y}" dy=".35em" text-anchor="end">{_label(value, whole)}</text>'
        )
    xs, bottom = ticks(frame.left, frame.right, whole=True), frame.height
    for value in xs:
        x = f"{frame.x(value):.1f}"
        anchor = "end" if INNER - frame.x(value) < EDGE else "middle"
        label = escape(fmt.tokens(value) if xs[-1] >= 1e5 else fmt.count(value))
        parts.append(
            f'<line class="nx-axis" x1="{x}" x2="{x}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
            f'<text x="{x}" y="{bottom + 20:g}" text-anchor="{anchor}">{label}</text>'
        )
    parts.append(
        f'<line class="nx-axis" x1="0" x2="{INNER}" y1="{bottom:g}" y2="{bottom:g}"/>'
        f'<text x="{INNER}" y="{bottom + 44:g}" text-anchor="end">{escape(chart.x_label)}</text>'
    )
    cut = _is_cut(chart, frame)
    above = f"; above {_label(frame.high, [*whole, frame.high])} not shown" if cut else ""
    parts.append(
        f'<text class="nx-name" x="{-LEFT + 4}" y="-14">{escape(chart.y_label + above)}</text>'
    )
    return "".join(parts)


def _is_cut(chart: Chart, frame: _Frame) -> bool:
    return any(y > frame.high for line in chart.lines for _, y in line.points if math.isfinite(y))


def _label(value: float, among: Sequence[float]) -> str:
    """A number of an axis, with as many decimals as tell it from its neighbours."""
    largest = max(abs(each) for each in among)
    if largest >= 1e4:
        return fmt.tokens(value)
    if 0 < largest < 1e-2:
        return fmt.scientific(value)
    step = min((b - a for a, b in zip(among, among[1:], strict=False) if b > a), default=1.0)
    return fmt.fixed(value, decimals=max(0, math.ceil(-math.log10(step) - 1e-9)))


def _line(line: Line, frame: _Frame) -> str:
    points = thinned(line.points, INNER, frame.left, frame.right)
    path, is_down = list[str](), False
    for x, y in points:
        if math.isfinite(y):
            path.append(f"{'L' if is_down else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}")
        is_down = math.isfinite(y)
    drawn = f'<path class="nx-{line.role}" d="{"".join(path)}"/>'
    if line.role == "val" or len(points) == 1:
        drawn += "".join(
            f'<circle class="nx-dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5"/>'
            for x, y in points
            if math.isfinite(y)
        )
    return drawn


def _level(level: tuple[float, str], frame: _Frame) -> str:
    value, name = level
    y = frame.y(value)
    return (
        f'<line class="nx-target" x1="0" x2="{INNER}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="nx-target-text" x="4" y="{y - 5:.1f}">{escape(name)}</text>'
    )


def _marks(chart: Chart, frame: _Frame) -> str:
    """Resumes run across, the others are strokes at the bottom."""
    parts: list[str] = []
    for mark in chart.marks:
        x = f"{frame.x(mark.x):.1f}"
        top = 0.0 if mark.kind == "resume" else frame.height - 10
        parts.append(
            f'<line class="nx-{mark.kind}" x1="{x}" x2="{x}" y1="{top:g}" y2="{frame.height:g}">'
            f"<title>{_MARK_WORDS[mark.kind]}</title></line>"
        )
    return "".join(parts)


def _legend(chart: Chart) -> list[tuple[str, str]]:
    """(drawing 26 wide and 10 high, name), of what the chart shows."""
    across = 'x1="0" x2="26" y1="5" y2="5"'
    found = [
        (
            f'<line class="nx-{line.role}" {across}/>'
            + ('<circle class="nx-dot" cx="13" cy="5" r="2.5"/>' if line.role == "val" else ""),
            line.name,
        )
        for line in chart.lines
        if line.points
    ]
    if chart.level is not None:
        found.append((f'<line class="nx-target" {across}/>', chart.level[1]))
    for kind in dict.fromkeys(mark.kind for mark in chart.marks):
        stroke = f'<line class="nx-{kind}" x1="13" x2="13" y1="0" y2="10"/>'
        found.append((stroke, _MARK_WORDS[kind]))
    return found


def _legend_rows(chart: Chart) -> list[str]:
    """The legend of a file, in rows below the axis; letters are some seven units wide."""
    rows, x = [""], 8.0
    for sample, name in _legend(chart):
        width = 32 + 7.5 * len(name) + 18
        if x + width > WIDTH and rows[-1]:
            rows.append("")
            x = 8.0
        y = chart.height + 8 + LEGEND * (len(rows) - 1)
        words = f'<text x="32" y="9">{escape(name)}</text>'
        rows[-1] += f'<g transform="translate({x:g} {y})">{sample}{words}</g>'
        x += width
    return rows
