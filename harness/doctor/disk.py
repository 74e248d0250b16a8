"""The disk of the data root: room, and its speed on one small file that nobody sees."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import format as fmt
from harness.doctor.check import Check, judged
from nmoe.paths import DataRoot, existing

FILE_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
TOKEN_BYTES = 2  # of a shard
MOST_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Bytes a second onto the disk, flushed, and back from it past the page cache."""

    write: float
    read: float


def examine(root: DataRoot) -> Iterator[Check]:
    """Access and room."""
    place = existing(root.path)
    value = f"{root.path} ({root.reason})"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        fix = "Set DATA_DIR to a folder that this user can write."
        yield Check(name="data root", verdict="problem", value=f"{value}: no access", fix=fix)
        return
    yield Check(name="data root", verdict="ok", value=value)
    free = fmt.bytes_(shutil.disk_usage(place).free)
    yield Check(name="disk", verdict="ok", value=f"{free} free")


def examine_speed(
    root: DataRoot, *, tok_s: float | None, checkpoint_bytes: int | None
) -> Iterator[Check]:
    """Reading against what the loader takes at `tok_s`; what a checkpoint takes to write."""
    place = existing(root.path)
    try:
        speed = measure(place)
    except OSError as error:
        value = f"not measured: {error.strerror}"
        yield Check(name="disk speed", verdict="note", value=value, fix="See the data root above.")
        return
    needed = None if tok_s is None else TOKEN_BYTES * tok_s
    yield judged(
        "disk read",
        f"{fmt.bytes_(speed.read)}/s",
        f">= {fmt.bytes_(needed)}/s, what the loader takes",
        "Set DATA_DIR to a faster disk.",
        is_well=None if needed is None else speed.read >= needed,
    )
    value = f"{fmt.bytes_(speed.write)}/s"
    if checkpoint_bytes is not None:
        saving = fmt.fixed(checkpoint_bytes / speed.write, decimals=2, unit="s")
        value += f": {fmt.bytes_(checkpoint_bytes)} of a checkpoint in {saving}, beside training"
    yield Check(name="disk write", verdict="ok", value=value)


def measure(place: Path) -> Speed:
    """Write, flush and read one file without a name; OSError when the disk does not let it."""
    chunk = secrets.token_bytes(CHUNK_BYTES)  # some file systems keep zeros for nothing
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        began, written = time.perf_counter(), 0
        while written < FILE_BYTES and time.perf_counter() - began < MOST_S:
            written += file.write(chunk)
        os.fsync(file.fileno())
        write_s = time.perf_counter() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began, read = time.perf_counter(), 0
        while data := file.read(CHUNK_BYTES):
            read += len(data)
        read_s = time.perf_counter() - began
    return Speed(write=written / write_s, read=read / read_s)
