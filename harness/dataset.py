"""The dataset of a plan: whole, made by the run itself, or missing with what to put where."""

import shutil
import sys
from pathlib import Path

from harness import format as text
from harness.errors import Problem
from harness.hardware import num_cores
from nmoe.config import Plan
from nmoe.data.manifest import (
    MANIFEST_NAME,
    DataError,
    Manifest,
    read_manifest,
    tokenizer_id,
    verify_sizes,
)
from nmoe.paths import DataRoot, existing

POCKET = "pocket"
SPEEDRUN = "speedrun"
SPLITS = ("train", "val")
DATA_EXIT = 4
DISK_EXIT = 3
WARNING = 0
REPO = "karpathy/fineweb-edu-100b-shuffle"
SPEEDRUN_TOKENS = 10_000_000_000
TOKEN_BYTES = 2
# Files of some 250 million characters in 100 MB, two of which wait to be read at any time.
DOWNLOAD_BYTES = 20_000_000_000
WAITING_BYTES = 200_000_000
# One core of an AMD EPYC, from Parquet file to shard.
TOKENS_PER_CORE_S = 3_000_000


def is_prepared_here(plan: Plan) -> bool:
    """Whether the run makes its data itself: what Python carries, or the speedrun's."""
    if Path(plan.data.data_path).is_absolute():
        return False
    return plan.data.task == POCKET or is_speedrun(plan)


def is_speedrun(plan: Plan) -> bool:
    """Whether the data is that of the speedrun, which several configs share."""
    return plan.data.data_path == SPEEDRUN


def prep_commands(
    plan: Plan, root: DataRoot, *, mirror: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """Commands that bring the dataset to wholeness; one that finds it whole changes nothing."""
    if not is_prepared_here(plan):
        return ()
    folder = root.dataset(plan.data.data_path)
    cli = (sys.executable, "-m", "nmoe.data.cli")
    if is_speedrun(plan):
        if not _absent(folder):
            return ()
        options = () if mirror is None else ("--mirror", mirror)
        return ((*cli, "prep-speedrun", "--output", str(folder), "--json", *options),)
    return tuple(
        (
            *(*cli, "prep", "--source", "stdlib"),
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
    if is_speedrun(plan) and _absent(folder):
        found.append(_to_be_prepared(folder, bytes_to_prepare(plan, root)))
    return tuple(problem for problem in found if problem is not None)


def bytes_to_prepare(plan: Plan, root: DataRoot) -> int:
    """What the run would still write to have the speedrun's data; none of any other."""
    folder = root.dataset(plan.data.data_path)
    if not is_speedrun(plan) or not _absent(folder):
        return 0
    train = folder / "train"
    there = sum(path.stat().st_size for path in train.glob("shard_*")) if train.is_dir() else 0
    return max(0, TOKEN_BYTES * SPEEDRUN_TOKENS - there) + WAITING_BYTES


def _absent(folder: Path) -> list[str]:
    """The splits that have no manifest."""
    return [split for split in SPLITS if not (folder / split / MANIFEST_NAME).exists()]


def _problem(plan: Plan, folder: Path) -> Problem | None:
    try:
        if is_prepared_here(plan) and not is_speedrun(plan):
            return _mismatch(plan, folder, read_manifest(folder)) if folder.exists() else None
        return _mismatch(plan, folder, verify_sizes(folder))
    except DataError as error:
        if not (folder / MANIFEST_NAME).exists():
            return None if is_prepared_here(plan) else _missing(plan, folder)
        fix = f"Move {folder} away and run: n prep data" if is_speedrun(plan) else ""
        return Problem(what=str(error).rstrip("."), fix=fix, exit_code=DATA_EXIT)


def _missing(plan: Plan, folder: Path) -> Problem:
    wanted = f"{plan.data.tokenizer} tokens and their manifest.json"
    return Problem(
        what=f"no dataset in {folder}: manifest.json is missing",
        fix=f"Put there: {wanted}. Or name another folder that holds train and val with --data.",
        exit_code=DATA_EXIT,
    )


def _to_be_prepared(folder: Path, needed: int) -> Problem:
    """What preparing the speedrun's data takes, or why the disk cannot hold it."""
    free = shutil.disk_usage(existing(folder)).free
    if free < needed:
        what = (
            f"the disk of {folder} cannot hold the data: got {text.bytes_(free)} free,"
            f" expected {text.bytes_(needed)}"
        )
        fix = "Free space there, or set DATA_DIR to another disk."
        return Problem(what=what, fix=fix, exit_code=DISK_EXIT)
    share = needed / (TOKEN_BYTES * SPEEDRUN_TOKENS)
    seconds = share * SPEEDRUN_TOKENS / (TOKENS_PER_CORE_S * num_cores())
    what = (
        f"no dataset in {folder}: the run prepares it first, fetches"
        f" {text.bytes_(share * DOWNLOAD_BYTES)} of {REPO}, writes {text.bytes_(needed)},"
        f" and takes at least {text.seconds(seconds)} on {num_cores()} cores; it can be"
        " interrupted"
    )
    fix = "Without a network: n prep data --from FOLDER. From a mirror: --mirror URL."
    return Problem(what=what, fix=fix, exit_code=WARNING)


def _mismatch(plan: Plan, folder: Path, manifest: Manifest) -> Problem | None:
    if manifest.tokenizer != tokenizer_id(plan.data.tokenizer):
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
