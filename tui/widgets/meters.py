"""Meters: a bar of a fraction, a row of small columns, and shares of a whole."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness import format as fmt
from tui.widgets.rows import Panel, Role, Row, Span, join_fitting

_PARTS = "▏▎▍▌▋▊▉█"
_COLUMNS = "▁▂▃▄▅▆▇█"
# Shares are told apart by texture as much as by role.
_TEXTURES: tuple[tuple[str, Role], ...] = (
    ("█", "good"),
    ("▓", "line"),
    ("▒", "mark"),
    ("░", "ghost"),
    ("▚", "accent"),
    ("·", "dim"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """One part of a whole, by name; `amount` in any unit."""

    name: str
    amount: float


class Shares(Panel[tuple[Share, ...]]):
    """A whole as one bar, and below it what its parts are called."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        if not self.value:
            return ()
        return (shares(self.value, width), share_legend(self.value, width))


def meter(frac: float | None, width: int, role: Role, *, none: str = fmt.NOT_AVAILABLE) -> Row:
    """A bar of exactly `width` cells, in eighths of a cell; what is not known is no empty bar."""
    if width <= 0:
        return ()
    if frac is None or math.isnan(frac):
        text = none if len(none) <= width else "?"
        return ((text.ljust(width), "faint"),)
    whole, part = divmod(round(min(1.0, max(0.0, frac)) * width * len(_PARTS)), len(_PARTS))
    filled = _PARTS[-1] * whole + (_PARTS[part - 1] if part else "")
    spans: tuple[Span, Span] = ((filled, role), ("·" * (width - len(filled)), "faint"))
    return tuple(span for span in spans if span[0])


def spark(fracs: Sequence[float | None], role: Role) -> Row:
    """A column a fraction, an eighth of a cell high at least; `?` for what is not known."""
    text = ""
    for frac in fracs:
        if frac is None or math.isnan(frac):
            text += "?"
        else:
            at = round(min(1.0, max(0.0, frac)) * (len(_COLUMNS) - 1))
            text += _COLUMNS[at]
    return ((text, role),)


def shares(parts: Sequence[Share], width: int) -> Row:
    """A bar of `width` cells divided among the parts; each that is not 0 has a cell at least."""
    amounts = [part.amount if math.isfinite(part.amount) else 0.0 for part in parts]
    amounts = [max(0.0, amount) for amount in amounts]
    top = max(amounts, default=0.0)
    if width <= 0 or top <= 0:
        return ((" " * max(0, width), "faint"),)
    fracs = [amount / top for amount in amounts]  # the sum of the largest numbers is not finite
    cells = [frac / sum(fracs) * width for frac in fracs]
    sizes = [max(1, int(cell)) if cell > 0 else 0 for cell in cells]
    while sum(sizes) < width:
        sizes[max(range(len(sizes)), key=lambda at: cells[at] - sizes[at])] += 1
    while sum(sizes) > width:
        sizes[max(range(len(sizes)), key=lambda at: sizes[at] - cells[at] / width)] -= 1
    return tuple(
        (_TEXTURES[at % len(_TEXTURES)][0] * size, _TEXTURES[at % len(_TEXTURES)][1])
        for at, size in enumerate(sizes)
        if size
    )


def share_legend(parts: Sequence[Share], width: int) -> Row:
    """Texture, name and percentage of each part, as many as fit."""
    total = sum(part.amount for part in parts if part.amount > 0 and math.isfinite(part.amount))
    entries: list[Row] = []
    for at, part in enumerate(parts):
        glyph, role = _TEXTURES[at % len(_TEXTURES)]
        known = total > 0 and math.isfinite(part.amount)
        percent = fmt.percent(part.amount / total if known else None)
        entries.append(((glyph, role), (f" {part.name} ", "dim"), (percent, "text")))
    return join_fitting(entries, width, gap="  ")
