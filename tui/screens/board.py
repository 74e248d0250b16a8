"""The board screen: both scoreboards, a cohort at a time, published results marked."""

from collections.abc import Sequence
from pathlib import Path

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.message import Message

from harness import format as fmt
from harness import leaderboard, standings
from harness.leaderboard import PUBLISHED_MARK, Board, Published, Standing
from harness.sheet import Sheet
from nmoe.paths import DataRoot
from tui.feed import Failure, Success, attempt
from tui.screens.named import NamedScreen
from tui.widgets.prose import Prose
from tui.widgets.rows import Panel, Role, Row, clean, clip
from tui.widgets.table import Column, draw_table

Outcome = Success[Board] | Failure

_ENTRY = (
    Column(title="rank", align="right"),
    Column(title="time", align="right"),
    Column(title="val", align="right"),
    Column(title="CORE", align="right", rank=1),
    Column(title="steps", align="right", rank=2),
    Column(title="tokens", align="right", rank=4),
    Column(title="preset", rank=3),
    Column(title="status", rank=6),
    Column(title="date", rank=5),
    Column(title="run"),
)
_PUBLISHED = (
    Column(title="time", align="right"),
    Column(title="val", align="right"),
    Column(title="CORE", align="right", rank=1),
    Column(title="steps", align="right", rank=2),
    Column(title="tokens", align="right", rank=4),
    Column(title="preset"),
    Column(title="machine"),
    Column(title="dtype", rank=3),
    Column(title="source", rank=5),
)
_PLACES: dict[int, Role] = {1: "good", 2: "text", 3: "text"}


class Boards(Panel[tuple[tuple[str, Outcome], ...]]):
    """All boards one below the other."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        rows: list[Row] = []
        for title, outcome in self.value:
            rows += draw_board(title, outcome, width)
        return rows


class BoardsRead(Message):
    """The boards as they are now."""

    def __init__(self, boards: tuple[tuple[str, Outcome], ...]) -> None:
        super().__init__()
        self.boards = boards


class BoardScreen(NamedScreen):
    """Reads the boards each time it is shown."""

    NAME = "board"

    def __init__(self, root: DataRoot, *, repo_board: Path) -> None:
        super().__init__()
        self._paths = (
            ("official", repo_board),
            ("this machine", root.board),
        )
        self._boards = Boards((), classes="tall")

    def panels(self) -> ComposeResult:
        yield Prose((((" board: needs 60 x 16 cells", "dim"),),), id="small")
        with VerticalScroll(id="boards") as scroll:
            scroll.border_title = "scoreboards"
            yield self._boards

    def on_screen_resume(self) -> None:
        self.run_worker(self._read, thread=True, exclusive=True, exit_on_error=False)

    def _read(self) -> None:
        boards = tuple(
            (f"{title} · {path}", attempt(lambda path=path: leaderboard.load(path)))
            for title, path in self._paths
        )
        self.post_message(BoardsRead(boards))

    def on_boards_read(self, message: BoardsRead) -> None:
        self._boards.show(message.boards)

    def sheet(self) -> Sheet | None:
        outcomes = [outcome for _, outcome in self._boards.value]
        boards = [each.value for each in outcomes if isinstance(each, Success)]
        found = standings.sheet(boards)
        return found if found.rows else None


def draw_board(title: str, outcome: Outcome, width: int) -> list[Row]:
    """One board: heading, a table a cohort, then what others published."""
    rows: list[Row] = [((clip(clean(title), width), "strong"),)]
    if isinstance(outcome, Failure):
        return [*rows, ((clean(outcome.problem), "bad"),), ((clean(outcome.fix), "accent"),), ()]
    board = outcome.value
    for standing in leaderboard.standings(board):
        rows += [(), *_cohort(standing, width)]
    if board.published:
        rows += [(), *_published(board.published, width)]
    if not board.entries and not board.published:
        rows.append((("no entries yet", "dim"),))
    return [*rows, ()]


def _cohort(standing: Standing, width: int) -> list[Row]:
    records = [
        (
            str(row.rank),
            fmt.exact_seconds(leaderboard.time_of(row.entry)),
            fmt.loss(row.entry.result.loss),
            fmt.core(row.entry.result.core),
            fmt.count(row.entry.result.step),
            fmt.tokens(row.entry.result.tokens),
            clean(row.entry.result.preset),
            clean(row.entry.status),
            clean(row.entry.result.finished[:10]),
            clean(row.entry.result.run_id),
        )
        for row in standing.rows
    ]
    roles: list[Role] = [_PLACES.get(row.rank, "dim") for row in standing.rows]
    heading: Row = ((clip(clean(standing.cohort.label), width), "accent"),)
    return [heading, *draw_table(_ENTRY, records, width, roles=roles)]


def _published(published: Sequence[Published], width: int) -> list[Row]:
    records = [
        (
            fmt.exact_seconds(row.train_s),
            fmt.loss(row.loss),
            fmt.core(row.core),
            fmt.count(row.step),
            fmt.tokens(row.tokens),
            clean(row.preset),
            f"{row.devices} x {clean(row.machine)}",
            clean(row.dtype),
            clean(row.source),
        )
        for row in published
    ]
    heading: Row = ((clip(PUBLISHED_MARK, width), "warn"),)
    roles: list[Role] = ["dim"] * len(records)
    return [heading, *draw_table(_PUBLISHED, records, width, roles=roles)]
