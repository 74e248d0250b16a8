"""The `n` command: its verbs from harness/verbs, and the edge where errors become exit codes.

Exit codes of runs: 0 target reached and CORE scored, 1 bug, 2 usage, 3 environment or no GPU, 4
data or eval bundle, 5 training failed, 6 target not reached, 7 CORE failed, 130/143 interrupted
with a checkpoint.
"""

import sys
import tempfile
import traceback
from io import TextIOWrapper
from typing import NoReturn, cast

import typer

from harness.errors import HarnessError, UsageError
from harness.terminal import become, fail, has_terminal, open_streams
from harness.verbs import board, machine, run, watch
from harness.verbs.bench import bench
from harness.verbs.compare import compare
from harness.verbs.eval import evals
from harness.verbs.export import export
from harness.verbs.prep import PASSED_THROUGH, prep

BUG_EXIT = 1
USAGE_EXIT = 2
DATA_EXIT = 4

app = typer.Typer(
    name="n",
    help="Train a mixture of experts to a target, as fast as this machine can.",
    epilog="`n test` runs the tests. Runs, data and metrics live under $DATA_DIR.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def screen(context: typer.Context) -> None:
    """Without a verb: the screen."""
    if context.invoked_subcommand is None:
        if not has_terminal():
            raise UsageError("the screen needs a terminal", "Run: n --help")
        become("tui")


for verb in (run.speedrun, run.train, run.attach, run.stop, run.resume, watch.replay, watch.viz):
    app.command()(verb)
app.command("runs")(run.list_runs)
app.command()(board.leaderboard)
app.command()(board.verify)
app.command()(compare)
app.command()(export)
app.command()(machine.doctor)
app.command("bench", context_settings=PASSED_THROUGH)(bench)
app.add_typer(prep, name="prep")
app.add_typer(evals, name="eval")


def main() -> NoReturn:
    """Run a verb; errors become one line and an exit code."""
    open_streams()
    # A character that the locale lacks is no error.
    cast(TextIOWrapper, sys.stdout).reconfigure(errors="backslashreplace")
    try:
        app(prog_name="n")
    except HarnessError as error:
        fail(error, error.exit_code)
    except Exception as error:  # noqa: BLE001 - the edge of the command: nothing above it
        _fail_unexpectedly(error)
    sys.exit(0)


def _fail_unexpectedly(error: Exception) -> NoReturn:
    """What the trainer's modules refuse is the user's to mend; anything else is a bug."""
    from nmoe.config import ConfigError
    from nmoe.data.manifest import DataError

    if isinstance(error, ConfigError):
        fail(error, USAGE_EXIT)
    if isinstance(error, DataError):
        fail(error, DATA_EXIT)
    with tempfile.NamedTemporaryFile("w", prefix="n-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    fail(f"this is a bug: {type(error).__name__}: {error}. See {file.name}", BUG_EXIT)


if __name__ == "__main__":
    main()
