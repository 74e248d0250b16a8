"""Facts about this machine before money is spent: verdict, value, what was expected, the fix."""

from collections.abc import Iterator
from typing import Any

from harness import bundle, hardware, leaderboard, runs
from harness.doctor import container, disk, gpus, host, probe, prospects
from harness.doctor.check import Check
from harness.errors import BoardError
from harness.hardware import Detection
from harness.outlook import outlook
from nmoe.config import Plan
from nmoe.paths import DataRoot

__all__ = ["Check", "examine"]


def examine(
    detection: Detection,
    root: DataRoot,
    *,
    nvml: Any = None,
    preset: str | None = None,
    num_gpus: int | None = None,
    is_quick: bool = False,
) -> Iterator[Check]:
    """Every check for the run of a preset as soon as it is known; what is measured comes last.

    `nvml` is asked about the GPUs, by default this machine's; `is_quick` measures nothing.
    UsageError for a preset that does not exist, or GPUs that it cannot be dealt to.
    """
    is_fake, pace = detection.hardware.is_fake, None
    chosen = prospects.choose(preset, num_gpus, detection, root)
    plan = chosen if isinstance(chosen, Plan) else None
    yield from host.examine(detection)
    yield from gpus.examine(detection, nvml or hardware.library())
    if not is_fake:
        yield from container.examine(plan)
    yield from disk.examine(root, plan)
    yield _bundle(root)
    yield _boards(root)
    yield _runs(root)
    if isinstance(chosen, Check):
        yield chosen
    else:
        found = outlook(chosen, root)
        pace = found.pace
        yield from prospects.examine(prospects.name_of(preset), chosen, found, detection, root)
    if is_fake and not is_quick:
        value = "nothing: the hardware is described by a file"
        yield Check(name="measured", verdict="ok", value=value)
    elif not is_quick:
        yield from disk.examine_speed(root, plan, tok_s=pace.tok_s if pace else None)
        yield from probe.examine(detection)


def _bundle(root: DataRoot) -> Check:
    status = bundle.status(root)
    if status in ("official", "not fetched"):
        return Check(name="eval bundle", verdict="ok", value=status)
    fix = f"For the official one, move {root.bundle(bundle.OFFICIAL)} away and run: n prep eval"
    return Check(name="eval bundle", verdict="note", value=status, expected="official", fix=fix)


def _boards(root: DataRoot) -> Check:
    try:
        boards = leaderboard.boards(root)
    except BoardError as error:
        return Check(name="boards", verdict="problem", value=error.problem, fix=error.fix)
    entries = sum(len(board.entries) for board in boards)
    return Check(name="boards", verdict="ok", value=f"{entries} entries")


def _runs(root: DataRoot) -> Check:
    rows = runs.list_runs(root)
    alive = sum(row.is_alive for row in rows)
    return Check(name="runs", verdict="ok", value=f"{len(rows)}, {alive} alive")
