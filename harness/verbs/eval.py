"""Verbs of CORE scores: eval core, eval compare."""

import json
from dataclasses import asdict
from pathlib import Path

import typer

from harness.errors import UsageError
from harness.options import (
    Cap,
    CheckpointFolder,
    Json,
    OptionalRun,
    Out,
    Records,
    Scored,
    Tasks,
)
from harness.terminal import answer, become
from harness.verbs.run import find

evals = typer.Typer(help="Score checkpoints and compare scores.", rich_markup_mode=None)


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
    place = f"--checkpoint={checkpoint}" if run is None else f"--run={find(run).root}"
    options = {"--cap": cap, "--tasks": tasks, "--out": out, "--records": records}
    given = [f"{name}={value}" for name, value in options.items() if value is not None]
    become("nmoe.evaluate", place, *given, *(["--json"] if as_json else []))


@evals.command("compare")
def eval_compare(first: Scored, second: Scored, *, as_json: Json = False) -> None:
    """Compare the CORE answers of two runs, item by item."""
    from harness import compare, tables

    paths = [
        Path(name) if Path(name).is_file() else find(name).core_items for name in (first, second)
    ]
    comparison = compare.compare(*paths)
    if as_json:
        answer(json.dumps(asdict(comparison)))
    else:
        answer(*tables.comparison_lines(comparison))
