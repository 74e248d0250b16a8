"""Verbs that show a run and own none: replay, viz."""

from typing import Annotated

import typer

from harness.errors import UsageError
from harness.options import Headless, Json, Quiet
from harness.terminal import become, has_terminal
from harness.verbs.run import output_of

SCREEN_SPEED = 20.0


def replay(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run id, its beginning, last, or the path of a copied run folder."
        ),
    ],
    *,
    speed: Annotated[
        float | None,
        typer.Option(
            "--speed", metavar="X", help="Times its own pace (default: 20; headless: at once)."
        ),
    ] = None,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Watch a recorded run again, as it went; nothing is written."""
    if speed is not None and not 0 < speed < float("inf"):
        raise UsageError(f"got --speed {speed}, expected a number above 0", "Try: --speed 20")
    from harness import headless as printer
    from harness import replay as recordings
    from nmoe.paths import data_root

    folder = recordings.find(data_root(), run)
    if not (headless or as_json or quiet) and has_terminal():
        become("tui", "replay", str(folder.root), "--speed", str(speed or SCREEN_SPEED))
    recording = recordings.Replay(folder)
    output = output_of(as_json=as_json, quiet=quiet)
    raise typer.Exit(printer.replay(recording, output=output, speed=speed))


def viz(
    run: Annotated[
        str | None,
        typer.Argument(metavar="RUN", help="Run id or its beginning (default: alive, or newest)."),
    ] = None,
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=1, max=65535)] = 8000,
) -> None:
    """Show a run in a browser, to look at only; also /state.json and /events."""
    become("tui.web", *([run] if run else []), "--host", host, "--port", str(port))
