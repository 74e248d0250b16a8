"""The tail of a log: time and text, newest at the bottom."""

from collections.abc import Sequence
from datetime import datetime

from tui.widgets.rows import Panel, Role, Row, clean, clip

Line = tuple[float, str]
_BAD = ("error", "fail", "✖", "diverged", "collapse", "killed")


class LogTail(Panel[tuple[Line, ...]]):
    """As many of the newest lines as there are rows."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_log(self.value, width, height)


def draw_log(lines: Sequence[Line], width: int, height: int) -> list[Row]:
    """The last `height` lines, each clipped to the width; local time in front where it fits."""
    if height < 1 or width < 1:
        return []
    if not lines:
        return [(("nothing logged yet", "dim"),)]
    rows: list[Row] = []
    has_time = width >= 40
    for time, text in lines[-height:]:
        stamp = f"{_clock(time)}  " if has_time else ""
        shown = clip(clean(text), width - len(stamp))
        rows.append(((stamp, "dim"), (shown, _role(text))))
    return rows


def _clock(time: float) -> str:
    try:
        return datetime.fromtimestamp(time).strftime("%H:%M:%S")
    except (OverflowError, OSError, ValueError):
        return "--:--:--"


def _role(text: str) -> Role:
    lowered = text.lower()
    return "bad" if any(word in lowered for word in _BAD) else "text"
