"""The verbs of scoreboards: leaderboard, verify."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.errors import BoardError, RunError, UsageError
from harness.options import Json
from harness.terminal import answer, say


def leaderboard(
    *,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="A row an entry.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Tables to paste into a page.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check that no entry was changed after the fact.")
    ] = False,
) -> None:
    """Show the scoreboards of repository and data root."""
    if as_json + as_csv + as_markdown > 1:
        raise UsageError("a board is shown in one format", "Name one of --json, --csv, --markdown")
    from harness import leaderboard as board_file
    from harness import standings, tables
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
    elif as_csv:
        answer(standings.sheet(boards).csv().removesuffix("\n"))
    elif as_markdown:
        answer(*standings.markdown_lines(boards))
    else:
        answer(*tables.board_lines(boards))
    if verify:
        say("every entry is as it was written")


def verify(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN|ENTRY", help="Run, last, entry or set of repeats."),
    ],
    *,
    level: Annotated[
        int, typer.Option("--level", min=0, max=4, help="The highest rung of the ladder.")
    ] = 4,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", min=1, help="Steps that rung 4 trains again.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Check a run from its files up to training its first steps again."""
    from harness import campaign, repeats, tables
    from harness import verify as ladder
    from nmoe.paths import data_root

    root = data_root()
    if repeats.exists(name, root):
        concluded = campaign.conclude(repeats.read(name, root), root, say=say)
        answer(*([json.dumps(asdict(concluded))] if as_json else campaign.sentences(concluded)))
        return
    report = ladder.verify(name, root, level=level, steps=steps)
    if as_json:
        answer(json.dumps(asdict(report)))
    else:
        answer(*tables.verification_lines(report.run_id, report.verification, report.status))
    if report.failures:
        raise typer.Exit(RunError.exit_code)
