"""The app: screens by digit, one feed for the run that is watched, and the few acts on a run."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from harness import launch, runs
from nmoe.paths import DataRoot, RunFolder
from tui.feed import Failure, Feed, FeedFailed, RunChanged, RunView, Success, attempt
from tui.screens.ask import Ask, Choice
from tui.screens.board import BoardScreen
from tui.screens.help import HelpScreen
from tui.screens.run import RunScreen
from tui.screens.setup import Launch, Request, SetupScreen
from tui.widgets.chart import LineChart

REMOTE = ("SSH_CONNECTION", "SSH_TTY")
STOPPED_BY = "the screen"


class NmoeApp(App[None]):
    """A viewer and remote control: leaving it, or losing it, changes nothing for the run."""

    TITLE = "nmoe"
    CSS_PATH = Path(__file__).with_name("app.tcss")
    ENABLE_COMMAND_PALETTE = False
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
        Binding("1", "go('run')", "run", tooltip="the run: loss, numbers, CORE, log"),
        Binding("6", "go('board')", "board", tooltip="the scoreboards, a cohort at a time"),
        Binding("0", "go('setup')", "start", tooltip="this machine, the plan, launch"),
        Binding("space", "freeze", "freeze", tooltip="hold the view still; the run goes on"),
        Binding("S", "stop_run", "stop", tooltip="save a checkpoint and end the run"),
        Binding("q", "detach", "detach", tooltip="leave; the run goes on"),
        Binding("question_mark", "help", "help", key_display="?", tooltip="keys and states"),
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._clock = clock
        if any(name in os.environ for name in REMOTE):
            self.animation_level = "none"
        self.set_class(is_ascii, "-ascii")
        self.root = root
        self.run_folder = run
        self.is_readonly = is_readonly
        self.view: RunView | None = None
        self.problem = ""
        self._feed: Feed | None = None
        self._setup = SetupScreen(root, request or Request(), is_readonly=is_readonly)
        self._named: dict[str, Screen[None]] = {
            "run": RunScreen(),
            "board": BoardScreen(root, repo_board=repo_board),
            "setup": self._setup,
        }

    def on_mount(self) -> None:
        self._leave_on_signals()
        for name, screen in self._named.items():
            self.install_screen(screen, name)  # pyright: ignore[reportUnknownMemberType]
        if self.run_folder is not None:
            self.attach(self.run_folder)
        else:
            self.push_screen("setup")

    def on_unmount(self) -> None:
        if self._feed is not None:
            self._feed.stop()

    def attach(self, folder: RunFolder) -> None:
        """Watch a run and show it."""
        if self._feed is not None:
            self._feed.stop()
        self.run_folder, self.view = folder, None
        self._feed = self.open_feed(folder)
        self._feed.start()
        self.action_go("run")

    def open_feed(self, folder: RunFolder) -> Feed:
        """What posts views of the run."""
        return Feed(folder, self.post_message, clock=self._clock)

    def on_run_changed(self, message: RunChanged) -> None:
        if self._feed is None or message.view.state.run_id != self._feed.folder.run_id:
            return
        was_alive = self.view is not None and self.view.is_alive
        self.view = message.view
        self._show_view()
        if was_alive != message.view.is_alive:
            self.refresh_bindings()

    def on_feed_failed(self, message: FeedFailed) -> None:
        self.problem = message.problem
        self._show_view()

    def _show_view(self) -> None:
        screen = self._base_screen
        if not isinstance(screen, RunScreen):
            return
        screen.show_problem(self.problem)
        if self.view is not None:
            screen.show(self.view)

    @property
    def _base_screen(self) -> Screen[object] | None:
        """The named screen under any question."""
        for screen in reversed(self.screen_stack):
            if any(screen is named for named in self._named.values()):
                return screen
        return None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Whether a key acts: what cannot be done now is greyed."""
        if action in ("go", "freeze", "stop_run", "help") and self.screen.is_modal:
            return False
        if action == "stop_run":
            return True if self._can_stop() else None
        if action == "freeze":
            return isinstance(self._base_screen, RunScreen)
        if action == "go" and parameters == ("run",):
            return None if self.run_folder is None else True
        return True

    def action_go(self, name: str) -> None:
        """Show a screen."""
        target = self._named[name]
        if self._base_screen is None:
            self.push_screen(target)
        elif self.screen is not target:
            self.switch_screen(target)  # pyright: ignore[reportUnknownMemberType]
        if name == "run":
            self.call_after_refresh(self._show_view)

    def action_freeze(self) -> None:
        screen = self._base_screen
        if isinstance(screen, RunScreen):
            screen.toggle_freeze()

    def action_help(self) -> None:
        bindings = [*self.BINDINGS]
        if isinstance(self._base_screen, RunScreen):
            bindings += LineChart.BINDINGS
        keys = [key for key in bindings if isinstance(key, Binding) and key.tooltip]
        self.push_screen(HelpScreen(keys))

    def action_detach(self) -> None:
        """Leave; the run goes on."""
        self.exit()

    def action_leave(self) -> None:
        """Ask how to leave."""
        if isinstance(self.screen, Ask):
            self.screen.dismiss(None)
            return
        choices = [Choice("cancel", "Cancel"), Choice("detach", "Detach: leave, the run goes on")]
        if self._can_stop():
            choices.append(Choice("stop", "Stop and save: end the run with a checkpoint"))
        elif self.run_folder is None:
            choices[1] = Choice("detach", "Leave")
        self.push_screen(Ask("Leave?", choices), self._left)

    def _left(self, answer: str | None) -> None:
        if answer == "stop" and not self._request_stop():
            return
        if answer in ("detach", "stop"):
            self.exit()

    def action_stop_run(self) -> None:
        """Ask, then request a stop."""
        if not self._can_stop() or self.run_folder is None:
            self.notify("no run to stop", markup=False)
            return
        choices = [
            Choice("cancel", "Cancel: the run goes on"),
            Choice("stop", "Stop: save a checkpoint, then end"),
        ]
        question = f"Stop {self.run_folder.run_id}?"
        self.push_screen(Ask(question, choices), self._stop_answered)

    def _stop_answered(self, answer: str | None) -> None:
        if answer == "stop":
            self._request_stop()

    def _can_stop(self) -> bool:
        return bool(self.view and self.view.is_alive) and not self.is_readonly

    def _request_stop(self) -> bool:
        folder = self.run_folder
        if folder is None:
            return False
        outcome = attempt(lambda: launch.request_stop(folder, STOPPED_BY))
        if isinstance(outcome, Failure):
            self._complain(outcome)
            return False
        self.notify("stop requested: a checkpoint comes first", markup=False)
        return True

    def on_launch(self, message: Launch) -> None:
        """Start a run and watch it; the work happens off the screen's thread."""
        plan = message.plan

        def work() -> None:
            outcome = attempt(lambda: launch.start(plan, self.root))
            self.call_from_thread(self._launched, outcome)

        self.run_worker(work, thread=True, exclusive=True, group="launch", exit_on_error=False)

    def _launched(self, outcome: Success[RunFolder] | Failure) -> None:
        if isinstance(outcome, Failure):
            self._complain(outcome)
            self._setup.launch_failed()
            return
        self.attach(outcome.value)

    def _complain(self, failure: Failure) -> None:
        text = f"{failure.problem}. {failure.fix}" if failure.fix else failure.problem
        self.notify(text, severity="error", timeout=10, markup=False)

    def _leave_on_signals(self) -> None:
        """SIGTERM and SIGHUP end the app in order, so that the terminal is restored."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            try:
                loop.add_signal_handler(number, self._exit_by(number))
            except (RuntimeError, ValueError):
                return  # not in the main thread: whoever runs the app owns the signals

    def _exit_by(self, number: signal.Signals) -> Callable[[], None]:
        return lambda: self.exit(return_code=128 + number)


def newest_alive(root: DataRoot) -> RunFolder | None:
    """The newest run that a process holds, if any."""
    for row in runs.list_runs(root):
        if row.is_alive:
            return root.run(row.run_id)
    return None
