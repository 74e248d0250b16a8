"""Batches of windows: one global order for any number of ranks, and a cursor to resume it exactly.

A dataset is cut into windows of seq_len + 1 tokens that do not overlap (the stride of validation).
Each epoch reads every whole window once, in an order that depends on seed and epoch only. A flow
reads several datasets, each in such an order of its own, and says which of them comes next.
"""

import hashlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from nmoe.data.manifest import DataError
from nmoe.data.shards import TokenStream
from nmoe.flow import Flow

PREFETCHED_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The next window to read: `index` windows of `epoch` are consumed, over all ranks.

    A flow is one epoch: `index` counts the windows since the start of the run.
    """

    epoch: int = 0
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowData:
    """A flow and the dataset folder of each of its sources."""

    flow: Flow
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochBegan:
    """A dataset is read for another time; `source` is its name in a flow, else empty."""

    source: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBegan:
    """A stage of the flow is entered; `index` counts from 0."""

    name: str
    index: int


Began = EpochBegan | StageBegan


def epoch_order(num_windows: int, *, seed: int, epoch: int) -> np.ndarray:
    """A permutation of the windows, int64 [num_windows], the same on every machine.

    Windows are sorted by a 64-bit mix of their number (splitmix64, Steele et al. 2014): plain
    integer arithmetic, so that no release of a random library can change the order.
    """
    start = mix64(mix64(np.array([seed], dtype=np.uint64)) + np.uint64(epoch))
    keys = mix64(np.arange(num_windows, dtype=np.uint64) + start)
    return np.argsort(keys, kind="stable")


def mix64(x: np.ndarray) -> np.ndarray:
    """splitmix64 of each uint64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _Shuffled:
    """One dataset, read epoch after epoch, each in its own order."""

    def __init__(self, folder: Path, *, seq_len: int, seed: int, name: str = "") -> None:
        self.stream = TokenStream(folder)
        self.num_windows = count_windows(self.stream, seq_len=seq_len)
        self._name, self._seed = name, seed
        self._order = (-1, np.empty(0, dtype=np.int64))

    def numbers(self, start: int, count: int) -> np.ndarray:
        """Window numbers of the reads from `start` on, counted since the first epoch."""
        parts = [np.empty(0, dtype=np.int64)]
        while count:
            epoch, index = divmod(start, self.num_windows)
            parts.append(self._epoch(epoch)[index : index + count])
            start += len(parts[-1])
            count -= len(parts[-1])
        return np.concatenate(parts)

    def began(self, start: int, count: int) -> tuple[EpochBegan, ...]:
        """Epochs but the first whose first window is among these reads."""
        first = max(1, -(-start // self.num_windows))
        last = (start + count - 1) // self.num_windows
        return tuple(EpochBegan(source=self._name, epoch=i) for i in range(first, last + 1))

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = epoch_order(self.num_windows, seed=self._seed, epoch=epoch)
            self._order = (epoch, order)
        return self._order[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Where the windows of a global batch lie, int64 [batch] each, and what begins with it."""

    sources: np.ndarray
    numbers: np.ndarray
    began: tuple[Began, ...]
    cursor: Cursor


class _Order(Protocol):
    """Which windows come when: a function of the cursor alone."""

    @property
    def streams(self) -> Sequence[TokenStream]: ...
    @property
    def num_windows(self) -> int: ...

    def is_valid(self, cursor: Cursor) -> bool: ...
    def take(self, cursor: Cursor, count: int) -> _Batch: ...


class _DatasetOrder:
    """Epochs of one dataset without an end."""

    def __init__(self, folder: Path, *, seq_len: int, seed: int) -> None:
        self._dataset = _Shuffled(folder, seq_len=seq_len, seed=seed)
        self.streams: Sequence[TokenStream] = (self._dataset.stream,)
        self.num_windows = self._dataset.num_windows

    def is_valid(self, cursor: Cursor) -> bool:
        return cursor.epoch >= 0 and 0 <= cursor.index < self.num_windows

    def take(self, cursor: Cursor, count: int) -> _Batch:
        start = cursor.epoch * self.num_windows + cursor.index
        epoch, index = divmod(start + count, self.num_windows)
        return _Batch(
            sources=np.zeros(count, dtype=np.int64),
            numbers=self._dataset.numbers(start, count),
            began=self._dataset.began(start, count),
            cursor=Cursor(epoch=epoch, index=index),
        )


class _FlowOrder:
    """The stages of a flow, once; every source keeps its own shuffle and its own place."""

    def __init__(self, data: FlowData, *, seq_len: int, seed: int) -> None:
        flow = self._flow = data.flow
        self._datasets = [
            _Shuffled(
                folder, seq_len=seq_len, seed=source_seed(seed, source.name), name=source.name
            )
            for source, folder in zip(flow.sources, data.folders, strict=True)
        ]
        self.streams: Sequence[TokenStream] = tuple(dataset.stream for dataset in self._datasets)
        self.num_windows = flow.ends[-1]

    def is_valid(self, cursor: Cursor) -> bool:
        return cursor.epoch == 0 and 0 <= cursor.index <= self.num_windows

    def take(self, cursor: Cursor, count: int) -> _Batch:
        start, end = cursor.index, cursor.index + count
        sources = np.array(self._flow.take(start, count), dtype=np.int64)
        if len(sources) < count:
            raise DataError(
                f"the flow is over: got window {end}, expected at most {self.num_windows}."
            )
        numbers = np.empty(count, dtype=np.int64)
        starts = zip([0, *self._flow.ends], self._flow.stages, strict=False)
        began: list[Began] = [
            StageBegan(name=stage.name, index=index)
            for index, (position, stage) in enumerate(starts)
            if start <= position < end
        ]
        for i, done in enumerate(self._flow.consumed(start)):
            rows = sources == i
            reads = int(rows.sum())
            numbers[rows] = self._datasets[i].numbers(done, reads)
            began += self._datasets[i].began(done, reads)
        return _Batch(
            sources=sources, numbers=numbers, began=tuple(began), cursor=Cursor(index=end)
        )


def source_seed(seed: int, name: str) -> int:
    """A source's own seed, so that no two are shuffled alike and none depends on its neighbours."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")


class Loader:
    """This rank's rows of each global batch, read ahead by a thread.

    The rows of all ranks put together are the global batch: rank r has rows r*b to (r+1)*b, with
    b = batch_size / world. A batch may span the end of an epoch or a stage.
    """

    def __init__(
        self,
        data: Path | FlowData,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        cursor: Cursor | None = None,
    ) -> None:
        """Open a dataset folder, or the sources of a flow, and start reading at `cursor`.

        DataError when that is impossible.
        """
        order: _Order = (
            _DatasetOrder(data, seq_len=seq_len, seed=seed)
            if isinstance(data, Path)
            else _FlowOrder(data, seq_len=seq_len, seed=seed)
        )
        self._order, self.num_windows = order, order.num_windows
        self.cursor = cursor or Cursor()
        self.began: tuple[Began, ...] = ()
        if batch_size <= 0 or batch_size % world or not 0 <= rank < world:
            raise DataError(
                f"batch size: got {batch_size} for rank {rank} of {world},"
                " expected a multiple of the ranks."
            )
        if not order.is_valid(self.cursor):
            raise DataError(
                f"cursor does not fit the data: got window {self.cursor.index} of epoch"
                f" {self.cursor.epoch}, expected less than {self.num_windows}."
                " Resume with the data of the checkpoint."
            )
        self._seq_len, self._batch_size = seq_len, batch_size
        self._rows = slice(rank * batch_size // world, (rank + 1) * batch_size // world)
        self._ahead = self.cursor  # of the reading thread: behind the last batch read
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._pending: deque[Future[tuple[np.ndarray, _Batch]]] = deque()
        for _ in range(PREFETCHED_BATCHES):
            self._pending.append(self._thread.submit(self._read))

    def next_batch(self) -> np.ndarray:
        """This rank's rows, int64 [batch_size / world, seq_len + 1].

        Moves `cursor` behind them and sets `began`, the epochs and stages that begin in the global
        batch. What went wrong in the thread is raised here, now and at every later call.
        """
        if not self._pending:
            raise DataError("the loader is closed: no batch can be read.")
        rows, batch = self._pending[0].result()
        self.cursor, self.began = batch.cursor, batch.began
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

    def _read(self) -> tuple[np.ndarray, _Batch]:
        batch = self._order.take(self._ahead, self._batch_size)
        sources, numbers = batch.sources[self._rows], batch.numbers[self._rows]
        streams = self._order.streams
        if len(streams) == 1:
            windows = streams[0].windows(numbers, seq_len=self._seq_len)
        else:
            windows = np.empty((len(numbers), self._seq_len + 1), dtype=np.int64)
            for i, stream in enumerate(streams):
                windows[sources == i] = stream.windows(numbers[sources == i], seq_len=self._seq_len)
        self._ahead = batch.cursor
        return windows, batch


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
