"""Batches of windows: one global order for any number of ranks, and a cursor to resume it exactly.

The stream is cut into windows of seq_len + 1 tokens that do not overlap (the stride of validation).
Each epoch reads every whole window once, in an order that depends on seed and epoch only.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmoe.data.manifest import DataError
from nmoe.data.shards import TokenStream

PREFETCHED_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The next window to read: `index` windows of `epoch` are consumed, over all ranks."""

    epoch: int = 0
    index: int = 0


def epoch_order(num_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the windows, int64 [num_windows], the same on every machine.

    Windows are sorted by a 64-bit mix of their number (splitmix64, Steele et al. 2014): plain
    integer arithmetic, so that no release of a random library can change the order.
    """
    start = _mix(_mix(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    keys = _mix(np.arange(num_windows, dtype=np.uint64) + start)
    return np.argsort(keys, kind="stable")


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Loader:
    """This rank's rows of each global batch, read ahead by a thread.

    The rows of all ranks put together are the global batch: rank r has rows r*b to (r+1)*b, with
    b = batch_size / world. A batch may span an epoch's end; `cursor.epoch` then counts up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        cursor: Cursor | None = None,
    ) -> None:
        """Open the dataset and start reading at `cursor`; DataError when that is impossible."""
        self._stream = TokenStream(folder)
        self.num_windows = count_windows(self._stream, seq_len=seq_len)
        self.cursor = cursor or Cursor()
        if batch_size <= 0 or batch_size % world or not 0 <= rank < world:
            raise DataError(
                f"batch size: got {batch_size} for rank {rank} of {world},"
                " expected a multiple of the ranks."
            )
        if self.cursor.epoch < 0 or not 0 <= self.cursor.index < self.num_windows:
            raise DataError(
                f"cursor does not fit {folder}: got window {self.cursor.index} of epoch"
                f" {self.cursor.epoch}, expected less than {self.num_windows}."
                " Resume with the data of the checkpoint."
            )
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._order = (-1, np.empty(0, dtype=np.int64))
        self._ahead = self.cursor  # of the reading thread: behind the last batch read
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._pending: deque[Future[tuple[np.ndarray, Cursor]]] = deque()
        for _ in range(PREFETCHED_BATCHES):
            self._pending.append(self._thread.submit(self._read))

    def next_batch(self) -> np.ndarray:
        """This rank's rows, int64 [batch_size / world, seq_len + 1]; moves `cursor` behind them.

        What went wrong in the thread is raised here, now and at every later call.
        """
        if not self._pending:
            raise DataError("the loader is closed: no batch can be read.")
        rows, self.cursor = self._pending[0].result()
        self._pending.popleft()
        self._pending.append(self._thread.submit(self._read))
        return rows

    def close(self) -> None:
        """Stop the thread; batches it has read ahead are dropped."""
        self._pending.clear()
        self._thread.shutdown(cancel_futures=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> tuple[np.ndarray, Cursor]:
        numbers, self._ahead = self._take(self._ahead)
        return self._stream.windows(numbers[self._rows], seq_len=self._seq_len), self._ahead

    def _take(self, cursor: Cursor) -> tuple[np.ndarray, Cursor]:
        """Window numbers of the next global batch, and the cursor behind it."""
        parts: list[np.ndarray] = []
        missing, epoch, index = self._batch_size, cursor.epoch, cursor.index
        while missing:
            part = self._epoch(epoch)[index : index + missing]
            parts.append(part)
            missing -= len(part)
            index += len(part)
            if index == self.num_windows:
                epoch, index = epoch + 1, 0
        return np.concatenate(parts), Cursor(epoch=epoch, index=index)

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = epoch_order(self.num_windows, seed=self._seed, epoch=epoch)
            self._order = (epoch, order)
        return self._order[1]


def validation_windows(folder: Path, *, seq_len: int, max_windows: int) -> np.ndarray:
    """The first windows of the stream, at the most `max_windows`, int64 [windows, seq_len + 1]."""
    stream = TokenStream(folder)
    count = min(max_windows, count_windows(stream, seq_len=seq_len))
    return stream.windows(np.arange(count), seq_len=seq_len)


def count_windows(stream: TokenStream, *, seq_len: int) -> int:
    """Whole windows in the stream; DataError when there is none."""
    if len(stream) <= seq_len:
        raise DataError(
            f"dataset is too short: got {len(stream)} tokens in {stream.folder}, expected at"
            f" least {seq_len + 1} for one window. Prepare more text or lower train.seq_len."
        )
    return len(stream) // (seq_len + 1)
