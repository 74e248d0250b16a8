"""The loader: each window once an epoch, the same order for any number of ranks, exact resume."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.data.loader import (
    PREFETCHED_BATCHES,
    Cursor,
    EpochBegan,
    FlowData,
    Loader,
    StageBegan,
    epoch_order,
    source_seed,
    validation_windows,
)
from nmoe.data.manifest import DataError
from nmoe.data.shards import TokenStream
from nmoe.flow import Flow, FlowSource, Stage
from nmoe.paths import REPO_ROOT
from tests.data.datasets import write_counting

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 8)


def read(loader: Loader, batches: int) -> np.ndarray:
    with loader:
        return np.concatenate([loader.next_batch() for _ in range(batches)])


def numbers(rows: np.ndarray) -> list[int]:
    """Which windows these rows of a counting dataset are; each must be whole."""
    width = rows.shape[1]
    assert np.array_equal(rows, rows[:, :1] + np.arange(width))
    assert not np.any(rows[:, 0] % width)
    return (rows[:, 0] // width).tolist()


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, seq_len=st.integers(1, 7), batch_size=st.integers(1, 9))
def test_every_epoch_reads_every_window_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seq_len: int, batch_size: int
) -> None:
    folder = write_counting(tmp_path_factory.mktemp("set"), sizes)
    count = sum(sizes) // (seq_len + 1)
    loader = Loader(folder, seq_len=seq_len, batch_size=batch_size, seed=1)

    rows = read(loader, -(-3 * count // batch_size))

    assert loader.num_windows == count
    found = numbers(rows)
    for epoch in range(3):
        assert sorted(found[epoch * count : (epoch + 1) * count]) == list(range(count))


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 2**40), batches=st.integers(1, 6))
def test_ranks_share_the_global_batch_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, batches: int
) -> None:
    folder = write_counting(tmp_path_factory.mktemp("set"), sizes)
    alone = read(Loader(folder, seq_len=3, batch_size=8, seed=seed), batches).reshape(-1, 8, 4)

    for world in (2, 4):
        parts = [
            read(
                Loader(folder, seq_len=3, batch_size=8, seed=seed, rank=rank, world=world), batches
            ).reshape(batches, 8 // world, 4)
            for rank in range(world)
        ]
        assert np.array_equal(np.concatenate(parts, axis=1), alone)


@settings(max_examples=40, deadline=None)
@given(sizes=SIZES, done=st.integers(0, 12), batch_size=st.integers(1, 7))
def test_resume_at_any_point_equals_the_uninterrupted_run(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], done: int, batch_size: int
) -> None:
    folder = write_counting(tmp_path_factory.mktemp("set"), sizes)
    whole = read(Loader(folder, seq_len=3, batch_size=batch_size, seed=5), done + 5)
    first = Loader(folder, seq_len=3, batch_size=batch_size, seed=5)
    for _ in range(done):
        first.next_batch()
    first.close()

    second = Loader(folder, seq_len=3, batch_size=batch_size, seed=5, cursor=first.cursor)

    assert np.array_equal(read(second, 5), whole[done * batch_size :])


def test_cursor_counts_what_was_consumed_and_shows_the_wrap(tmp_path: Path) -> None:
    folder = write_counting(tmp_path, [40])  # ten windows of four tokens
    with Loader(folder, seq_len=3, batch_size=4, seed=0) as loader:
        cursors = [loader.cursor]
        for _ in range(5):
            loader.next_batch()
            cursors.append(loader.cursor)

    assert [(c.epoch, c.index) for c in cursors] == [(0, 0), (0, 4), (0, 8), (1, 2), (1, 6), (2, 0)]


def test_epochs_are_told_with_the_batch_that_begins_them(tmp_path: Path) -> None:
    folder = write_counting(tmp_path, [40])  # ten windows of four tokens
    with Loader(folder, seq_len=3, batch_size=4, seed=0) as loader:
        told = []
        for _ in range(6):
            loader.next_batch()
            told.append([each.epoch for each in loader.began if isinstance(each, EpochBegan)])

    assert told == [[], [], [1], [], [], [2]]
    with Loader(folder, seq_len=3, batch_size=25, seed=0) as loader:
        loader.next_batch()
        assert loader.began == (EpochBegan(source="", epoch=1), EpochBegan(source="", epoch=2))


def test_order_differs_between_seeds_and_epochs_and_is_the_same_everywhere() -> None:
    first = epoch_order(1000, seed=1, epoch=0)

    assert not np.array_equal(first, epoch_order(1000, seed=2, epoch=0))
    assert not np.array_equal(first, epoch_order(1000, seed=1, epoch=1))
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.1
    # A changed order makes every checkpoint resume wrongly: these numbers are part of the format.
    assert epoch_order(8, seed=1337, epoch=0).tolist() == [4, 7, 5, 0, 2, 6, 1, 3]


def test_batches_are_int64_of_one_more_than_the_sequence(tmp_path: Path) -> None:
    with Loader(write_counting(tmp_path, [64]), seq_len=7, batch_size=2, seed=0) as loader:
        batch = loader.next_batch()

    assert batch.dtype == np.int64
    assert batch.shape == (2, 8)


def test_loader_reads_only_a_few_batches_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    windows = TokenStream.windows

    def counted(stream: TokenStream, numbers: np.ndarray, *, seq_len: int) -> np.ndarray:
        reads.append(len(numbers))
        return windows(stream, numbers, seq_len=seq_len)

    monkeypatch.setattr(TokenStream, "windows", counted)
    folder = write_counting(tmp_path, [4000])

    read(Loader(folder, seq_len=3, batch_size=2, seed=0), 3)

    assert 3 <= len(reads) <= 3 + PREFETCHED_BATCHES


def test_close_ends_the_thread_and_forbids_reading(tmp_path: Path) -> None:
    before = threading.active_count()
    loader = Loader(write_counting(tmp_path, [4000]), seq_len=3, batch_size=1, seed=0)
    loader.next_batch()
    assert threading.active_count() == before + 1

    loader.close()
    loader.close()

    assert threading.active_count() == before
    with pytest.raises(DataError, match="closed"):
        loader.next_batch()


def test_failure_of_the_thread_is_raised_at_every_call(tmp_path: Path) -> None:
    folder = write_counting(tmp_path, [40], vocab_size=39)  # token 39 is in the last window

    with Loader(folder, seq_len=3, batch_size=10, seed=0) as loader:
        for _ in range(2):
            with pytest.raises(DataError, match="corrupt data"):
                loader.next_batch()
        assert loader.cursor == Cursor()


def test_process_ends_when_the_loader_was_never_closed(tmp_path: Path) -> None:
    folder = write_counting(tmp_path, [400])
    program = (
        "import sys\nfrom pathlib import Path\nfrom nmoe.data.loader import Loader\n"
        "loader = Loader(Path(sys.argv[1]), seq_len=3, batch_size=2, seed=0)\n"
        "loader.next_batch()\nraise SystemExit(7)\n"
    )

    child = subprocess.run(
        [sys.executable, "-c", program, str(folder)], cwd=REPO_ROOT, timeout=60, check=False
    )

    assert child.returncode == 7


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"seq_len": 40}, "too short: got 40 tokens"),
        ({"batch_size": 0}, "batch size: got 0"),
        ({"batch_size": 3, "world": 2}, "got 3 for rank 0 of 2"),
        ({"rank": 2, "world": 2}, "rank 2 of 2"),
        ({"cursor": Cursor(epoch=0, index=10)}, "window 10 of epoch 0, expected less than 10"),
        ({"cursor": Cursor(epoch=-1, index=0)}, "epoch -1"),
    ],
)
def test_loader_is_refused_when_it_cannot_work(
    tmp_path: Path, settings_: dict, message: str
) -> None:
    folder = write_counting(tmp_path, [25, 15])

    with pytest.raises(DataError, match=message):
        Loader(folder, **{"seq_len": 3, "batch_size": 2, "seed": 0, **settings_})


def test_loader_and_validation_are_refused_when_the_dataset_is_damaged(tmp_path: Path) -> None:
    folder = write_counting(tmp_path, [25, 15])
    (folder / "shard_00001.npy").unlink()

    with pytest.raises(DataError, match="missing"):
        Loader(folder, seq_len=3, batch_size=2, seed=0)
    with pytest.raises(DataError, match="missing"):
        validation_windows(folder, seq_len=3, max_windows=1)


@given(sizes=SIZES, seq_len=st.integers(1, 7), max_windows=st.integers(1, 100))
@settings(max_examples=40, deadline=None)
def test_validation_takes_the_first_whole_windows_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seq_len: int, max_windows: int
) -> None:
    folder = write_counting(tmp_path_factory.mktemp("set"), sizes)

    windows = validation_windows(folder, seq_len=seq_len, max_windows=max_windows)

    count = min(max_windows, sum(sizes) // (seq_len + 1))
    assert windows.ravel().tolist() == list(range(count * (seq_len + 1)))
    assert windows.shape == (count, seq_len + 1)


def test_validation_is_refused_when_there_is_no_whole_window(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too short"):
        validation_windows(write_counting(tmp_path, [8]), seq_len=8, max_windows=4)


STEP = 10_000  # the first token of source i is i * STEP
STAGES = st.lists(st.tuples(*[st.integers(0, 12)] * 3).filter(any), min_size=1, max_size=4)


def write_flow(folder: Path, sizes: list[list[int]], stages: list[tuple[int, ...]]) -> FlowData:
    """Counting datasets and a flow over them with these quotas."""
    folders = [
        write_counting(folder / f"s{i}", size, first=i * STEP) for i, size in enumerate(sizes)
    ]
    sources = tuple(
        FlowSource(name=each.name, path=str(each), digest="", windows=1) for each in folders
    )
    flow = Flow(
        profile="test",
        sources=sources,
        stages=tuple(Stage(name=f"t{i}", quotas=each) for i, each in enumerate(stages)),
        digest="",
    )
    return FlowData(flow=flow, folders=tuple(folders))


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(SIZES, min_size=3, max_size=3), stages=STAGES)
def test_flow_reads_every_source_in_its_own_order_by_the_quotas(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[list[int]],
    stages: list[tuple[int, ...]],
) -> None:
    data = write_flow(tmp_path_factory.mktemp("flow"), sizes, stages)
    count = data.flow.ends[-1]

    rows = read(Loader(data, seq_len=3, batch_size=1, seed=9), count)

    sources = rows[:, 0] // STEP
    for stage, start in zip(data.flow.stages, [0, *data.flow.ends], strict=False):
        here = sources[start : start + stage.num_windows]
        assert [int((here == i).sum()) for i in range(3)] == list(stage.quotas)
    for i, source in enumerate(data.flow.sources):
        mine = numbers(rows[sources == i] - i * STEP)
        alone = Loader(data.folders[i], seq_len=3, batch_size=1, seed=source_seed(9, source.name))
        expected = read(alone, len(mine)) - i * STEP if mine else np.empty((0, 4))
        assert mine == numbers(expected)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(SIZES, min_size=3, max_size=3), stages=STAGES, data=st.data())
def test_flow_is_resumed_at_any_batch_and_shared_by_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[list[int]],
    stages: list[tuple[int, ...]],
    data: st.DataObject,
) -> None:
    flow = write_flow(tmp_path_factory.mktemp("flow"), sizes, [*stages, (4, 4, 4)])
    batches = flow.flow.ends[-1] // 4
    whole = read(Loader(flow, seq_len=3, batch_size=4, seed=2), batches)
    done = data.draw(st.integers(0, batches - 1))

    cursor = Cursor(index=4 * done)
    rest = Loader(flow, seq_len=3, batch_size=4, seed=2, cursor=cursor)
    assert np.array_equal(read(rest, batches - done), whole[4 * done :])

    parts = [
        read(Loader(flow, seq_len=3, batch_size=4, seed=2, rank=rank, world=2), batches)
        for rank in range(2)
    ]
    together = np.concatenate([part.reshape(batches, 2, 4) for part in parts], axis=1)
    assert np.array_equal(together.reshape(-1, 4), whole)


def test_flow_tells_of_stages_and_of_every_epoch_of_every_source(tmp_path: Path) -> None:
    # two and five windows of four tokens
    data = write_flow(tmp_path, [[8], [20]], [(4, 0), (1, 3), (0, 4)])
    with Loader(data, seq_len=3, batch_size=4, seed=0) as loader:
        told = []
        for _ in range(3):
            loader.next_batch()
            told.append(loader.began)

    assert told == [
        (StageBegan(name="t0", index=0), EpochBegan(source="s0", epoch=1)),
        (StageBegan(name="t1", index=1), EpochBegan(source="s0", epoch=2)),
        (StageBegan(name="t2", index=2), EpochBegan(source="s1", epoch=1)),
    ]


def test_flow_ends_with_its_last_window(tmp_path: Path) -> None:
    data = write_flow(tmp_path, [[80], [80]], [(3, 5)])
    with Loader(data, seq_len=3, batch_size=4, seed=0) as loader:
        loader.next_batch()
        loader.next_batch()
        assert loader.cursor == Cursor(index=8)
        with pytest.raises(DataError, match="the flow is over: got window 12, expected at most 8"):
            loader.next_batch()

    end = Cursor(index=8)
    Loader(data, seq_len=3, batch_size=4, seed=0, cursor=end).close()
    with pytest.raises(DataError, match="window 9 of epoch 0"):
        Loader(data, seq_len=3, batch_size=4, seed=0, cursor=Cursor(index=9))


def test_sources_of_equal_size_are_shuffled_differently() -> None:
    seeds = {source_seed(1, "web"), source_seed(1, "math"), source_seed(2, "web")}

    assert len(seeds) == 3
    # A changed seed makes every checkpoint resume wrongly.
    assert source_seed(1337, "web") == 1434916387775676153
