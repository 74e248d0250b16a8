"""The verbs of scoreboards: leaderboard."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.options import Json
from harness.terminal import answer, say


def leaderboard(
    *,
    as_json: Json = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no entry was changed after the fact.")
    ] = False,
) -> None:
    """Show the scoreboards of repository and data root."""
    from harness import leaderboard as board_file
    from harness import tables
    from harness.errors import BoardError
    from nmoe.paths import data_root

    root = data_root()
    boards = board_file.boards(root)
    if verify:
        problems = [
            problem
            for board in boards
            for problem in (*board_file.verify(board), *board_file.removed(board, root))
        ]
        if problems:
            raise BoardError("; ".join(problems), "Restore the file from version control.")
    if as_json:
        shown = [
            {
                "path": str(board.path),
                "head": board.head,
                "entries": [asdict(entry) for entry in board.entries],
                "published": [asdict(row) for row in board.published],
            }
            for board in boards
        ]
        answer(json.dumps(shown))
    else:
        answer(*tables.board_lines(boards))
    if verify:
        say("every entry is as it was written")
