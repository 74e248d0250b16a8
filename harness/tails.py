"""Event files while they grow: what is new in each, and several of them in one order."""

import heapq
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import RunError
from nmoe.event_line import VERSION, EventError
from nmoe.events import Record, decode

READ_BYTES = 1 << 20


class Tail:
    """Reads a file of events as it grows: whole lines once each, in order.

    A line without its newline waits for it. `bad_lines` counts what could not be read; `restarts`
    counts how often the file was replaced or cut, after which reading began anew; `is_behind` says
    that the last read left something.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self.restarts = 0
        self.is_behind = False
        self._inode: int | None = None
        self._offset = 0
        self._seq = -1

    def read(self, max_bytes: int = READ_BYTES) -> list[Record]:
        """What was appended since the last call, `max_bytes` of it or one line if that is longer.

        RunError when a line was written by another version of the format.
        """
        try:
            with self.path.open("rb") as file:
                lines = self._read_lines(file.fileno(), max_bytes)
        except FileNotFoundError:
            return []
        return [record for record in map(self._decode, lines) if record is not None]

    def skip_to_end(self, num_bytes: int) -> None:
        """Begin with the first whole line of the last `num_bytes`; for a tail not read yet."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size > num_bytes:
                    file.seek(size - num_bytes)
                    self._offset = size - num_bytes + len(file.readline())
        except FileNotFoundError:
            return

    def _read_lines(self, fd: int, max_bytes: int) -> list[bytes]:
        info = os.fstat(fd)
        is_replaced = self._inode is not None and info.st_ino != self._inode
        if is_replaced or info.st_size < self._offset:
            self.restarts += 1
            self.bad_lines, self._offset, self._seq = 0, 0, -1
        self._inode = info.st_ino
        data = b""
        while self._offset + len(data) < info.st_size:
            chunk = os.pread(fd, max_bytes, self._offset + len(data))
            if not chunk:
                break
            data += chunk
            if b"\n" in chunk:
                break
        self.is_behind = self._offset + len(data) < info.st_size
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.split(b"\n")[:-1]

    def _decode(self, line: bytes) -> Record | None:
        try:
            record = decode(line)
        except (EventError, RecursionError, TypeError, ValueError) as error:
            version = _version(line)
            if version is not None and version != VERSION:
                raise RunError(
                    f"{self.path} cannot be read: got event version {version}, expected {VERSION}",
                    "Use the version of the code that wrote it.",
                ) from error
            self.bad_lines += 1
            return None
        if record is None or record.seq <= self._seq:
            return None
        self._seq = record.seq
        return record


def _version(line: bytes) -> int | None:
    try:
        version: Any = json.loads(line)["v"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return version if type(version) is int else None


def merge(batches: list[list[Record]]) -> Iterator[Record]:
    """Records of several files by attempt and time, each file in its own order.

    A clock that was set back does not reorder a file: its records count as late as the latest
    one before them.
    """
    return (record for _, record in heapq.merge(*map(placed, batches), key=lambda item: item[0]))


def placed(records: list[Record]) -> Iterator[tuple[tuple[int, float], Record]]:
    """The records of one file, each with its place among those of others."""
    latest = (0, 0.0)
    for record in records:
        latest = max(latest, (record.attempt, record.time))
        yield latest, record
