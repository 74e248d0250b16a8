"""Shared text is found wherever it lies, counted exactly, and nothing else is."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmoe.data import overlap
from nmoe.data.manifest import DataError, Manifest, write_manifest
from nmoe.data.overlap import Example, find_overlap
from nmoe.data.shards import ShardWriter

EOS = 999
WINDOW = 8


def write(folder: Path, *shards: Sequence[np.ndarray], tokenizer: str = "words") -> Path:
    """A dataset of documents; each gets its EOS."""
    folder.mkdir(parents=True)
    written = []
    for number, documents in enumerate(shards):
        writer = ShardWriter(folder, number, dtype=np.dtype("<u2"))
        for document in documents:
            writer.append(np.append(document, EOS))
        written.append(writer.close())
    total = sum(shard.tokens for shard in written)
    manifest = Manifest(
        name=folder.name,
        source="made",
        revision="1",
        tokenizer=tokenizer,
        vocab_size=1000,
        eos_id=EOS,
        total_tokens=total,
        num_docs=sum(map(len, shards)),
        text_bytes=4 * total,
        shards=tuple(written),
    )
    write_manifest(folder, manifest)
    return folder


def text(seed: int, tokens: int) -> np.ndarray:
    """Random tokens, so that equal windows are copies."""
    return np.random.default_rng(seed).integers(0, EOS, tokens)


def test_disjoint_sets_share_nothing(tmp_path: Path) -> None:
    train = write(tmp_path / "train", [text(1, 500), text(2, 80)], [text(3, 900)])
    val = write(tmp_path / "val", [text(4, 300), text(5, 20)])

    found = find_overlap(train, val, window=WINDOW)

    assert (found.tokens, found.shared_tokens, found.share) == (322, 0, 0.0)
    assert (found.documents, found.shared_documents, found.examples) == (2, 0, ())
    assert 0 < found.expected_false < 1e-12


@settings(max_examples=40, deadline=None)
@given(
    before=st.integers(0, 40),
    after=st.integers(0, 40),
    length=st.integers(2 * WINDOW - 1, 60),
    place=st.integers(0, 50),
)
def test_shared_run_is_found_at_any_place(
    tmp_path_factory: pytest.TempPathFactory, before: int, after: int, length: int, place: int
) -> None:
    root = tmp_path_factory.mktemp("sets")
    run = text(7, length)
    train = write(
        root / "train",
        [text(1, 50)],
        [text(2, 9), np.concatenate([text(3, before), run, text(4, after)])],
    )
    val = write(
        root / "val", [text(5, 30), np.concatenate([text(6, place), run, text(8, 5)]), text(9, 30)]
    )

    found = find_overlap(train, val, window=WINDOW)

    assert found.shared_documents == 1
    # windows of training that lie across the run's ends do not count
    assert length - 2 * (WINDOW - 1) <= found.shared_tokens <= length
    (example,) = found.examples
    assert (example.document, example.train_shard) == (1, "shard_00001.npy")
    in_val, in_train = example.token - (31 + place), example.train_token - (10 + before)
    assert in_val == in_train >= 0


def test_whole_document_is_found_when_it_is_as_short_as_a_window(tmp_path: Path) -> None:
    short = text(7, WINDOW - 1)  # and its EOS
    train = write(tmp_path / "train", [text(1, 20), short, text(2, 90)])
    val = write(tmp_path / "val", [text(3, 50), short, text(4, 50)])

    found = find_overlap(train, val, window=WINDOW)

    assert (found.shared_documents, found.shared_tokens) == (1, WINDOW)
    assert found.examples == (
        Example(
            document=1,
            shared_tokens=WINDOW,
            token=51,
            train_shard="shard_00000.npy",
            train_token=21,
        ),
    )


def test_everything_is_shared_with_a_copy_in_chunks_and_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "CHUNK_TOKENS", 40)
    documents = [text(seed, 33) for seed in range(9)]
    train = write(tmp_path / "train", documents[:4], documents[4:] + documents)
    val = write(tmp_path / "val", [*documents, documents[2]])
    steps: list[tuple[int, int, int]] = []

    found = find_overlap(train, val, window=1, progress=lambda *step: steps.append(step))

    assert (found.share, found.shared_documents, found.documents) == (1.0, 10, 10)
    assert len(found.examples) == overlap.NUM_EXAMPLES
    assert [step[0] for step in steps] == sorted(step[0] for step in steps)
    assert steps[-1] == (18 * 34, 18 * 34, 18 * 34)
    assert all(step[0] < step[1] for step in steps[:-1])


def test_window_is_two_hundred_bytes_of_text_unless_named(tmp_path: Path) -> None:
    train, val = write(tmp_path / "a", [text(1, 300)]), write(tmp_path / "b", [text(2, 300)])

    assert find_overlap(train, val).window == 50
    assert find_overlap(train, val, window=301).window == 301
    with pytest.raises(DataError, match="window: got 302 tokens, expected 1 to the 301"):
        find_overlap(train, val, window=302)


def test_sets_that_cannot_be_compared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = write(tmp_path / "train", [text(1, 99)]), write(tmp_path / "val", [text(2, 99)])
    other = write(tmp_path / "other", [text(3, 99)], tokenizer="bytes")

    with pytest.raises(DataError, match="got tokens of bytes and words, expected one tokenizer"):
        find_overlap(other, val)
    monkeypatch.setattr(overlap, "MAX_VALIDATION_TOKENS", 99)
    with pytest.raises(DataError, match="val is too large to be the validation side: got 100"):
        find_overlap(train, val)
