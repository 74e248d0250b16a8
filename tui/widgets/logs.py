"""The tail of a log: time and text, newest at the bottom."""

from collections.abc import Sequence

from harness import format as fmt
from tui.widgets.rows import Panel, Role, Row, clean, clip, wrap

Line = tuple[float, str]
_STAMPED = 40  # cells from which on there is room for the time
_BAD = ("error", "fail", "✖", "diverged", "collapse", "killed")


class LogTail(Panel[tuple[Line, ...]]):
    """As many of the newest lines as there are rows; `wraps` shows them whole."""

    def __init__(
        self,
        value: tuple[Line, ...],
        *,
        id: str | None = None,  # noqa: A002
        empty: str = "nothing logged yet",
        wraps: bool = False,
    ) -> None:
        super().__init__(value, id=id)
        self._empty = empty
        self._wraps = wraps

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_log(
            self.value,
            width,
            height,
            empty=self._empty,
            wraps=self._wraps,
            is_utc=self.is_utc,
        )


def draw_log(
    lines: Sequence[Line],
    width: int,
    height: int,
    *,
    empty: str = "nothing logged yet",
    wraps: bool = False,
    is_utc: bool = False,
) -> list[Row]:
    """The last lines in `height` rows, clipped or wrapped; the time in front where it fits."""
    if height < 1 or width < 1:
        return []
    if not lines:
        return [((empty, "dim"),)]
    rows: list[Row] = []
    for time, text in reversed(lines[-height:]):
        stamp = f"{fmt.time_of_day(time, is_utc=is_utc)}  " if width >= _STAMPED else ""
        room, role = width - len(stamp), _role(text)
        whole: Row = ((clip(clean(text), room), role),)
        texts: list[Row] = wrap(text, room, role) if wraps else [whole]
        first: Row = ((stamp, "dim"),)
        other: Row = ((" " * len(stamp), "dim"),)
        heads = [first, *[other] * len(texts)]
        rows = [*((*head, *row) for head, row in zip(heads, texts, strict=False)), *rows]
        if len(rows) >= height:
            break
    return rows[-height:]


def _role(text: str) -> Role:
    lowered = text.lower()
    return "bad" if any(word in lowered for word in _BAD) else "text"
