"""The app over a recording: the same screens, and a scrubber on each of them."""

from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Footer

from nmoe.paths import DataRoot, RunFolder
from tui.app import NmoeApp
from tui.feed import Position, RunChanged
from tui.reader import ReplayFeed
from tui.widgets.scrubber import Scrub, Scrubber

JUMP_FRAC = 0.05
# What a recording does not need: its view is held by a pause, and nobody runs it.
HIDDEN = ("freeze", "stop_run", "resume_run")


class ReplayApp(NmoeApp):
    """Shows what was recorded; nothing of it can be stopped, and nothing is written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "pause", "play/pause", tooltip="replay: play, or pause"),
        Binding("less_than_sign", "speed(0.5)", "slower", key_display="<",
                tooltip="replay: half as fast"),
        Binding("greater_than_sign", "speed(2)", "faster", key_display=">",
                tooltip="replay: twice as fast"),
        Binding("left_parenthesis,shift+left", "jump(-1)", "", show=False, key_display="( )",
                tooltip="replay: a twentieth back, or on"),
        Binding("right_parenthesis,shift+right", "jump(1)", "", show=False),
        Binding("home", "jump(-20)", "", show=False, tooltip="replay: to the start"),
        Binding("end", "jump(20)", "", show=False, tooltip="replay: to the end"),
        *(each for each in NmoeApp.BINDINGS
          if isinstance(each, Binding) and each.action not in ("freeze", "stop_run")),
    ]  # fmt: skip

    def __init__(self, root: DataRoot, *, run: RunFolder, speed: float, **options: Any) -> None:
        super().__init__(root, run=run, is_readonly=True, **options)
        self._speed = speed
        self._player: ReplayFeed | None = None

    def open_feed(self, folder: RunFolder) -> ReplayFeed:
        self._player = ReplayFeed(folder, self.post_message, speed=self._speed)
        return self._player

    def on_run_changed(self, message: RunChanged) -> None:
        self._show_position(message.view.position)

    def action_go(self, name: str) -> None:
        super().action_go(name)
        position = self.view.position if self.view else None
        self.call_after_refresh(self._show_position, position)

    def action_pause(self) -> None:
        """Play, or pause."""
        if self._player is not None:
            self._player.toggle()

    def action_speed(self, factor: float) -> None:
        """Change the speed by a factor."""
        if self._player is not None:
            self._player.scale_speed(factor)

    def action_jump(self, twentieths: int) -> None:
        """Jump by so many twentieths of the whole."""
        if self._player is not None:
            self._player.jump(twentieths * JUMP_FRAC)

    def on_scrubber_moved(self, message: Scrubber.Moved) -> None:
        if self._player is not None and self.view and self.view.position:
            self._player.seek(message.frac * self.view.position.duration_s)

    def _show_position(self, position: Position | None) -> None:
        """The scrubber of the screen that is seen, above its footer."""
        screen = self._base_screen
        if screen is None or position is None or not screen.is_attached:
            return
        scrub = Scrub(
            elapsed_s=position.elapsed_s,
            duration_s=position.duration_s,
            speed=position.speed,
            is_playing=position.is_playing,
            marks_s=position.marks_s,
        )
        for scrubber in screen.query(Scrubber):
            scrubber.show(scrub)
            return
        footers = screen.query(Footer)
        screen.mount(Scrubber(scrub), before=footers.first() if footers else None)
