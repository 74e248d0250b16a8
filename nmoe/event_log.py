"""The append-only file of a run's events: one writer, whole lines, milestones synced to disk."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from nmoe.events import Event, EventError, Record, decode, encode

FSYNC_KINDS = frozenset({"phase", "val", "ckpt", "core_task", "core", "outcome", "exit", "result"})


class EventLog:
    """Appends records to one file, a whole line per write; the only writer of that file."""

    def __init__(self, path: Path, *, attempt: int) -> None:
        """Open for append after the last whole line; a torn tail is closed off by a newline."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.attempt = attempt
        self._seq = _next_seq(path)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if _has_torn_tail(path):
            os.write(self._fd, b"\n")

    def write(self, event: Event) -> Record:
        """Append one event; milestones are synced to disk before this returns."""
        record = Record(seq=self._seq, time=time.time(), attempt=self.attempt, event=event)
        self._seq += 1
        data = (encode(record) + "\n").encode()
        while data:
            data = data[os.write(self._fd, data) :]
        if event.kind in FSYNC_KINDS:
            os.fsync(self._fd)
        return record

    def close(self) -> None:
        os.close(self._fd)


def read_events(path: Path) -> Iterator[Record]:
    """All readable records of a file in order; broken lines and unknown kinds are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = decode(line)
            except EventError:
                continue
            if record is not None:
                yield record


def _next_seq(path: Path) -> int:
    last = -1
    for record in read_events(path):
        last = max(last, record.seq)
    return last + 1


def _has_torn_tail(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
