"""Documents to a dataset: shards first, the manifest last, safe to kill at any instant."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from nmoe.data.documents import Document, Source
from nmoe.data.encode import Encoded, encode_documents
from nmoe.data.folder import (
    DOWNLOADS_NAME,
    MARKER_NAME,
    Done,
    Folder,
    find_whole,
    keep_whole,
    writing,
)
from nmoe.data.manifest import DataError, Manifest, write_manifest
from nmoe.data.shards import token_dtype
from nmoe.data.tokenizer import Tokenizer
from nmoe.paths import locked

# 128 MiB of uint16: a 10-billion-token set makes 149 files, and an interrupt costs seconds.
SHARD_TOKENS = 1 << 26
# Text that is encoded to foretell the size of the result: less than a tenth of a second.
SAMPLE_CHARS = 1 << 18
INDEX_BYTES = 16  # of one document

Progress = Callable[[int, int | None, int], None]


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    *,
    output: Path,
    name: str,
    shard_tokens: int = SHARD_TOKENS,
    num_shards: int | None = None,
    max_tokens: int | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenise `source` into `output`; a whole dataset of the same input is left as it is.

    A shard is closed by the document that fills it, so a document never spans two shards: the one
    that brings it to `shard_tokens`, or, with `num_shards`, the one that completes that share of
    the input. The document that reaches `max_tokens` is the last. `workers` threads encode; their
    number changes nothing in the result. Whole shards of an interrupted call are kept.
    `progress` gets (input bytes done, in total unless only the end will tell, tokens so far). A
    second caller waits for the first. Raises DataError for unusable input or output, for too small
    a disk, and when `output` holds something else.
    """
    cut = _Cut(shard_tokens=shard_tokens, num_shards=num_shards, max_tokens=max_tokens)
    order = {
        "source": source.name,
        "revision": source.revision,
        "tokenizer": tokenizer.name,
        "facts": {**source.facts, **cut.facts()},
    }
    report = progress or (lambda _done, _total, _tokens: None)
    with writing(output), locked(output):
        manifest = find_whole(output, order)
        total = manifest.text_bytes if manifest else 0
        if manifest is None:
            made = keep_whole(output, order)
            with closing(Folder(output=output, order=order, made=made)) as folder:
                _write_shards(folder, source, tokenizer, cut=cut, workers=workers, report=report)
            if not made:
                raise DataError(
                    f"{source.name} holds no text: nothing was written. Check the input."
                )
            done = made[-1].done
            manifest = Manifest(
                name=name,
                **order,
                vocab_size=tokenizer.vocab_size,
                eos_id=tokenizer.eos_id,
                total_tokens=done.tokens,
                num_docs=done.num_docs,
                text_bytes=done.text_bytes,
                shards=tuple(each.shard for each in made),
                inputs=source.inputs(done.place),
            )
            write_manifest(output, manifest)
            whole = None if cut.is_reached(done) else source.total_bytes
            total = done.place.position if whole is None else whole
        (output / MARKER_NAME).unlink(missing_ok=True)
        shutil.rmtree(output / DOWNLOADS_NAME, ignore_errors=True)
    report(total, total, manifest.total_tokens)
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Where shards and the dataset end."""

    shard_tokens: int
    num_shards: int | None
    max_tokens: int | None

    def __post_init__(self) -> None:
        for what, value, unit in (
            ("shard size", self.shard_tokens, "tokens"),
            ("number of shards", self.num_shards, "shards"),
            ("most tokens", self.max_tokens, "tokens"),
        ):
            if value is not None and value <= 0:
                raise DataError(f"{what}: got {value} {unit}, expected a positive number.")

    def facts(self) -> dict[str, str]:
        """What of it decides the tokens in each shard, for the manifest."""
        facts = {"shard_tokens": str(self.shard_tokens)}
        if self.num_shards is not None:
            facts = {"num_shards": str(self.num_shards)}
        if self.max_tokens is not None:
            facts["max_tokens"] = str(self.max_tokens)
        return facts

    def progress(self, done: "Done", total: int | None) -> tuple[int, int | None]:
        """Input bytes read and to be read, as far as the tokens so far can tell."""
        position = done.place.position
        if self.max_tokens is None or not done.tokens:
            return position, total
        expected = position * self.max_tokens // done.tokens + 1
        return position, expected if total is None else min(total, expected)

    def is_full(self, shard_tokens: int, made: int, *, done: "Done", total: int | None) -> bool:
        """Whether the shard after `made` others, of `shard_tokens` tokens, ends here."""
        if self.num_shards is None:
            return shard_tokens >= self.shard_tokens
        shares = ((done.place.position, total), (done.tokens, self.max_tokens))
        wanted = made + 1
        return any(whole and part * self.num_shards >= wanted * whole for part, whole in shares)

    def is_reached(self, done: "Done") -> bool:
        """Whether no further document is wanted."""
        return self.max_tokens is not None and done.tokens >= self.max_tokens


def _write_shards(
    folder: Folder,
    source: Source,
    tokenizer: Tokenizer,
    *,
    cut: _Cut,
    workers: int,
    report: Progress,
) -> None:
    done = folder.made[-1].done if folder.made else Done()
    if cut.is_reached(done):
        return
    total = source.total_bytes
    if total is None and cut.num_shards is not None and cut.max_tokens is None:
        raise DataError(
            f"nothing tells how much {source.name} holds, so its shares are unknown."
            " Give --max-tokens, too, or --shard-tokens instead."
        )
    with closing(source.documents(done.place)) as documents:
        first = _sample(documents)
        _check_disk(folder.output, tokenizer, first, cut=cut, done=done, total=total)
        encoded = encode_documents(chain(first, documents), tokenizer, workers=workers)
        with closing(encoded):
            done = _fill(folder, encoded, done, cut=cut, total=total, report=report)
    folder.end_shard(done)


def _fill(
    folder: Folder,
    encoded: Iterable[Encoded],
    done: Done,
    *,
    cut: _Cut,
    total: int | None,
    report: Progress,
) -> Done:
    """Write documents until the tokens suffice or the input ends; the last shard stays open."""
    for item in encoded:
        report(*cut.progress(done, total), done.tokens)
        done = done.plus(item)
        if not len(item.tokens):
            continue
        folder.append(item)
        if cut.is_full(folder.tokens, len(folder.made), done=done, total=total):
            folder.end_shard(done)
        if cut.is_reached(done):
            break
    return done


def _sample(documents: Iterator[Document]) -> list[Document]:
    """The first documents, enough to foretell the size of the result."""
    first: list[Document] = []
    chars = 0
    for document in documents:
        first.append(document)
        chars += len(document.text)
        if chars >= SAMPLE_CHARS:
            break
    return first


def _check_disk(
    output: Path,
    tokenizer: Tokenizer,
    first: Sequence[Document],
    *,
    cut: _Cut,
    done: Done,
    total: int | None,
) -> None:
    """DataError when the rest, foretold from its first documents, exceeds the free disk."""
    tokens = sum(len(tokenizer.encode_array(each.text)) + 1 for each in first if each.text)
    if not tokens:
        return
    left = cut.max_tokens - done.tokens if cut.max_tokens is not None else None
    if total is not None:
        read = first[-1].place.position - done.place.position
        expected = tokens * (total - done.place.position) // max(read, 1)
        left = expected if left is None else min(left, expected)
    if left is None:
        return
    needed = left * token_dtype(tokenizer.vocab_size).itemsize
    needed += left * len(first) // tokens * INDEX_BYTES
    free = shutil.disk_usage(output).free
    if free < needed:
        raise DataError(
            f"the disk is too small: got {free:,} bytes free at {output}, expected at least"
            f" {needed:,} for about {left:,} tokens. Free space or choose another --output."
        )
