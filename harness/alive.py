"""Which runs a process holds: asked of their locks, whatever their files say."""

import fcntl
import json
import os
from pathlib import Path

from nmoe.paths import RUN_ID, DataRoot, RunFolder


def run_folders(root: DataRoot) -> list[RunFolder]:
    """The folders of all runs, in no order."""
    try:
        return [root.run(path.name) for path in root.runs.iterdir() if RUN_ID.fullmatch(path.name)]
    except OSError:
        return []


def is_alive(folder: RunFolder) -> bool:
    """Whether a process of the run holds its lock."""
    return is_held(folder.lock)


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock file."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # Shared, so that two who ask never see each other; a holder has it exclusively.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def newest_alive(root: DataRoot) -> RunFolder | None:
    """The newest run that a process holds, if any."""
    alive = filter(is_alive, run_folders(root))
    return max(alive, key=lambda folder: (_created(folder), folder.run_id), default=None)


def _created(folder: RunFolder) -> str:
    """When its plan was made; "" when that cannot be read."""
    try:
        return str(json.loads(folder.plan.read_bytes())["created"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
