"""Facts about this machine before money is spent: verdict, value, what was expected, the fix."""

from collections.abc import Iterator
from typing import Any

from harness import bundle, hardware, leaderboard, preflight, runs
from harness.doctor import ceilings, disk, gpus, host, prospects
from harness.doctor.check import Check
from harness.errors import BoardError
from harness.hardware import Detection
from harness.outlook import outlook
from nmoe.paths import DataRoot

__all__ = ["Check", "examine"]


def examine(
    detection: Detection, root: DataRoot, *, nvml: Any = None, is_quick: bool = False
) -> Iterator[Check]:
    """Every check in reading order, each as soon as it is known.

    `nvml` is asked about the GPUs, by default this machine's; quick leaves out what is measured.
    """
    yield from host.examine(detection)
    yield from gpus.examine(detection, nvml or hardware.library())
    yield from disk.examine(root)
    yield _bundle(root)
    yield _boards(root)
    yield _runs(root)
    chosen = prospects.choose(detection, root)
    tok_s, saved = None, None
    if isinstance(chosen, Check):
        yield chosen
    else:
        found = outlook(chosen, root)
        tok_s, saved = found.tok_s, preflight.checkpoint_bytes(chosen)
        yield from prospects.examine(chosen, found, detection, root)
    if not is_quick and not detection.hardware.is_fake:
        yield from disk.examine_speed(root, tok_s=tok_s, checkpoint_bytes=saved)
        yield from ceilings.examine(detection)


def _bundle(root: DataRoot) -> Check:
    status = bundle.status(root)
    if status in ("official", "not fetched"):
        return Check(name="eval bundle", verdict="ok", value=status)
    fix = f"For the official one, move {root.bundle(bundle.OFFICIAL)} away and run: n prep eval"
    return Check(name="eval bundle", verdict="note", value=status, fix=fix)


def _boards(root: DataRoot) -> Check:
    try:
        boards = leaderboard.boards(root)
    except BoardError as error:
        return Check(name="boards", verdict="problem", value=error.problem, fix=error.fix)
    entries = sum(len(board.lines) for board in boards)
    return Check(name="boards", verdict="ok", value=f"{entries} entries")


def _runs(root: DataRoot) -> Check:
    rows = runs.list_runs(root)
    alive = sum(row.is_alive for row in rows)
    return Check(name="runs", verdict="ok", value=f"{len(rows)}, {alive} alive")
