"""The chart of a curve as a widget: keys and mouse change how it is looked at."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType

from tui.widgets import figure
from tui.widgets.ascii import to_ascii
from tui.widgets.figure import Chart, View
from tui.widgets.ink import styles
from tui.widgets.plot import cursor_at, draw_chart
from tui.widgets.rows import Panel, Row

_ZOOM, _PAN = 0.6, 0.2
_FRAME = 6  # cells of the border and its corners that a title cannot have


def _key(keys: str, action: str, tooltip: str, display: str | None = None) -> Binding:
    return Binding(keys, action, "", show=False, tooltip=tooltip, key_display=display)


class LineChart(Panel[Chart], can_focus=True):
    """Rows are drawn again only for a new revision, size or view."""

    BINDINGS: ClassVar[list[BindingType]] = [
        _key("left", "move(-1)", "chart: to the left, or the cursor", "← →"),
        Binding("right", "move(1)", "", show=False),
        _key("plus,equals_sign", "zoom(1)", "chart: closer, or farther", "+ -"),
        Binding("minus", "zoom(-1)", "", show=False),
        _key("0", "reset", "chart: all of it again, following (else: start)", "0"),
        _key("l", "toggle_log", "chart: logarithmic y"),
        _key("x", "next_axis", "chart: x in steps, tokens, training time, wall time"),
        _key("s", "next_decay", "chart: smoothing off, .6, .9, .98"),
        _key("i", "toggle_cursor", "chart: cursor that reads every series"),
        _key("g", "toggle_guides", "chart: guides where a run was resumed"),
    ]

    def __init__(self, value: Chart, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(value, id=id)
        self.view = View()
        self._said: tuple[Text, Text] | None = None

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_chart(self.value, width, height, view=self.view, charset=self.charset)

    def show(self, value: Chart) -> None:
        if value != self.value:
            super().show(value)
            self._say()

    def look(self, view: View) -> None:
        """Look at the same chart in another way."""
        if view != self.view:
            self.view = view
            self.redraw()
            self._say()

    def _say(self) -> None:
        """Title and subtitle: what is shown, and what the cursor reads or the marks mean."""
        room = self.size.width - _FRAME
        below = figure.readout(self.value, self.view, room) or figure.legend(self.value, room)
        title = self._text(((figure.title(self.value, self.view), "text"),))
        said = (title, self._text(below))
        if said != self._said:
            self._said = said
            self.border_title, self.border_subtitle = said

    def _text(self, row: Row) -> Text:
        text = Text()
        for part, role in row:
            style = styles(self.nmoe)[role] if role != "text" else ""
            text.append(to_ascii(part) if self.charset == "ascii" else part, style)
        return text

    def on_mount(self) -> None:
        self._say()

    def on_resize(self) -> None:
        self._say()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """`0` is the start screen's key as long as there is nothing to go back from."""
        return self.view.is_moved if action == "reset" else True

    def action_move(self, direction: int) -> None:
        if self.view.cursor is not None:
            cells = max(1, self.content_size.width)
            self.look(figure.with_cursor(self.value, self.view, direction / cells))
        else:
            self.look(figure.panned(self.value, self.view, direction * _PAN))

    def action_zoom(self, direction: int) -> None:
        self.look(figure.zoomed(self.value, self.view, _ZOOM**direction))

    def action_reset(self) -> None:
        self.look(replace(self.view, window=None, cursor=None))

    def action_toggle_log(self) -> None:
        self.look(replace(self.view, is_log=not self.view.is_log))

    def action_next_axis(self) -> None:
        self.look(figure.with_next_axis(self.value, self.view))

    def action_next_decay(self) -> None:
        self.look(figure.with_next_decay(self.value, self.view))

    def action_toggle_cursor(self) -> None:
        if self.view.cursor is None:
            self.look(figure.with_cursor(self.value, self.view, 0))
        else:
            self.look(replace(self.view, cursor=None))

    def action_toggle_guides(self) -> None:
        self.look(replace(self.view, has_guides=not self.view.has_guides))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._zoom_at(event, _ZOOM)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._zoom_at(event, 1 / _ZOOM)

    def on_click(self, event: events.Click) -> None:
        at = self._place(event)
        if at == at:
            self.look(replace(self.view, cursor=at))

    def _zoom_at(self, event: events.MouseEvent, factor: float) -> None:
        event.stop()
        at = self._place(event)
        if at == at:
            self.look(figure.zoomed(self.value, self.view, factor, at=at))

    def _place(self, event: events.MouseEvent) -> float:
        """The place on the x axis under the pointer; NaN where there is none."""
        offset = event.get_content_offset(self)
        if offset is None:
            return float("nan")
        size = (self.content_size.width, self.content_size.height)
        return cursor_at(self.value, self.view, size, offset.x, self.charset)
