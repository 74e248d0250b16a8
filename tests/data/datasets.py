"""Small datasets for tests: counting tokens in shards of chosen sizes, and texts held in memory."""

import hashlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nmoe.data.documents import START, Document, Place
from nmoe.data.manifest import Manifest, Shard, write_manifest
from nmoe.data.shards import ShardWriter


def write_shard(folder: Path, number: int, *, documents: Sequence[np.ndarray]) -> Shard:
    """Write documents (EOS included) as one shard and its index."""
    writer = ShardWriter(folder, number, dtype=documents[0].dtype)
    try:
        for tokens in documents:
            writer.append(tokens)
        return writer.close()
    finally:
        writer.discard()


def write_counting(
    folder: Path,
    shard_tokens: Sequence[int],
    *,
    vocab_size: int = 65536,
    first: int = 0,
) -> Path:
    """A dataset whose token i is `first` + i, so that a window tells where it comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    shards, start = [], 0
    for number, size in enumerate(shard_tokens):
        tokens = np.arange(first + start, first + start + size, dtype="<u2")
        shards.append(write_shard(folder, number, documents=[tokens]))
        start += size
    manifest = Manifest(
        name="counting",
        source="counting",
        revision="1",
        tokenizer="none",
        vocab_size=vocab_size,
        eos_id=0,
        total_tokens=start,
        num_docs=len(shards),
        text_bytes=start,
        shards=tuple(shards),
    )
    write_manifest(folder, manifest)
    return folder


@dataclass(frozen=True, kw_only=True)
class Texts:
    """A source over texts in memory."""

    texts: Sequence[str]
    name: str = "texts"
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def revision(self) -> str:
        return hashlib.sha256("\0".join(self.texts).encode("utf-8", "replace")).hexdigest()

    @property
    def total_bytes(self) -> int:
        return len(self.texts)

    def documents(self, start: Place = START) -> Generator[Document]:
        for position, text in enumerate(self.texts[start.position :], start=start.position + 1):
            yield Document(text=text, place=Place(position=position, row=1))

    def inputs(self, end: Place) -> dict[str, str]:
        return {f"text {number}": "" for number in range(end.position)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
