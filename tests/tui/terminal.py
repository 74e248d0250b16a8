"""The program in a pseudo-terminal of its own."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence

from tests.conftest import REPO_ROOT

PATIENCE_S = 20.0
SIZES = ("LINES", "COLUMNS")
TUI = (sys.executable, "-m", "tui")


class Terminal:
    """A child on a pty of its own; everything it writes is kept in `output`."""

    def __init__(
        self,
        *args: str,
        program: Sequence[str] = TUI,
        size: tuple[int, int] = (80, 24),
        **environ: str,
    ) -> None:
        self.output = b""
        self.master, slave = pty.openpty()
        columns, lines = size
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        # A size in the environment would hold against every resize.
        inherited = {key: value for key, value in os.environ.items() if key not in SIZES}
        self.child = subprocess.Popen(
            [*program, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=REPO_ROOT,
            env=inherited | {"TERM": "xterm-256color"} | environ,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def read_until(self, *wanted: bytes, poll_s: float = 0.2) -> bytes:
        """Read until all of `wanted` were written."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(each in self.output for each in wanted):
            assert time.monotonic() < deadline, self.output[-2000:]
            self.read(poll_s)
        return self.output

    def read_to_end(self) -> bytes:
        """Read until the child has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while self.child.poll() is None:
            assert time.monotonic() < deadline, self.output[-2000:]
            self.read(0.1)
        while self.read(0.1):
            pass
        return self.output

    def read_for(self, seconds: float) -> None:
        """Read whatever comes in that time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.read(left)

    def read(self, timeout_s: float) -> bool:
        """Read what comes within a time; whether anything came."""
        if not select.select([self.master], [], [], timeout_s)[0]:
            return False
        try:
            chunk = os.read(self.master, 65536)
        except OSError:  # the last writer closed its side
            return False
        self.output += chunk
        return bool(chunk)

    def resize(self, columns: int, lines: int) -> None:
        """As a terminal emulator does it: the new size, and a signal to the session."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.child.send_signal(signal.SIGWINCH)

    def close(self) -> None:
        """Kill the child if it still runs."""
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.master)
