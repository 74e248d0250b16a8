"""What people do with runs later: a note beside one, or the whole of it deleted."""

import os
import shutil
from pathlib import Path

from harness import launch, repeats
from harness.errors import RunError, UsageError
from harness.runs import MAX_NOTE
from nmoe.config import ConfigError, read_plan
from nmoe.paths import DataRoot, RunFolder, write_atomic

# Not the name of a run: a folder that is being deleted is in no list, whatever interrupts it.
_DELETED = ".deleted-"


def write_note(folder: RunFolder, text: str) -> None:
    """Put one line beside a run; an empty one takes the note away. Raises UsageError, RunError."""
    line = " ".join(text.split())
    if len(line) > MAX_NOTE:
        raise UsageError(f"a note has at most {MAX_NOTE} characters, got {len(line)}")
    try:
        if line:
            write_atomic(folder.note, line + "\n")
        else:
            folder.note.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"the note was not written: {folder.note}: {error.strerror}") from None


def size_bytes(folder: RunFolder) -> int:
    """What the files of a run take on the disk, its metrics included."""
    files = (path for top in _tops(folder) for path in top.rglob("*"))
    return sum(path.lstat().st_blocks * 512 for path in files if not path.is_dir())


def delete(folder: RunFolder, root: DataRoot) -> None:
    """Delete a run, its checkpoints and metrics; entries on boards stay.

    RunError for a run that is alive, that a set of repeats needs, or whose files cannot be removed.
    """
    series = _series(folder)
    if series and repeats.exists(series, root):
        raise RunError(
            f"run {folder.run_id} is one of the repeats {series}: without it they prove nothing",
            f"Delete {root.repeats / series}.json first to give up the set.",
        )
    lock = launch.take_run_lock(folder)
    try:
        tops = _tops(folder)
        for top in tops:
            os.rename(top, top.with_name(f"{_DELETED}{top.name}"))
        for top in tops:
            shutil.rmtree(top.with_name(f"{_DELETED}{top.name}"))
            for left in top.parent.glob(f"{_DELETED}*"):  # by a deletion that was interrupted
                shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise RunError(f"not all of {folder.run_id} is deleted: {error}") from None
    finally:
        os.close(lock)


def _tops(folder: RunFolder) -> list[Path]:
    return [top for top in (folder.root, folder.metrics) if top.is_dir()]


def _series(folder: RunFolder) -> str:
    try:
        return read_plan(folder.plan).series or ""
    except ConfigError:
        return ""
