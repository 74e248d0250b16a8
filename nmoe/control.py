"""Requests to stop: the control file, a signal, a lost supervisor; polled at log steps."""

import os
import signal
import threading
from enum import IntEnum
from types import FrameType

from nmoe.paths import RunFolder

ORPHAN_GRACE_S = 8.0
ORPHAN_EXIT_CODE = 143


class StopReason(IntEnum):
    """Why to stop; larger wins when ranks disagree, 0 means go on."""

    NONE = 0
    REQUEST = 1
    SIGNAL = 2
    ORPHANED = 3


class Control:
    """What asks this rank to stop; ranks agree by the maximum of their reasons."""

    def __init__(self, folder: RunFolder, *, supervisor_fd: int | None) -> None:
        """Watch the folder's stop request, SIGTERM and SIGINT, and the supervisor's pipe."""
        self._folder = folder
        self._reason = StopReason.NONE
        self._stopping = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        if supervisor_fd is not None:
            threading.Thread(target=self._watch, args=(supervisor_fd,), daemon=True).start()

    def reason(self) -> StopReason:
        """Why this rank should stop now."""
        if self._reason is StopReason.NONE and self._folder.stop_request.exists():
            return StopReason.REQUEST
        return self._reason

    def acknowledge(self) -> None:
        """The stop is under way: an orphan may take its time to save."""
        self._stopping.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._reason = max(self._reason, StopReason.SIGNAL)

    def _watch(self, supervisor_fd: int) -> None:
        while os.read(supervisor_fd, 1):
            pass
        self._reason = StopReason.ORPHANED
        # a step that never ends must not keep ranks beside a resumed run
        if not self._stopping.wait(ORPHAN_GRACE_S):
            os._exit(ORPHAN_EXIT_CODE)
