"""Shards and indexes on disk: the documented bytes, and damage that is noticed."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.data.index import encode_index, read_index
from nmoe.data.manifest import DataError
from nmoe.data.shards import TokenStream, open_shard, token_dtype
from tests.data.datasets import write_counting, write_shard


def test_shard_is_a_plain_npy_file_with_its_index_beside_it(tmp_path: Path) -> None:
    documents = [np.array([5, 6, 256], dtype="<u2"), np.array([7, 256], dtype="<u2")]

    shard = write_shard(tmp_path, 3, documents=documents)

    loaded = np.load(tmp_path / "shard_00003.npy")
    assert loaded.dtype == np.uint16
    assert loaded.tolist() == [5, 6, 256, 7, 256]
    assert (shard.name, shard.tokens) == ("shard_00003.npy", 5)
    assert shard.bytes == (tmp_path / shard.name).stat().st_size
    index = (tmp_path / "shard_00003.idx").read_bytes()
    assert index[:32] == b"NMOEIDX\0" + struct.pack("<QQQ", 1, 2, 0)
    assert struct.unpack("<4Q", index[32:]) == (0, 3, 3, 5)


def test_npy_equals_what_numpy_would_write(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype="<u2")

    write_shard(tmp_path, 0, documents=[tokens])

    np.save(tmp_path / "numpy.npy", tokens)
    assert (tmp_path / "shard_00000.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.parametrize(("vocab_size", "dtype"), [(257, "<u2"), (65536, "<u2"), (65537, "<u4")])
def test_dtype_is_the_smallest_that_holds_the_vocabulary(vocab_size: int, dtype: str) -> None:
    assert token_dtype(vocab_size) == np.dtype(dtype)


@given(lengths=st.lists(st.integers(1, 10_000), min_size=1, max_size=50))
def test_index_gives_every_document_back(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    path = tmp_path_factory.mktemp("index") / "a.idx"
    path.write_bytes(encode_index(lengths))

    pairs = read_index(path, tokens=sum(lengths))

    assert (pairs[:, 1] - pairs[:, 0]).tolist() == lengths
    assert pairs[0, 0] == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:31],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: b"X" + raw[1:],
        lambda raw: raw[:8] + b"\2" + raw[9:],
        lambda raw: raw[:32] + b"\1" + raw[33:],
        lambda raw: raw[:-16] + b"\xff" * 16,
        lambda raw: raw[:32] + raw[48:64] + raw[32:48],
    ],
)
def test_index_is_refused_when_damaged(tmp_path: Path, damage) -> None:
    path = tmp_path / "a.idx"
    path.write_bytes(damage(encode_index([4, 6])))

    with pytest.raises(DataError, match="broken index"):
        read_index(path, tokens=10)


def test_index_is_refused_when_missing_or_of_another_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_index(tmp_path / "a.idx", tokens=10)

    (tmp_path / "a.idx").write_bytes(encode_index([4, 6]))
    with pytest.raises(DataError, match="do not cover 11 tokens"):
        read_index(tmp_path / "a.idx", tokens=11)


@pytest.mark.parametrize("size", [0, 5, 100, 150])
def test_shard_is_refused_when_truncated(tmp_path: Path, size: int) -> None:
    path = tmp_path / "shard_00000.npy"
    write_shard(tmp_path, 0, documents=[np.arange(100, dtype="<u2")])
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(DataError, match="cannot read shard"):
        open_shard(path, tokens=100)


@pytest.mark.parametrize(
    "tokens",
    [np.zeros((4, 25), "<u2"), np.zeros(100, "<f4"), np.zeros(99, "<u2")],
    ids=["two dimensions", "floats", "too short"],
)
def test_shard_is_refused_when_it_holds_something_else(tmp_path: Path, tokens: np.ndarray) -> None:
    np.save(tmp_path / "a.npy", tokens)

    with pytest.raises(DataError, match="expected uint16 or uint32"):
        open_shard(tmp_path / "a.npy", tokens=100)


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    data=st.data(),
)
def test_stream_reads_any_range_across_shards(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    stream = TokenStream(write_counting(tmp_path_factory.mktemp("set"), sizes))
    start = data.draw(st.integers(0, len(stream) - 1))
    out = np.empty(data.draw(st.integers(1, len(stream) - start)), dtype=np.int64)

    stream.read_into(out, start)

    assert out.tolist() == list(range(start, start + len(out)))


def test_windows_are_refused_when_a_token_is_outside_the_vocabulary(tmp_path: Path) -> None:
    stream = TokenStream(write_counting(tmp_path, [50], vocab_size=49))

    stream.windows(np.array([0, 3]), seq_len=9)
    with pytest.raises(DataError, match=r"got token 49, expected less than 49.*verify"):
        stream.windows(np.array([4]), seq_len=9)
