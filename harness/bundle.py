"""The eval bundle of a plan: whole, to be written or fetched by the run itself, or missing.

A bundle appears in its folder by one rename, with its record: what an interrupted preparation left
is never taken for a bundle.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from harness import format as text
from harness.archive import unpack, unpacked_bytes
from harness.download import Progress, download
from harness.errors import DataError, MachineError, Problem, UsageError
from harness.pins import (
    ARCHIVE_PIN,
    OFFICIAL_URL,
    PINS,
    RECORD,
    BundleRecord,
    make_record,
    missing_files,
    read_record,
    write_record,
)
from nmoe.config import Plan
from nmoe.paths import DataRoot, file_digest, fsync_dir

POCKET = "pocket_bundle"
OFFICIAL = "eval_bundle"
DATA_EXIT = 4
WARNING = 0
# The official archive has 26 MB, and 161 MB unpacked.
MAX_ARCHIVE_BYTES = 256 << 20
OFFICIAL_BYTES = (26 + 161) * 10**6
# Left free beyond what a bundle needs: the records, the folders, the other files of a run.
SPARE_BYTES = 16 << 20


def prep_commands(
    plan: Plan, root: DataRoot, *, mirror: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """Commands that bring the bundle to wholeness; one that finds it whole changes nothing."""
    if plan.data.bundle == POCKET:
        output = str(root.bundle(POCKET))
        command = (sys.executable, "-m", "nmoe.data.cli", "prep-bundle", "--output", output)
        return ((*command, "--json"),)
    if plan.data.bundle == OFFICIAL and not root.bundle(OFFICIAL).exists():
        options = () if mirror is None else ("--mirror", mirror)
        return ((sys.executable, "-m", "harness.prep", "--json", *options),)
    return ()


def problems(plan: Plan, root: DataRoot) -> tuple[Problem, ...]:
    """What keeps the run from its evaluation; what it can make or fetch itself only warns."""
    if plan.data.bundle == POCKET:
        return ()
    folder = root.bundle(plan.data.bundle)
    if plan.data.bundle == OFFICIAL and not folder.exists():
        return (_to_be_fetched(folder),)
    missing = missing_files(folder) or _damaged(folder)
    if missing:
        return (_missing(folder, missing, is_official=plan.data.bundle == OFFICIAL),)
    if plan.data.bundle != OFFICIAL:
        return ()
    record = read_record(folder)
    if record is not None and not record.is_official:
        return (_custom(folder, record),)
    recorded = {name: digest for name, (_, digest) in record.files.items()} if record else {}
    changed = tuple(
        Problem(
            what=f"{folder / name} is not the official one: got sha256 {found[:12]}…,"
            f" expected {pin[:12]}…",
            fix="Move the folder away and run: n prep eval",
            exit_code=DATA_EXIT,
        )
        for name, pin in (recorded | PINS).items()
        if (found := file_digest(folder / name)) != pin
    )
    return changed or (() if record else (_by_hand(folder),))


def status(root: DataRoot) -> str:
    """What the official bundle's folder holds, in a phrase."""
    folder = root.bundle(OFFICIAL)
    if not folder.exists():
        return "not fetched"
    if missing_files(folder) or _damaged(folder):
        return "not whole"
    record = read_record(folder)
    return record.status if record else "unpacked by hand"


def _damaged(folder: Path) -> list[str]:
    """Files whose size is no longer the recorded one."""
    record = read_record(folder)
    files = record.files if record else {}
    return [name for name, (size, _) in files.items() if _size(folder / name) != size]


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _missing(folder: Path, names: list[str], *, is_official: bool) -> Problem:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    fix = f"Put a bundle there, so that {folder / 'core.yaml'} exists."
    return Problem(
        what=f"the eval bundle in {folder} is not whole: {names[0]}{more} missing or cut",
        fix="Run: n prep eval" if is_official else fix,
        exit_code=DATA_EXIT,
    )


def _to_be_fetched(folder: Path) -> Problem:
    return Problem(
        what=f"no eval bundle in {folder}: the run fetches 26 MB from {OFFICIAL_URL}",
        fix="Without a network, fetch that elsewhere, then: n prep eval --from FILE",
        exit_code=WARNING,
    )


def _by_hand(folder: Path) -> Problem:
    return Problem(
        what=f"the eval bundle in {folder} was unpacked by hand: scored, never official",
        fix="For the official one, move the folder away and run: n prep eval",
        exit_code=WARNING,
    )


def _custom(folder: Path, record: BundleRecord) -> Problem:
    return Problem(
        what=f"the eval bundle in {folder} is {record.status}: scored, never official",
        fix="For the official one, move the folder away and run: n prep eval",
        exit_code=WARNING,
    )


def install(
    root: DataRoot, *, archive: Path | None = None, mirror: str | None = None
) -> Generator[Progress, None, BundleRecord | None]:
    """Bring the bundle `eval_bundle` into the data root, as progress; returns its record.

    Without `archive` it is downloaded, from `mirror` instead of its home when that base URL is
    given, and must be the official one; a whole bundle is then left as it is. Raises DataError,
    UsageError, and MachineError when the disk refuses.
    """
    folder = root.bundle(OFFICIAL)
    url = _url(mirror)
    try:
        with _alone(folder):
            if archive is not None:
                return (yield from _replace(folder, archive, source=str(archive.absolute())))
            if folder.exists() and not (missing_files(folder) or _damaged(folder)):
                return read_record(folder)
            _check_only_ours(folder)
            _check_space(folder, OFFICIAL_BYTES)
            fetched = folder.with_name(f"{OFFICIAL}.zip")
            was_there = yield from _fetch(url, fetched)
            record = yield from _replace(folder, fetched, source=url)
            if not was_there:
                fetched.unlink()
            return record
    except OSError as error:
        raise MachineError(
            f"cannot write the eval bundle {folder}: {error.strerror or error}",
            "Free space or fix the permissions there, or name another folder with DATA_DIR.",
        ) from None


def _url(mirror: str | None) -> str:
    if mirror is None:
        return OFFICIAL_URL
    if urlsplit(mirror).scheme not in ("http", "https"):
        raise UsageError(f"got --mirror {mirror!r}, expected http://… or https://…")
    return f"{mirror.rstrip('/')}/{OFFICIAL_URL.rpartition('/')[2]}"


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """One process at a time prepares a folder; others wait and then find it whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(folder.with_name(f".{folder.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        if not folder.exists() and _old(folder).exists():
            _old(folder).rename(folder)  # killed while it was about to be replaced
        yield
    finally:
        os.close(fd)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _fetch(url: str, path: Path) -> Generator[Progress, None, bool]:
    """The official archive at `path`; returns whether somebody had put it there before."""
    if not path.exists():
        yield from download(
            url,
            path,
            sha256=ARCHIVE_PIN,
            max_bytes=MAX_ARCHIVE_BYTES,
            label=f"{OFFICIAL}/download",
        )
        return False
    found = file_digest(path)
    if found != ARCHIVE_PIN:
        raise DataError(
            f"{path} is another file: got sha256 {found[:12]}…, expected {ARCHIVE_PIN[:12]}…",
            f"Delete it to download {url}, or use it all the same: n prep eval --from {path}",
        )
    return True


def _replace(
    folder: Path, archive: Path, *, source: str
) -> Generator[Progress, None, BundleRecord]:
    """Unpack beside the folder, check, record, and rename into place."""
    if not archive.is_file():
        raise DataError(f"no file {archive}", "Name a zip or tar of the bundle after --from.")
    digest = file_digest(archive)
    _check_only_ours(folder)
    temporary, old = folder.with_name(f".{folder.name}.new"), _old(folder)
    _remove(temporary)
    _check_space(folder, unpacked_bytes(archive))
    try:
        yield from unpack(archive, temporary, label=f"{OFFICIAL}/unpack")
        inner = _bundle_inside(temporary, archive)
        (inner / RECORD).unlink(missing_ok=True)
        record = make_record(inner, source=source, archive_sha256=digest)
        write_record(inner, record)
        _remove(old)
        if folder.exists():
            folder.rename(old)
        inner.rename(folder)
        fsync_dir(folder.parent)
        _remove(old)
    finally:
        _remove(temporary)
    return record


def _check_space(folder: Path, needed: int) -> None:
    """MachineError unless the disk of `folder` has `needed` bytes free and some to spare."""
    free = shutil.disk_usage(folder.parent).free
    if free < needed + SPARE_BYTES:
        raise MachineError(
            f"no room for the eval bundle in {folder.parent}: got {text.bytes_(free)} free,"
            f" expected {text.bytes_(needed + SPARE_BYTES)}",
            "Free space there, or name a folder on another disk with DATA_DIR.",
        )


def _bundle_inside(folder: Path, archive: Path) -> Path:
    """The folder with core.yaml: what was unpacked, or one folder in it."""
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    inner = next((path for path in candidates if (path / "core.yaml").is_file()), folder)
    missing = missing_files(inner)
    if missing:
        raise DataError(
            f"{archive} holds no whole eval bundle: {missing[0]} is missing or empty",
            "Use an archive with core.yaml, eval_meta_data.csv and eval_data.",
        )
    return inner


def _check_only_ours(folder: Path) -> None:
    """Refuse to replace what nobody could bring back: anything but a bundle or its remains."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise DataError(f"{folder} is no folder of this program", "Move it away.")
    is_bundle = (folder / "core.yaml").is_file() or (folder / RECORD).is_file()
    if folder.exists() and any(folder.iterdir()) and not is_bundle:
        raise DataError(f"{folder} holds other files than an eval bundle", "Move it away.")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
