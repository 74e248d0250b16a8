"""The disk of the data root: access, room, and its speed on one small file that has no name."""

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import dataset, preflight
from harness import format as fmt
from harness.dataset import TOKEN_BYTES
from harness.doctor.check import Check, harmless, judged
from nmoe.config import Plan
from nmoe.paths import DataRoot, existing

FILE_BYTES, CHUNK_BYTES = 64 << 20, 4 << 20
# A slow disk gets a smaller file.
MOST_WRITE_S = 2.0
OTHER_DISK = "Set DATA_DIR to a folder on another disk."


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Bytes a second onto the disk, flushed, and back from it; of a file of so many bytes."""

    write: float
    read: float
    num_bytes: int


def examine(root: DataRoot, plan: Plan | None) -> Iterator[Check]:
    """Access and room, against what the run of `plan` writes."""
    place = existing(root.path)
    value = harmless(f"{root.path} ({root.reason})", most=120)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        fix = "Set DATA_DIR to a folder that this user can write."
        yield Check(name="data root", verdict="problem", value=f"{value}: no access", fix=fix)
        return
    yield Check(name="data root", verdict="ok", value=value)
    free, expected, is_well = shutil.disk_usage(place).free, "", None
    if plan is not None:
        run, data = preflight.disk_bytes(plan), dataset.bytes_to_prepare(plan, root)
        expected = f">= {fmt.bytes_(run + data)} for checkpoints and logs"
        expected += f", {fmt.bytes_(data)} of it for data" if data else ""
        is_well = free >= run + data
    yield judged(
        "free space",
        fmt.bytes_(free),
        expected=expected,
        is_well=is_well,
        fix="Free space there, or set DATA_DIR to another disk.",
        otherwise="problem",
    )


def examine_speed(root: DataRoot, plan: Plan | None, *, tok_s: float | None) -> Iterator[Check]:
    """Reading against what the loader takes, writing against checkpoints, at `tok_s` tokens/s."""
    place = existing(root.path)
    try:
        speed = measure(place)
    except OSError as error:
        value = f"not measured: {error.strerror}"
        yield Check(name="disk speed", verdict="note", value=value, fix=OTHER_DISK)
        return
    size = fmt.bytes_(speed.num_bytes)
    needed = None if tok_s is None else TOKEN_BYTES * tok_s
    yield judged(
        "disk read",
        f"{fmt.bytes_(speed.read)}/s ({size}, dropped from the page cache)",
        expected=""
        if needed is None
        else f">= {fmt.bytes_(needed)}/s, the loader at {fmt.rate(tok_s)} x {TOKEN_BYTES} bytes",
        is_well=None if needed is None else speed.read >= needed,
        fix=OTHER_DISK,
    )
    saving, expected = _saving(plan, tok_s)
    yield judged(
        "disk write",
        f"{fmt.bytes_(speed.write)}/s ({size}, with fsync)",
        expected=expected,
        is_well=None if saving is None else speed.write >= saving,
        fix=f"{OTHER_DISK} Or save less often: --set checkpoint.every=N",
    )


def _saving(plan: Plan | None, tok_s: float | None) -> tuple[float | None, str]:
    """Bytes a second that checkpoints need to be whole before the next one is due, in words too."""
    if plan is None or tok_s is None or not plan.checkpoint.every:
        return None, ""
    tokens = plan.checkpoint.every * plan.train.batch_size * plan.train.seq_len
    size = preflight.checkpoint_bytes(plan)
    rate = size * tok_s / tokens
    every = f"{fmt.bytes_(size)} every {fmt.count(plan.checkpoint.every)} steps"
    return rate, f">= {fmt.bytes_(rate)}/s, a checkpoint of {every}"


def measure(place: Path) -> Speed:
    """Write, flush and read a file; OSError when the disk does not let it.

    It never has a name, or loses it at once, so that nothing is left of a doctor that was killed.
    """
    chunk = secrets.token_bytes(CHUNK_BYTES)  # some file systems keep zeros for nothing
    with tempfile.TemporaryFile(dir=place, prefix=".doctor-", buffering=0) as file:
        began, written = time.monotonic(), 0
        while written < FILE_BYTES and time.monotonic() - began < MOST_WRITE_S:
            written += file.write(chunk)
        os.fsync(file.fileno())
        write_s = time.monotonic() - began
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began, read = time.monotonic(), 0
        while data := file.read(CHUNK_BYTES):
            read += len(data)
        read_s = time.monotonic() - began
    return Speed(write=written / write_s, read=read / read_s, num_bytes=written)
