"""The app: screens by digit, one feed for the run that is watched, and the few acts on a run."""

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.screen import Screen

from harness.sheet import save
from nmoe.paths import DataRoot, RunFolder
from tui.catalog import OF_RUN, SCREENS, Catalog
from tui.feed import Failure, FeedFailed, RunChanged, RunView, Success, attempt
from tui.remote import RemoteControl
from tui.screens.ask import Ask, Choice
from tui.screens.help import HelpScreen, declared
from tui.screens.named import NamedScreen
from tui.screens.request import Request
from tui.screens.sheet import FORMATS, fits_clipboard
from tui.widgets.rows import Panel

if TYPE_CHECKING:  # read with its screen
    from harness.best import Best
    from tui.reader import Feed
    from tui.screens.runs import Attach, Marked

LEAVING = (signal.SIGTERM, signal.SIGHUP)
LEAVE_S = 5.0  # from a signal to the end
REMOTE = ("SSH_CONNECTION", "SSH_TTY")
FORMAT_WORDS = {
    "csv": "csv: the table, for a spreadsheet",
    "json": "json: the table, for a program",
    "svg": "svg: the screen as a picture",
    "txt": "txt: the panels as text",
}


class NmoeApp(RemoteControl):
    """A viewer and remote control: leaving it, or losing it, changes nothing for the run."""

    TITLE = "nmoe"
    CSS_PATH = Path(__file__).with_name("app.tcss")
    HORIZONTAL_BREAKPOINTS = [
        (0, "-thin"),
        (60, "-narrow"),
        (100, "-mid"),
        (150, "-wide"),
    ]
    VERTICAL_BREAKPOINTS = [
        (0, "-flat"),
        (16, "-short"),
        (30, "-high"),
        (45, "-tall"),
    ]
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(listed.key, f"go('{listed.name}')", listed.word, tooltip=listed.tooltip)
            for listed in SCREENS
        ),
        Binding("space", "freeze", "freeze", tooltip="hold the view still; the run goes on"),
        Binding("S", "stop_run", "stop", tooltip="save a checkpoint and end the run"),
        Binding("R", "resume_run", "resume", show=False, tooltip="go on with a run that is over"),
        Binding("T", "time_zone", "zone", show=False, tooltip="times of here, or in UTC"),
        Binding("q", "detach", "detach", tooltip="leave; the run goes on"),
        Binding("question_mark", "help", "help", key_display="?", tooltip="keys and states"),
        Binding("y", "copy", "copy", show=False, tooltip="copy the panel in focus as text"),
        Binding("e", "export", "export", show=False, tooltip="export as csv, json, svg or txt"),
        Binding("ctrl+c", "leave", "leave", show=False, priority=True, tooltip="how to leave"),
        Binding("ctrl+q", "detach", "detach", show=False, priority=True, tooltip="leave"),
    ]

    def __init__(
        self,
        root: DataRoot,
        *,
        run: RunFolder | None = None,
        request: Request | None = None,
        is_readonly: bool = False,
        is_ascii: bool = False,
        repo_board: Path | None = None,
        bench_results: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if any(name in os.environ for name in REMOTE):
            self.animation_level = "none"
        self.set_class(is_ascii, "-ascii")
        self.root = root
        self.run_folder = run
        self.is_readonly = is_readonly
        self.view: RunView | None = None
        self.held: RunView | None = None
        self.best: Best | None = None
        self._sought: RunFolder | None = None
        self.problem = ""
        self._handlers: dict[signal.Signals, Any] = {}
        self._feed: Feed | None = None
        self.screens = Catalog(
            root,
            request or Request(),
            is_readonly=is_readonly,
            repo_board=repo_board,
            bench_results=bench_results,
            clock=clock,
        )

    def on_mount(self) -> None:
        self._leave_on_signals()
        if not self.is_headless:
            self.call_after_refresh(self._read_ahead)
        if self.run_folder is not None:
            self.attach(self.run_folder)
        else:
            self.action_go("setup")

    def _read_ahead(self) -> None:
        """Read the code of the screens that are not shown yet, once the first one is."""

        def work() -> None:
            self.screens.load()
            # What is there now lives as long as the program: looking through it for garbage
            # holds keys up for a tenth of a second at a time.
            self.call_from_thread(gc.freeze)

        self.run_worker(work, thread=True, group="screens", exit_on_error=False)

    def on_unmount(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._feed is not None:
            self._feed.stop()

    def attach(self, folder: RunFolder) -> None:
        """Watch a run and show it."""
        if self._feed is not None:
            self._feed.stop()
        self.run_folder, self.view, self.held, self.best = folder, None, None, None
        self._feed = self.open_feed(folder)
        self.action_go("run")
        # The screen is there before the run is read, however long that takes.
        self.call_after_refresh(self._feed.start)

    def launch_failed(self) -> None:
        self.screens.setup.launch_failed()

    def runs_changed(self) -> None:
        for screen in self.screens.made.values():
            screen.runs_changed()

    def on_attach(self, message: "Attach") -> None:
        self.attach(message.folder)

    def on_marked(self, message: "Marked") -> None:
        """Draw the marked runs over the one that is watched."""
        self.screens.screen("run").show_marked(message.others)

    def open_feed(self, folder: RunFolder) -> "Feed":
        """What posts views of the run."""
        return self.screens.feed(folder, self.post_message)

    def on_run_changed(self, message: RunChanged) -> None:
        if self._feed is None or message.view.state.run_id != self._feed.folder.run_id:
            return
        was_alive = self.view is not None and self.view.is_alive
        self.view = message.view
        self._seek_best()
        self._show_view()
        if was_alive != message.view.is_alive:
            self.refresh_bindings()

    def _seek_best(self) -> None:
        """Look once for the run to race against, off the screen's thread."""
        folder, plan = self.run_folder, self.view.state.plan if self.view else None
        if folder is None or plan is None or folder == self._sought:
            return
        self._sought = folder

        def work() -> None:
            found = attempt(lambda: self.screens.find_best(plan))
            if isinstance(found, Success):
                self.call_from_thread(self._best_found, folder, found.value)

        self.run_worker(work, thread=True, exclusive=True, group="best", exit_on_error=False)

    def _best_found(self, folder: RunFolder, found: "Best | None") -> None:
        if folder == self.run_folder and found is not None:
            self.best = found
            self._show_view()

    def on_feed_failed(self, message: FeedFailed) -> None:
        self.problem = message.problem
        self._show_view()

    def _show_view(self) -> None:
        screen = self._base_screen
        if screen is None:
            return
        screen.show_problem(self.problem)
        if self.view is not None:
            screen.show(self.view, held=self.held, best=self.best)

    @property
    def _base_screen(self) -> NamedScreen | None:
        """The named screen under any question."""
        for screen in reversed(self.screen_stack):
            if isinstance(screen, NamedScreen):
                return screen
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key acts: what cannot be done now is greyed."""
        is_asked = self.screen.is_modal and not isinstance(self.screen, CommandPalette)
        if is_asked and action not in ("leave", "detach"):
            return False
        match action:
            case "stop_run":
                return True if self.can_stop() else None
            case "resume_run":
                return True if self.can_resume() else None
            case "freeze":
                return self._base_screen is not None and self._base_screen.IS_OF_RUN
            case "go" if parameters[0] in OF_RUN:
                return None if self.run_folder is None else True
            case _:
                return True

    def action_go(self, name: str) -> None:
        """Show a screen."""
        target = self.screens.screen(name)
        if not self.is_screen_installed(target):  # pyright: ignore[reportUnknownMemberType]
            self.install_screen(target, name)  # pyright: ignore[reportUnknownMemberType]
        if self._base_screen is None:
            self.push_screen(target)
        elif self.screen is not target:
            self.switch_screen(target)  # pyright: ignore[reportUnknownMemberType]
        if target.IS_OF_RUN:
            self.call_after_refresh(self._show_view)

    def action_freeze(self) -> None:
        """Hold every screen of the run as it is now, or let go."""
        self.held = self.view if self.held is None else None
        self._show_view()

    def action_time_zone(self) -> None:
        """Show times in UTC, or those of here."""
        self.toggle_class("-utc")
        for screen in self.screens.made.values():
            panels: list[Panel[Any]] = [*screen.query(Panel)]
            for panel in panels:
                panel.redraw()

    def action_help(self) -> None:
        self.push_screen(HelpScreen(declared(self.screen.active_bindings.values())))

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The palette: every key that says what it does."""
        for key in declared(screen.active_bindings.values()):
            press = partial(self.simulate_key, key.key.partition(",")[0])
            yield SystemCommand(key.tooltip, f"key {self.get_key_display(key)}", press)
        yield SystemCommand("change the colours", "theme", self.action_change_theme)

    def action_copy(self) -> None:
        """Copy what is in focus: through the terminal, or into a file when that cannot be."""
        screen = self._base_screen
        text = "" if screen is None else screen.copied()
        if not text.strip():
            self.notify("nothing to copy", markup=False)
        elif fits_clipboard(text, os.environ.get("TERM", "")):
            self.copy_to_clipboard(text)
            lines = len(text.splitlines())
            self.notify(f"{lines} lines sent to the clipboard (OSC 52)", markup=False)
        else:
            self._save("txt", text, why="the terminal takes no such clipboard: ")

    def action_export(self) -> None:
        """Ask for a format, then write what the screen shows into the data root."""
        screen = self._base_screen
        if screen is not None:
            has_table = screen.sheet() is not None
            formats = [name for name in FORMATS if has_table or name in ("svg", "txt")]
            choices = [Choice(name, FORMAT_WORDS[name]) for name in formats]
            self.push_screen(Ask(f"Export into {self.root.exports}", choices), self._export)

    def _export(self, answer: str | None) -> None:
        screen = self._base_screen
        sheet = None if screen is None else screen.sheet()
        if screen is None or answer is None:
            return
        if answer == "svg":
            # The question is still on top of what it was asked about.
            self.call_after_refresh(lambda: self._save("svg", self.export_screenshot()))
        elif answer == "txt":
            self._save("txt", screen.copied())
        elif sheet is not None:
            self._save(answer, sheet.csv() if answer == "csv" else sheet.json())

    def _save(self, suffix: str, text: str, *, why: str = "") -> None:
        screen = self._base_screen
        run = self.run_folder if screen and screen.IS_OF_RUN else None
        stem = "-".join(filter(None, (run and run.run_id, screen and screen.NAME)))
        outcome = attempt(lambda: save(self.root.exports, stem, suffix, text))
        if isinstance(outcome, Failure):
            self.complain(outcome)
        else:
            self.notify(f"{why}written to {outcome.value}", timeout=8, markup=False)

    def _leave_on_signals(self) -> None:
        """SIGTERM and SIGHUP end the app in order, so that the terminal is restored.

        A terminal that is gone holds up whoever writes to it, and with it all that is in order: a
        viewer that has not ended by then is cut off. It owns nothing that this could harm.
        """
        loop = asyncio.get_running_loop()

        def leave(number: int, _: object) -> None:
            cut = threading.Timer(LEAVE_S, os._exit, (128 + number,))
            cut.daemon = True
            cut.start()
            loop.call_soon_threadsafe(partial(self.exit, return_code=128 + number))

        try:
            self._handlers = {number: signal.signal(number, leave) for number in LEAVING}
        except ValueError:
            return  # not in the main thread: whoever runs the app owns the signals
