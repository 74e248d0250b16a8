"""A run as it went: its records in order, a clock over them, the state after any of them.

The state is the same fold that the live screens show. Files are read once and nothing is written,
so that a copied folder or one on a read-only disk will do.
"""

from bisect import bisect_right
from pathlib import Path

from harness import runs
from harness.errors import RunError
from harness.run_state import RunState
from nmoe.events import Record
from nmoe.paths import DataRoot, RunFolder

# Idle time, such as that between two attempts, lasts no longer than this.
MAX_GAP_S = 60.0
# A state is kept every so many records, so that a jump back folds no more than that.
KEEP_EVERY = 2000


class Replay:
    """A run folder as a recording; RunError when it is none or was written by another version."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        if not folder.root.is_dir():
            raise RunError(f"no run {folder.run_id} in {folder.root.parent}", "Run: n runs")
        first, self.records = runs.read_all(folder)
        if not self.records:
            raise RunError(f"{folder.root} holds no events to replay", "Run: n runs")
        self._times = _times(self.records)
        self._kept: dict[int, RunState] = {0: first}
        self._last: tuple[int, RunState] = (0, first)

    @property
    def duration_s(self) -> float:
        """Seconds from the first record to the last, idle time shortened."""
        return self._times[-1]

    @property
    def attempts_s(self) -> tuple[float, ...]:
        """When each attempt after the first began, in seconds of the recording."""
        pairs = zip(self.records, self.records[1:], self._times[1:], strict=False)
        return tuple(time for old, new, time in pairs if new.attempt > old.attempt)

    def count_at(self, elapsed_s: float) -> int:
        """How many records there are up to and including `elapsed_s`."""
        return bisect_right(self._times, elapsed_s)

    def now_at(self, elapsed_s: float) -> float:
        """The unix time that it was then."""
        count = max(1, self.count_at(elapsed_s))
        return self.records[count - 1].time + max(0.0, elapsed_s - self._times[count - 1])

    def time_of(self, count: int) -> float:
        """When the first `count` records were there, in seconds of the recording."""
        return self._times[count - 1] if count else 0.0

    def state_at(self, count: int) -> RunState:
        """The fold of the first `count` records."""
        start = max(at for at in self._kept if at <= count)
        state = self._kept[start]
        if start < self._last[0] <= count:
            start, state = self._last
        for at in range(start, count):
            if at % KEEP_EVERY == 0:
                self._kept.setdefault(at, state)
            state = state.apply(self.records[at])
        self._last = (count, state)
        return state


def find(root: DataRoot, name: str) -> RunFolder:
    """The folder of a run by its id, or any folder that `name` is the path of."""
    if "/" in name or name in (".", ".."):
        path = Path(name).expanduser().absolute()
        if not path.is_dir():
            raise RunError(f"no folder {path}", "Name a run folder, or a run of `n runs`.")
        return RunFolder(root=path)
    return runs.find(root, name)


def _times(records: tuple[Record, ...]) -> list[float]:
    """Seconds since the first record; neither a gap nor a clock set back counts in full."""
    times, before = [0.0], records[0].time
    for record in records[1:]:
        times.append(times[-1] + min(MAX_GAP_S, max(0.0, record.time - before)))
        before = record.time
    return times
