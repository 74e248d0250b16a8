"""Verbs of runs: speedrun, train, attach, stop, resume, runs."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from harness.errors import UsageError
from harness.options import (
    DataFolder,
    DryRun,
    Dtype,
    FakeHardware,
    Gpus,
    Headless,
    Json,
    Mirror,
    Overrides,
    Quiet,
    Repeat,
    RunName,
    Seed,
    Steps,
)
from harness.terminal import answer, become, has_terminal, say
from harness.verbs.board import leaderboard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.campaign import Conclusion
    from harness.hardware import Detection
    from harness.headless import Output
    from nmoe.config import Plan
    from nmoe.paths import DataRoot, RunFolder

POLL_S = 0.1


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
    repeat: Repeat = None,
    data: DataFolder = None,
    mirror: Mirror = None,
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
    if mirror is not None and not mirror.startswith(("http://", "https://")):
        raise UsageError(f"got --mirror {mirror!r}, expected http://… or https://…")
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
    if repeat is not None:
        output = output_of(as_json=as_json, quiet=quiet)
        code, _ = run_repeats([plan], detection, root, repeat, steps, seed, output, mirror)
        raise typer.Exit(code)
    is_screen = not (headless or as_json or quiet) and has_terminal()
    _launch(plan, detection, root, is_screen=is_screen, as_json=as_json, quiet=quiet, mirror=mirror)


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file such as configs/moonlet.toml.")],
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    dtype: Dtype = None,
    gpus: Gpus = None,
    seed: Seed = None,
    mirror: Mirror = None,
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
        mirror=mirror,
        overrides=overrides,
        fake_hardware=fake_hardware,
        dry_run=dry_run,
    )


def attach(
    run: RunName,
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    readonly: Annotated[bool, typer.Option("--readonly", help="Look only.")] = False,
) -> None:
    """Come back to a run; leaving it does not stop it."""
    folder = find(run)
    if not (headless or as_json or quiet) and has_terminal():
        become("tui", "attach", folder.run_id, *(["--readonly"] if readonly else []))
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=False)


def stop(run: RunName) -> None:
    """End a run at a step boundary with a checkpoint."""
    from harness import launch, runs

    folder = find(run)
    launch.request_stop(folder, by="n stop")
    say(f"stopping {folder.run_id} at its next step")
    while runs.is_alive(folder):
        time.sleep(POLL_S)
    ended = runs.summarize(folder).status
    way_on = f". Go on with: n resume {folder.run_id}" if ended == "interrupted" else ""
    say(f"{folder.run_id}: {ended}{way_on}")


def resume(
    run: RunName,
    *,
    headless: Headless = False,
    as_json: Json = False,
    quiet: Quiet = False,
    mirror: Mirror = None,
) -> None:
    """Go on with a run from its last checkpoint."""
    from harness import launch

    folder = find(run)
    launch.resume(folder, mirror=mirror)
    if not (headless or as_json or quiet) and has_terminal():
        become("tui", "attach", folder.run_id)
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=True)


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


def _show_plan(plan: "Plan", detection: "Detection", root: "DataRoot", *, as_json: bool) -> None:
    from harness import preflight, tables

    problems = preflight.problems(plan, detection, root)
    if as_json:
        shown = {"plan": asdict(plan), "problems": [asdict(problem) for problem in problems]}
        answer(json.dumps(shown))
        return
    answer(*tables.plan_lines(plan, root), *map(tables.problem_line, problems))


def run_repeats(
    plans: "Sequence[Plan]",
    detection: "Detection",
    root: "DataRoot",
    times: int,
    steps: int | None,
    seed: int | None,
    output: "Output",
    mirror: str | None,
) -> "tuple[int, list[Conclusion]]":
    """A set of repeats of each plan, taking turns; (exit code, verdicts)."""
    from harness import campaign, preflight

    if steps is None:
        raise UsageError("repeats need a horizon that is fixed in advance", "Add: --steps N")
    for plan in plans:
        refusal = preflight.first_blocking(preflight.problems(plan, detection, root))
        if refusal is not None:
            raise refusal.error()
    return campaign.run(plans, root, times=times, seed=seed, output=output, mirror=mirror, say=say)


def _launch(
    plan: "Plan",
    detection: "Detection",
    root: "DataRoot",
    *,
    is_screen: bool,
    as_json: bool,
    quiet: bool,
    mirror: str | None,
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
    folder = launch.start(plan, root, mirror=mirror)
    if is_screen:
        become("tui", "attach", folder.run_id)
    if not (as_json or quiet):
        say(f"ctrl-C stops it with a checkpoint; from elsewhere: n stop {folder.run_id}")
    _follow(folder, as_json=as_json, quiet=quiet, passes_stop=True)


def _follow(folder: "RunFolder", *, as_json: bool, quiet: bool, passes_stop: bool) -> NoReturn:
    from harness import headless

    output = output_of(as_json=as_json, quiet=quiet)
    raise typer.Exit(headless.follow(folder, output=output, passes_stop=passes_stop))


def output_of(*, as_json: bool, quiet: bool) -> "Output":
    """What a run without a screen prints; the quieter of two options counts."""
    return "quiet" if quiet else "json" if as_json else "all"


def find(name: str) -> "RunFolder":
    """The folder of the run that is called so; RunError when there is none."""
    from harness import runs
    from nmoe.paths import data_root

    return runs.find(data_root(), name)
