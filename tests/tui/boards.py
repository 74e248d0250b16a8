"""Scoreboards with entries that were scored from recorded runs."""

from pathlib import Path

from harness import leaderboard, score
from nmoe.paths import DataRoot
from tests.tui import recordings


def write_board(root: DataRoot, path: Path | None = None, *, count: int = 2) -> None:
    """Enter `count` finished runs into the board at `path`, by default the data root's."""
    for index in range(count):
        run_id = f"pocket-20260101-00000{index}-abcd"
        folder = recordings.done(root, run_id)
        entry = leaderboard.make_entry(score.compute(folder, root))
        leaderboard.append(path or root.board, entry)
