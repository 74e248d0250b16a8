"""Where a command meets its terminal: what it prints, whether a screen fits, whom it becomes."""

import os
import sys
from typing import NoReturn, TextIO, cast

from nmoe.paths import REPO_ROOT


def safe(value: object) -> str:
    """The value on one line without control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def has_terminal() -> bool:
    """Whether a screen can be drawn and answered to: three terminals, none of them dumb, no CI."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    is_dumb = os.environ.get("TERM", "dumb") == "dumb" or bool(os.environ.get("CI"))
    return not is_dumb and all(stream.isatty() for stream in streams)


def become(module: str, *arguments: str) -> NoReturn:
    """Replace this process by a module of this checkout."""
    sys.stdout.flush()
    paths = filter(None, (str(REPO_ROOT), os.environ.get("PYTHONPATH", "")))
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}
    os.execve(sys.executable, [sys.executable, "-P", "-m", module, *arguments], environ)


def open_streams() -> None:
    """Give a process that was started with closed outputs some that go nowhere."""
    for name in ("stdout", "stderr"):
        if cast(TextIO | None, getattr(sys, name)) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def answer(*lines: str) -> None:
    """Answers on stdout; a reader that left early is no error."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(*lines: str) -> None:
    """Remarks on stderr."""
    for line in lines:
        print(line, file=sys.stderr)


def fail(problem: object, code: int) -> NoReturn:
    """One line on stderr, whatever the problem's text holds, and the exit code."""
    say(f"error: {safe(problem)}")
    sys.exit(code)
