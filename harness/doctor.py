"""Facts about this machine and installation, each with a verdict and a fix; without torch."""

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from typing import Literal

from harness import bundle, leaderboard, plan, preflight, runs
from harness import format as text
from harness.errors import BoardError, HarnessError
from harness.hardware import Detection
from nmoe.config import ConfigError
from nmoe.paths import DataRoot, code_version, existing

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One fact: `fix` says what to do unless all is well."""

    name: str
    verdict: Verdict
    value: str
    fix: str = ""


def examine(detection: Detection, root: DataRoot) -> tuple[Check, ...]:
    """Every check in reading order."""
    return (
        _python(),
        _torch(),
        _code(),
        Check(
            name="cpu",
            verdict="ok",
            value=f"{detection.hardware.cpu}, {detection.hardware.cores} cores",
        ),
        *_gpus(detection),
        *_root(root),
        _bundle(root),
        _boards(root),
        _runs(root),
        *_default_run(detection, root),
    )


def _python() -> Check:
    return Check(name="python", verdict="ok", value=platform.python_version())


def _torch() -> Check:
    try:
        return Check(name="torch", verdict="ok", value=importlib.metadata.version("torch"))
    except importlib.metadata.PackageNotFoundError:
        fix = "Delete .venv and run ./n again."
        return Check(name="torch", verdict="problem", value="not installed", fix=fix)


def _code() -> Check:
    code = code_version()
    if code.commit is None:
        fix = "Clone the repository with git, so that results name their code."
        return Check(name="code", verdict="note", value="no git commit", fix=fix)
    if code.is_dirty:
        value, fix = f"{code.commit[:12]} with changes", "Commit, so that results name their code."
        return Check(name="code", verdict="note", value=value, fix=fix)
    return Check(name="code", verdict="ok", value=code.commit[:12])


def _gpus(detection: Detection) -> list[Check]:
    checks: list[Check] = []
    for gpu in detection.gpus:
        memory = text.gib(gpu.memory_bytes, decimals=0, none=text.NOT_AVAILABLE)
        value = f"{gpu.product}, {memory}, {gpu.capability or text.NOT_AVAILABLE}"
        checks.append(Check(name=f"gpu {gpu.index}", verdict="ok", value=value))
    driver = detection.hardware.driver
    if driver:
        value = f"{driver}, CUDA {detection.cuda or text.NOT_AVAILABLE}"
        checks.append(Check(name="driver", verdict="ok", value=value))
    for problem in detection.problems:
        checks.append(Check(name="gpu", verdict="note", value=problem.what, fix=problem.fix))
    return checks


def _root(root: DataRoot) -> list[Check]:
    place = existing(root.path)
    value = f"{root.path} ({root.reason})"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        fix = "Set DATA_DIR to a folder that this user can write."
        return [Check(name="data root", verdict="problem", value=f"{value}: no access", fix=fix)]
    free = text.bytes_(shutil.disk_usage(place).free)
    return [
        Check(name="data root", verdict="ok", value=value),
        Check(name="disk", verdict="ok", value=f"{free} free"),
    ]


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
    entries = sum(len(board.entries) for board in boards)
    return Check(name="boards", verdict="ok", value=f"{entries} entries")


def _runs(root: DataRoot) -> Check:
    rows = runs.list_runs(root)
    alive = sum(row.is_alive for row in rows)
    return Check(name="runs", verdict="ok", value=f"{len(rows)}, {alive} alive")


def _default_run(detection: Detection, root: DataRoot) -> list[Check]:
    """What `n speedrun` would do here, and what is in its way."""
    try:
        chosen = plan.resolve(preset=None, detection=detection, root=root)
    except HarnessError as error:
        return [Check(name="n speedrun", verdict="problem", value=error.problem, fix=error.fix)]
    except ConfigError as error:
        return [Check(name="n speedrun", verdict="problem", value=str(error))]
    checks = [Check(name="n speedrun", verdict="ok", value=chosen.choice)]
    for problem in preflight.problems(chosen, detection, root):
        verdict = "problem" if problem.is_blocking else "note"
        checks.append(
            Check(name="n speedrun", verdict=verdict, value=problem.what, fix=problem.fix)
        )
    return checks
