"""Preparation: the tokens it writes, and what remains after kills, full disks and wrong folders."""

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.data.folder import MARKER_NAME
from nmoe.data.index import read_index
from nmoe.data.manifest import MANIFEST_NAME, DataError, digest, read_manifest, verify
from nmoe.data.prep import prepare
from nmoe.data.shards import TokenStream
from nmoe.data.sources import open_source
from nmoe.data.tokenizer import open_tokenizer
from tests.data.datasets import Texts, contents

BYTE = open_tokenizer("byte")
SOURCE = Texts(texts=[f"document {i} " * (i % 7 + 1) for i in range(60)])
SHARD_TOKENS = 200
FORK = multiprocessing.get_context("fork")


def prepare_source(
    output: Path, progress: Callable[[int, int | None, int], None] | None = None
) -> None:
    prepare(SOURCE, BYTE, output=output, name="set", shard_tokens=SHARD_TOKENS, progress=progress)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=60), max_size=20), shard_tokens=st.integers(1, 200))
def test_shards_hold_every_document_and_one_eos_after_each(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], shard_tokens: int
) -> None:
    output = tmp_path_factory.mktemp("set")
    texts = [*texts, "last"]

    manifest = prepare(
        Texts(texts=texts), BYTE, output=output, name="set", shard_tokens=shard_tokens
    )

    kept = [text for text in texts if text]
    want = [token for text in kept for token in (*text.encode(), 256)]
    stream = TokenStream(output)
    got = np.empty(len(stream), dtype=np.int64)
    stream.read_into(got, 0)
    assert got.tolist() == want
    assert manifest.num_docs == len(kept)
    assert manifest.text_bytes == len("".join(kept).encode())
    assert all(shard.tokens >= shard_tokens for shard in manifest.shards[:-1])
    lengths = [len(text.encode()) + 1 for text in kept]
    indexed = [
        read_index((output / shard.name).with_suffix(".idx"), tokens=shard.tokens)
        for shard in manifest.shards
    ]
    assert [int(end - start) for pairs in indexed for start, end in pairs] == lengths


def test_each_document_is_a_shard_when_shards_hold_one_token(tmp_path: Path) -> None:
    manifest = prepare(SOURCE, BYTE, output=tmp_path, name="set", shard_tokens=1)

    assert len(manifest.shards) == manifest.num_docs == len(SOURCE.texts)
    verify(tmp_path)


def test_progress_rises_to_the_total_which_comes_last(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    prepare_source(tmp_path, progress=lambda done, total, _: seen.append((done, total)))

    done = [item[0] for item in seen]
    assert done == sorted(set(done))
    assert seen[-1] == (SOURCE.total_bytes, SOURCE.total_bytes)


def test_stdlib_gives_the_same_digest_when_prepared_twice(tmp_path: Path) -> None:
    made = [
        prepare(open_source("stdlib", ["val"]), BYTE, output=tmp_path / name, name=name)
        for name in ("one", "two")
    ]

    assert digest(made[0]) == digest(made[1])
    assert made[0].facts["python"]


def _prepare_and_die(output: Path, call: int) -> None:
    calls = iter(range(call, -1, -1))

    def kill(_done: int, _total: int, _tokens: int) -> None:
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    prepare_source(output, progress=kill)


@pytest.mark.parametrize("call", [0, 1, 17, 59])
def test_second_try_gives_identical_bytes_when_the_first_was_killed(
    tmp_path: Path, call: int
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = FORK.Process(target=_prepare_and_die, args=(killed, call))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(DataError, match="manifest.json is missing"):
        read_manifest(killed)
    (killed / ".shard_00007.npy.tmp").write_bytes(b"half a shard")

    prepare_source(killed)
    prepare_source(whole)

    assert contents(killed) == contents(whole)


def _prepare_with_little_room(output: Path, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        prepare_source(output)
    except DataError as error:
        os._exit(0 if "cannot write to" in str(error) else 1)
    os._exit(2)


@pytest.mark.parametrize("limit", [0, 300, 500])
def test_full_disk_is_reported_and_the_next_try_succeeds(tmp_path: Path, limit: int) -> None:
    child = FORK.Process(target=_prepare_with_little_room, args=(tmp_path, limit))
    child.start()
    child.join()

    assert child.exitcode == 0
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert not list(tmp_path.glob(".*.tmp"))
    prepare_source(tmp_path)
    verify(tmp_path)


def test_whole_shards_are_kept_when_the_first_try_was_killed(tmp_path: Path) -> None:
    child = FORK.Process(target=_prepare_and_die, args=(tmp_path, 40))
    child.start()
    child.join()
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("shard_*")}
    assert len(before) >= 4

    prepare_source(tmp_path)

    after = {path.name: path.stat().st_ino for path in tmp_path.glob("shard_*")}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("damage", ["shard_00001.npy", "shard_00001.idx", MARKER_NAME])
def test_second_try_redoes_what_was_damaged_meanwhile(tmp_path: Path, damage: str) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = FORK.Process(target=_prepare_and_die, args=(killed, 40))
    child.start()
    child.join()
    content = (killed / damage).read_bytes()
    (killed / damage).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])

    prepare_source(killed)
    prepare_source(whole)

    assert contents(killed) == contents(whole)


def test_second_try_starts_over_when_it_orders_something_else(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = FORK.Process(target=_prepare_and_die, args=(killed, 40))
    child.start()
    child.join()

    for output in (killed, whole):
        prepare(SOURCE, BYTE, output=output, name="set", shard_tokens=300)

    assert contents(killed) == contents(whole)


def test_result_is_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    source = Texts(texts=[f"document {i} " * (i % 50) for i in range(5000)])

    for workers in (1, 2, 5):
        output = tmp_path / str(workers)
        prepare(source, BYTE, output=output, name="set", shard_tokens=90_000, workers=workers)

    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


@pytest.mark.parametrize("max_tokens", [1, 500, 501, 10**9])
def test_last_document_is_the_one_that_reaches_the_most_tokens(
    tmp_path: Path, max_tokens: int
) -> None:
    lengths = [len(text) + 1 for text in SOURCE.texts]
    ends = np.cumsum(lengths)
    wanted = next((int(end) for end in ends if end >= max_tokens), int(ends[-1]))

    manifest = prepare(
        SOURCE, BYTE, output=tmp_path, name="set", shard_tokens=200, max_tokens=max_tokens
    )

    assert manifest.total_tokens == wanted
    assert manifest.facts["max_tokens"] == str(max_tokens)


@pytest.mark.parametrize("max_tokens", [None, 1000])
def test_shards_are_equal_shares_when_their_number_is_given(
    tmp_path: Path, max_tokens: int | None
) -> None:
    manifest = prepare(
        Texts(texts=["x" * 9] * 400),
        BYTE,
        output=tmp_path,
        name="set",
        num_shards=4,
        max_tokens=max_tokens,
    )

    assert [shard.tokens for shard in manifest.shards] == [(max_tokens or 4000) // 4] * 4
    assert "shard_tokens" not in manifest.facts


def test_prep_is_refused_when_the_disk_cannot_hold_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Texts(texts=["x" * 9999] * 300)  # 3 million tokens, 6 MB
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))

    with pytest.raises(DataError, match=r"disk is too small: got 5,000,000 .* least 6,004,8"):
        prepare(source, BYTE, output=tmp_path / "all", name="set")
    assert not list((tmp_path / "all").glob("*shard*"))
    prepare(source, BYTE, output=tmp_path / "part", name="set", max_tokens=2_000_000)


def test_output_is_refused_when_it_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError, match=r"cannot write to .*--output"):
            prepare_source(output)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_output_is_refused_when_it_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)

    with pytest.raises(DataError, match=r"cannot write to .*Permission denied"):
        prepare_source(tmp_path / "set")


def test_whole_dataset_is_left_untouched_when_it_is_the_same(tmp_path: Path) -> None:
    prepare_source(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    prepare_source(tmp_path)

    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_output_is_refused_when_it_holds_another_dataset(tmp_path: Path) -> None:
    prepare_source(tmp_path)
    before = contents(tmp_path)

    with pytest.raises(DataError, match=r"another dataset: got revision .*--output"):
        prepare(Texts(texts=["other"]), BYTE, output=tmp_path, name="set", shard_tokens=200)

    assert contents(tmp_path) == before


def test_output_is_refused_when_it_holds_shards_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "shard_00000.npy").write_bytes(b"precious")
    (tmp_path / ".draft.tmp").write_bytes(b"precious")

    with pytest.raises(DataError, match="shards without a manifest"):
        prepare_source(tmp_path)

    assert set(contents(tmp_path).values()) == {b"precious"}


def test_files_of_somebody_else_are_left_when_they_are_no_shards(tmp_path: Path) -> None:
    (tmp_path / ".draft.tmp").write_bytes(b"precious")

    prepare_source(tmp_path)

    assert contents(tmp_path)[".draft.tmp"] == b"precious"


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_damaged_dataset_of_the_same_input_is_made_again(tmp_path: Path, damage: str) -> None:
    prepare_source(tmp_path)
    before = contents(tmp_path)
    shard = tmp_path / "shard_00001.npy"
    content = shard.read_bytes()
    match damage:
        case "missing":
            shard.unlink()
        case "truncated":
            shard.write_bytes(content[:-10])
        case "flipped":
            shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    prepare_source(tmp_path)

    assert contents(tmp_path) == before


def test_garbage_manifest_is_reported_and_nothing_is_removed(tmp_path: Path) -> None:
    prepare_source(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")

    with pytest.raises(DataError, match="broken manifest"):
        prepare_source(tmp_path)

    assert (tmp_path / "shard_00000.npy").exists()


def test_no_manifest_is_written_when_there_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no text"):
        prepare(Texts(texts=["", ""]), BYTE, output=tmp_path, name="set")

    assert not (tmp_path / MANIFEST_NAME).exists()


@pytest.mark.parametrize("shard_tokens", [0, -1])
def test_shard_size_is_refused_when_it_is_not_positive(tmp_path: Path, shard_tokens: int) -> None:
    with pytest.raises(DataError, match="shard size"):
        prepare(SOURCE, BYTE, output=tmp_path, name="set", shard_tokens=shard_tokens)


def test_two_at_once_make_one_whole_dataset(tmp_path: Path) -> None:
    children = [FORK.Process(target=prepare_source, args=(tmp_path / "set",)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()

    assert [child.exitcode for child in children] == [0] * 4
    verify(tmp_path / "set")
    assert not (tmp_path / "set" / MARKER_NAME).exists()
