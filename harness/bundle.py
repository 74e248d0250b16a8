"""The eval bundle of a plan: whole, to be written by the run itself, or missing with its source."""

import re
import sys
from pathlib import Path

from harness.errors import Problem
from nmoe.config import Plan
from nmoe.paths import DataRoot, file_digest

POCKET = "pocket_bundle"
OFFICIAL = "eval_bundle"
OFFICIAL_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
DATA_EXIT = 4
# sha256 of the official lists, v1 baselines; equal in all public copies of the bundle.
PINS = {
    "core.yaml": "463f6ae0aa127fbd41fa655f8919e136858f4849eef176922a3be96e102ce7e7",
    "eval_meta_data.csv": "84e279cdc0d836c9ea3a6e55a99102f8ee18f72809fe7aa6ac5a1fe630aa492f",
}
# One per task in core.yaml; a line is enough, so that no YAML parser is loaded for a check.
_TASK_FILE = re.compile(r"^\s*(?:-\s*)?dataset_uri:\s*[\"']?([^\s\"']+)", re.MULTILINE)


def prep_commands(plan: Plan, root: DataRoot) -> tuple[tuple[str, ...], ...]:
    """Commands that write the bundle of this project; one that finds it whole changes nothing."""
    if plan.data.bundle != POCKET:
        return ()
    output = str(root.bundle(POCKET))
    return ((sys.executable, "-m", "nmoe.data.cli", "prep-bundle", "--output", output, "--json"),)


def problems(plan: Plan, root: DataRoot) -> tuple[Problem, ...]:
    """What keeps the run from its evaluation; what it can write itself is no problem."""
    if plan.data.bundle == POCKET:
        return ()
    folder = root.bundle(plan.data.bundle)
    missing = [name for name in PINS if not (folder / name).is_file()] or _missing_tasks(folder)
    if missing:
        return (_missing(folder, missing),)
    if plan.data.bundle != OFFICIAL:
        return ()
    return tuple(
        Problem(
            what=f"{folder / name} is not the official one: got sha256 {found[:12]}…,"
            f" expected {pin[:12]}…",
            fix=f"Unpack {OFFICIAL_URL} there again.",
            exit_code=DATA_EXIT,
        )
        for name, pin in PINS.items()
        if (found := file_digest(folder / name)) != pin
    )


def _missing_tasks(folder: Path) -> list[str]:
    """Files that core.yaml names and that are absent or empty."""
    text = (folder / "core.yaml").read_text(encoding="utf-8", errors="replace")
    names = [f"eval_data/{name}" for name in _TASK_FILE.findall(text)]
    return [name for name in names if not _is_filled(folder / name)]


def _is_filled(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _missing(folder: Path, names: list[str]) -> Problem:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Problem(
        what=f"the eval bundle in {folder} is not whole: {names[0]}{more} missing",
        fix=f"Unpack {OFFICIAL_URL} so that {folder / 'core.yaml'} exists.",
        exit_code=DATA_EXIT,
    )
