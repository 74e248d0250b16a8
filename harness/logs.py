"""What the processes of a run printed, read from the end and followed: bounded, never parsed.

Files of any size, of any bytes: only the last part of each is read, and only so many lines kept.
"""

import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from nmoe.paths import RunFolder

Level: TypeAlias = Literal["info", "warning", "error"]
MAX_LINES = 2000
FIRST_BYTES = 256 * 1024  # of the end of a file that is opened
READ_BYTES = 256 * 1024  # at a time from then on
MAX_WIDTH = 2000  # characters of a line
_ERROR = re.compile(
    r"\b(?:\w*[a-z](?:Error|Exception)|(?i:errors?|exception|traceback|fail(?:ed|ure)?|fatal|killed"
    r"|abort(?:ed)?|segfault|panic|diverged|collapsed?))\b|(?i:out of memory)"
)
_WARNING = re.compile(r"\b\w*warn(ing)?\b|deprecat|\bretry(ing)?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line and its number in its source; `time` is unix seconds where it is known."""

    number: int
    text: str
    level: Level
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """The newest lines of one source; `is_cut` when there were earlier ones."""

    name: str
    lines: tuple[Line, ...] = ()
    is_cut: bool = False

    @property
    def num_errors(self) -> int:
        return sum(line.level == "error" for line in self.lines)


def level(text: str) -> Level:
    """How a line sounds."""
    if _ERROR.search(text):
        return "error"
    return "warning" if _WARNING.search(text) else "info"


class LogReader:
    """Follows all logs of a run; each `read` takes a bounded part of what is new."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.logs
        self._files: dict[str, _File] = {}

    def read(self) -> tuple[Log, ...]:
        """The logs in the order of their names, ranks by number."""
        for path in self._paths():
            self._files.setdefault(path.stem, _File(path))
        return tuple(self._files[name].read() for name in sorted(self._files, key=_order))

    def _paths(self) -> list[Path]:
        try:
            return list(self._folder.glob("*.log"))
        except OSError:
            return []


class _File:
    """One file: where reading stands, and the lines that are kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode: int = -1
        self._offset = 0
        self._rest = b""
        self._count = 0
        self._is_cut = False
        self._lines: deque[Line] = deque(maxlen=MAX_LINES)
        self._log = Log(name=path.stem)

    def read(self) -> Log:
        """What is kept after the next part; a file that went away stays as it was."""
        try:
            with self._path.open("rb") as file:
                data = self._next(file.fileno())
        except OSError:
            return self._log
        if data or self._log.is_cut != self._is_cut:
            self._take(data)
            self._log = Log(
                name=self._path.stem,
                lines=tuple(self._lines),
                is_cut=self._is_cut or self._count > len(self._lines),
            )
        return self._log

    def _next(self, fd: int) -> bytes:
        info = os.fstat(fd)
        if info.st_ino != self._inode or info.st_size < self._offset:
            self._inode, self._rest = info.st_ino, b""
            self._lines.clear()
            self._offset = max(0, info.st_size - FIRST_BYTES)
            self._is_cut = self._offset > 0
            data = os.pread(fd, FIRST_BYTES, self._offset)
            self._offset += len(data)
            return data.partition(b"\n")[2] if self._is_cut else data
        data = os.pread(fd, READ_BYTES, self._offset)
        self._offset += len(data)
        return data

    def _take(self, data: bytes) -> None:
        """Keep the whole lines; the rest waits for its newline unless it is too long for one."""
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > 4 * MAX_WIDTH:
            whole.append(self._rest)
            self._rest = b""
        for raw in whole:
            # What a progress bar drew over is not shown, only its last state.
            text = raw.rstrip(b"\r").rpartition(b"\r")[2][: 4 * MAX_WIDTH]
            shown = text.decode("utf-8", errors="replace")[:MAX_WIDTH]
            self._lines.append(Line(number=self._count, text=shown, level=level(shown)))
            self._count += 1


def _order(name: str) -> tuple[int, int, str]:
    """Ranks by number, behind everything else."""
    digits = name.removeprefix("rank")
    is_rank = digits != name and digits.isdigit()
    return (1, int(digits), "") if is_rank else (0, 0, name)
