"""What the app makes later: screens when they are first shown, answers in threads.

A start waits for one screen only, and for no more of the harness than that screen draws.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from textual.message import Message

from nmoe.paths import BENCH_RESULTS, REPO_BOARD, DataRoot, RunFolder
from tui.screens.named import NamedScreen
from tui.screens.request import Request
from tui.screens.setup import SetupScreen

if TYPE_CHECKING:
    from harness.best import Best
    from harness.hardware import Detection
    from nmoe.config import Plan
    from tui.reader import Feed
    from tui.screens.offer import Offer


class Listed(NamedTuple):
    """A key, the screen it shows, its word in the bar, what there is to see, whether of one run."""

    key: str
    name: str
    word: str
    tooltip: str
    is_of_run: bool = False


SCREENS = (
    Listed("1", "run", "run", "the run: loss, numbers, CORE, log", is_of_run=True),
    Listed("2", "experts", "experts", "loads of the experts, layer by layer", is_of_run=True),
    Listed("3", "gpus", "gpus", "every GPU, the throughput and what held it back", is_of_run=True),
    Listed("4", "core", "core", "CORE, task by task, beside the record", is_of_run=True),
    Listed("5", "runs", "runs", "all runs: filter, mark, compare, watch"),
    Listed("6", "board", "board", "the scoreboards, a cohort at a time"),
    Listed("7", "kernels", "kernels", "rows of the bench suite, what is slower than before"),
    Listed("8", "logs", "logs", "events and what every process printed", is_of_run=True),
    Listed("0", "setup", "start", "this machine, the plan, launch"),
)
OF_RUN = frozenset(listed.name for listed in SCREENS if listed.is_of_run)


class Catalog:
    """Makes the screens; `made` has those that were shown."""

    def __init__(
        self,
        root: DataRoot,
        request: Request,
        *,
        is_readonly: bool,
        repo_board: Path | None,
        bench_results: Path | None,
        clock: Callable[[], float],
    ) -> None:
        self.setup = SetupScreen(root, request, self.offer, is_readonly=is_readonly)
        self.made: dict[str, NamedScreen] = {"setup": self.setup}
        self._root, self._is_readonly, self._clock = root, is_readonly, clock
        self._repo_board = repo_board or REPO_BOARD
        self._bench_results = bench_results or BENCH_RESULTS

    def screen(self, name: str) -> NamedScreen:
        """The screen of this name, always the same one."""
        if name not in self.made:
            self.made[name] = self._make(name)
        return self.made[name]

    def feed(self, folder: RunFolder, post: Callable[[Message], object]) -> "Feed":
        """What posts views of the run."""
        from tui.reader import Feed

        return Feed(folder, post, clock=self._clock)

    def offer(self, request: Request, detection: "Detection | None") -> "Offer":
        """What there is to say to a request; for a thread."""
        from tui.screens.offer import make_offer

        return make_offer(
            request,
            self._root,
            detection,
            repo_board=self._repo_board,
            bench_results=self._bench_results,
        )

    def find_best(self, plan: "Plan") -> "Best | None":
        """The run that one of this plan races against; for a thread."""
        from harness import best

        return best.find(plan, self._root, repo_board=self._repo_board)

    @staticmethod
    def load() -> None:
        """Read the code of all screens, so that showing one is quick; any thread may."""
        for listed in SCREENS:
            import_module(f"tui.screens.{listed.name}")

    def _make(self, name: str) -> NamedScreen:
        match name:
            case "run":
                from tui.screens.run import RunScreen

                return RunScreen()
            case "experts":
                from tui.screens.experts import ExpertsScreen

                return ExpertsScreen(self._root)
            case "gpus":
                from tui.screens.gpus import GpusScreen

                return GpusScreen()
            case "core":
                from tui.screens.core import CoreScreen

                return CoreScreen()
            case "runs":
                from tui.screens.runs import RunsScreen

                return RunsScreen(self._root, is_readonly=self._is_readonly, clock=self._clock)
            case "board":
                from tui.screens.board import BoardScreen

                return BoardScreen(self._root, repo_board=self._repo_board)
            case "kernels":
                from tui.screens.kernels import KernelsScreen

                return KernelsScreen(self._root, self._bench_results, is_readonly=self._is_readonly)
            case "logs":
                from tui.screens.logs import LogsScreen

                return LogsScreen(self._root)
            case _:
                raise KeyError(name)
