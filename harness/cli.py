"""The `n` command: one function a verb, imports deferred so that a verb loads only what it needs.

Exit codes of runs: 0 target reached and CORE scored, 1 bug, 2 usage, 3 environment or no GPU, 4
data or eval bundle, 5 training failed, 6 target not reached, 7 CORE failed, 130/143 interrupted
with a checkpoint.
"""

import json
import sys
import tempfile
import time
import traceback
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from harness.errors import HarnessError, UsageError
from harness.options import (
    Cap,
    CheckpointFolder,
    DataFolder,
    DryRun,
    Dtype,
    FakeHardware,
    Gpus,
    Headless,
    Json,
    OptionalRun,
    Out,
    Overrides,
    Quiet,
    Records,
    RunName,
    Scored,
    Seed,
    Steps,
    Tasks,
)
from harness.terminal import answer, become, fail, has_terminal, say
from harness.verbs.bench import bench

if TYPE_CHECKING:
    from harness.hardware import Detection
    from nmoe.config import Plan
    from nmoe.paths import DataRoot, RunFolder

BUG_EXIT = 1
USAGE_EXIT = 2
DATA_EXIT = 4
POLL_S = 0.1
PASSED_THROUGH: dict[str, Any] = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}

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


@app.command()
def speedrun(
    preset: Annotated[
        str | None, typer.Argument(help="pocket, dense, moe, super or ultra (default: by GPU).")
    ] = None,
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    dtype: Dtype = None,
    gpus: Gpus = None,
    steps: Steps = None,
    seed: Seed = None,
    data: DataFolder = None,
    overrides: Overrides = None,
    show_board: Annotated[
        bool, typer.Option("--leaderboard", help="Show the scoreboard instead.")
    ] = False,
    fake_hardware: FakeHardware = None,
    dry_run: DryRun = False,
) -> None:
    """Race to the target loss, then score and rank it."""
    if show_board:
        leaderboard(as_json=as_json)
        return
    from harness import hardware
    from harness import plan as planner
    from nmoe.paths import data_root

    root, detection = data_root(), hardware.detect(fake=fake_hardware)
    plan = planner.resolve(
        preset=preset,
        detection=detection,
        root=root,
        dtype=dtype,
        gpus=gpus,
        steps=steps,
        seed=seed,
        data=data,
        overrides=tuple(overrides or ()),
    )
    if dry_run:
        _show_plan(plan, detection, root, as_json=as_json)
        return
    is_screen = not (headless or as_json or quiet) and has_terminal()
    _launch(plan, detection, root, is_screen=is_screen, as_json=as_json, quiet=quiet)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A TOML file such as configs/moonlet.toml.")],
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    dtype: Dtype = None,
    gpus: Gpus = None,
    seed: Seed = None,
    overrides: Overrides = None,
    fake_hardware: FakeHardware = None,
    dry_run: DryRun = False,
) -> None:
    """Train any TOML file, supervised like a speedrun."""
    if config.suffix != ".toml":
        raise UsageError(f"got {str(config)!r}, expected a TOML file", "Or run: n speedrun PRESET")
    speedrun(
        str(config),
        headless=headless,
        as_json=as_json,
        quiet=quiet,
        dtype=dtype,
        gpus=gpus,
        seed=seed,
        overrides=overrides,
        fake_hardware=fake_hardware,
        dry_run=dry_run,
    )


@app.command()
def attach(
    run: RunName,
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Look only.")] = False,
) -> None:
    """Come back to a run; leaving it does not stop it."""
    folder = _find(run)
    if not (headless or as_json or quiet) and has_terminal():
        become("tui", "attach", folder.run_id, *(["--readonly"] if readonly else []))
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=False)


@app.command()
def stop(run: RunName) -> None:
    """End a run at a step boundary with a checkpoint."""
    from harness import launch, runs

    folder = _find(run)
    launch.request_stop(folder, by="n stop")
    say(f"stopping {folder.run_id} at its next step")
    while runs.is_alive(folder):
        time.sleep(POLL_S)
    ended = runs.summarize(folder).status
    way_on = f". Go on with: n resume {folder.run_id}" if ended == "interrupted" else ""
    say(f"{folder.run_id}: {ended}{way_on}")


@app.command()
def resume(
    run: RunName, *, headless: Headless = False, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Go on with a run from its last checkpoint."""
    from harness import launch

    folder = _find(run)
    launch.resume(folder)
    if not (headless or as_json or quiet) and has_terminal():
        become("tui", "attach", folder.run_id)
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=True)


@app.command("runs")
def list_runs(*, as_json: Json = False) -> None:
    """List the runs, newest first."""
    from harness import runs, tables
    from nmoe.paths import data_root

    root = data_root()
    rows = runs.list_runs(root)
    if as_json:
        answer(json.dumps([asdict(row) for row in rows]))
    else:
        answer(*tables.run_lines(rows, root))


@app.command()
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

    boards = board_file.boards(data_root())
    if verify:
        problems = [problem for board in boards for problem in board_file.verify(board)]
        if problems:
            raise BoardError("; ".join(problems), "Restore the file from version control.")
    if as_json:
        answer(json.dumps([asdict(board) for board in boards], default=str))
    else:
        answer(*tables.board_lines(boards))
    if verify:
        say("every entry is as it was written")


@app.command()
def doctor(*, as_json: Json = False, fake_hardware: FakeHardware = None) -> None:
    """Examine this machine; say what to mend."""
    from harness import doctor as facts
    from harness import hardware, tables
    from nmoe.paths import data_root

    checks = facts.examine(hardware.detect(fake=fake_hardware), data_root())
    if as_json:
        answer(json.dumps([asdict(check) for check in checks]))
    else:
        answer(*tables.check_lines(checks))
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(3)


app.command("bench", context_settings=PASSED_THROUGH)(bench)

prep = typer.Typer(help="Prepare data and eval bundles without a run.", rich_markup_mode=None)
app.add_typer(prep, name="prep")


@prep.command("data", context_settings=PASSED_THROUGH)
def prep_data(context: typer.Context) -> None:
    """Documents to a dataset folder; options as in `python -m nmoe.data.cli prep --help`."""
    become("nmoe.data.cli", "prep", *context.args)


@prep.command("eval", context_settings=PASSED_THROUGH)
def prep_eval(context: typer.Context) -> None:
    """The official eval bundle into the data root; with --output DIR, the small one of `pocket`."""
    if any(argument.startswith("--output") for argument in context.args):
        become("nmoe.data.cli", "prep-bundle", *context.args)
    become("harness.prep", *context.args)


evals = typer.Typer(help="Score checkpoints and compare scores.", rich_markup_mode=None)
app.add_typer(evals, name="eval")


@evals.command("core")
def eval_core(
    *,
    run: OptionalRun = None,
    checkpoint: CheckpointFolder = None,
    cap: Cap = None,
    tasks: Tasks = None,
    out: Out = None,
    records: Records = None,
    as_json: Json = False,
) -> None:
    """Score CORE of a checkpoint, like the run that wrote it."""
    if (run is None) == (checkpoint is None):
        raise UsageError("name either --run or --checkpoint", "Run: n eval core --run last")
    place = f"--checkpoint={checkpoint}" if run is None else f"--run={_find(run).root}"
    options = {"--cap": cap, "--tasks": tasks, "--out": out, "--records": records}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    become("nmoe.evaluate", place, *given, *(["--json"] if as_json else []))


@evals.command("compare")
def eval_compare(first: Scored, second: Scored, *, as_json: Json = False) -> None:
    """Compare the CORE answers of two runs, item by item."""
    from harness import compare, tables

    paths = [
        Path(name) if Path(name).is_file() else _find(name).core_items for name in (first, second)
    ]
    comparison = compare.compare(*paths)
    if as_json:
        answer(json.dumps(asdict(comparison)))
    else:
        answer(*tables.comparison_lines(comparison))


def _show_plan(plan: "Plan", detection: "Detection", root: "DataRoot", *, as_json: bool) -> None:
    from harness import preflight, tables

    problems = preflight.problems(plan, detection, root)
    if as_json:
        shown = {"plan": asdict(plan), "problems": [asdict(problem) for problem in problems]}
        answer(json.dumps(shown))
        return
    answer(*tables.plan_lines(plan, root), *map(tables.problem_line, problems))


def _launch(
    plan: "Plan",
    detection: "Detection",
    root: "DataRoot",
    *,
    is_screen: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    from harness import launch, preflight, tables

    if not (as_json or quiet):
        say(*tables.plan_lines(plan, root))
    problems = preflight.problems(plan, detection, root)
    refusal = preflight.first_blocking(problems)
    for problem in problems:
        if problem is not refusal:
            say(tables.problem_line(problem))
    if refusal is not None:
        raise refusal.error()
    folder = launch.start(plan, root)
    if is_screen:
        become("tui", "attach", folder.run_id)
    if not (as_json or quiet):
        say(f"ctrl-C stops it with a checkpoint; from elsewhere: n stop {folder.run_id}")
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=True)


def _follow(folder: "RunFolder", *, as_json: bool, quiet: bool, passes_stop: bool) -> NoReturn:
    from harness import headless

    output = "quiet" if quiet else "json" if as_json else "all"
    raise typer.Exit(headless.follow(folder, output=output, passes_stop=passes_stop))


def _find(name: str) -> "RunFolder":
    from harness import runs
    from nmoe.paths import data_root

    return runs.find(data_root(), name)


def main() -> NoReturn:
    """Run a verb; errors become one line and an exit code."""
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
