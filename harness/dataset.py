"""The dataset of a plan: whole, made by the run itself, or missing with what to put where."""

import sys
from pathlib import Path

from harness.errors import Problem
from nmoe.config import Plan
from nmoe.data.manifest import DataError, Manifest, read_manifest, verify_sizes
from nmoe.paths import DataRoot

POCKET = "pocket"
SPLITS = ("train", "val")
DATA_EXIT = 4
# What belongs into the folder of an official task, by task.
CANONICAL = {
    "fineweb-edu": (
        "GPT-2 tokens of karpathy/fineweb-edu-100b-shuffle: 10B tokens of all files but the last in"
        " train, at least 10,490,880 tokens of shard_01822.parquet in val"
    )
}


def is_prepared_here(plan: Plan) -> bool:
    """Whether the run makes its data itself: text that every Python installation carries."""
    return plan.data.task == POCKET and not Path(plan.data.data_path).is_absolute()


def prep_commands(plan: Plan, root: DataRoot) -> tuple[tuple[str, ...], ...]:
    """Commands that bring the dataset to wholeness; one that finds it whole changes nothing."""
    if not is_prepared_here(plan):
        return ()
    folder = root.dataset(plan.data.data_path)
    return tuple(
        (
            *(sys.executable, "-m", "nmoe.data.cli", "prep", "--source", "stdlib"),
            *("--dataset", split, "--tokenizer", plan.data.tokenizer),
            *("--output", str(folder / split), "--name", f"{POCKET}-{split}", "--json"),
        )
        for split in SPLITS
    )


def problems(plan: Plan, root: DataRoot) -> tuple[Problem, ...]:
    """What keeps the run from its data; what it can prepare itself is no problem."""
    folder = root.dataset(plan.data.data_path)
    # The sources of a flow were found whole when it was made.
    splits = SPLITS if plan.flow is None else SPLITS[1:]
    found = [_problem(plan, folder / split) for split in splits]
    return tuple(problem for problem in found if problem is not None)


def _problem(plan: Plan, folder: Path) -> Problem | None:
    try:
        if is_prepared_here(plan):
            return _mismatch(plan, folder, read_manifest(folder)) if folder.exists() else None
        return _mismatch(plan, folder, verify_sizes(folder))
    except DataError as error:
        if not (folder / "manifest.json").exists():
            return None if is_prepared_here(plan) else _missing(plan, folder)
        return Problem(what=str(error).rstrip("."), exit_code=DATA_EXIT)


def _missing(plan: Plan, folder: Path) -> Problem:
    wanted = CANONICAL.get(plan.data.task, f"{plan.data.tokenizer} tokens and their manifest.json")
    return Problem(
        what=f"no dataset in {folder}: manifest.json is missing",
        fix=f"Put there: {wanted}. Or name another folder that holds train and val with --data.",
        exit_code=DATA_EXIT,
    )


def _mismatch(plan: Plan, folder: Path, manifest: Manifest) -> Problem | None:
    if manifest.tokenizer != plan.data.tokenizer:
        return Problem(
            what=(
                f"{folder} holds tokens of another kind: got {manifest.tokenizer},"
                f" expected {plan.data.tokenizer}"
            ),
            fix="Name another folder with --data, or set data.tokenizer.",
            exit_code=DATA_EXIT,
        )
    window = plan.train.seq_len + 1
    if manifest.total_tokens < window:
        return Problem(
            what=f"{folder} is too short: got {manifest.total_tokens} tokens, expected {window}",
            fix="Prepare more text.",
            exit_code=DATA_EXIT,
        )
    return None
