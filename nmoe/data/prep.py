"""Documents to a dataset: shards first, the manifest last, safe to kill at any instant."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from nmoe.data.encode import Encoded, encode_documents
from nmoe.data.index import read_index
from nmoe.data.manifest import (
    MANIFEST_NAME,
    DataError,
    Manifest,
    Shard,
    read_manifest,
    verify,
    verify_sizes,
    write_manifest,
)
from nmoe.data.shards import ShardWriter, shard_name, token_dtype
from nmoe.data.sources import Source
from nmoe.data.tokenizer import Tokenizer
from nmoe.paths import file_digest, write_atomic

# 128 MiB of uint16: a 10-billion-token set makes 149 files, and an interrupt costs seconds.
SHARD_TOKENS = 1 << 26
# Stands in the folder while shards are being written: what was ordered and which are whole.
MARKER_NAME = "unfinished.json"
# A dataset up to this size is checked by hash when it is found already prepared: about a second.
HASHED_BYTES = 1 << 30
# Text that is encoded to foretell the size of the result: less than a tenth of a second.
SAMPLE_CHARS = 1 << 18
INDEX_BYTES = 16  # of one document

Progress = Callable[[int, int, int], None]


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
    `progress` gets (input bytes done, in total, tokens so far). A second caller waits for the
    first. Raises DataError for unusable input or output, for too small a disk, and when `output`
    holds something else.
    """
    cut = _Cut(shard_tokens=shard_tokens, num_shards=num_shards, max_tokens=max_tokens)
    order = {
        "source": source.name,
        "revision": source.revision,
        "tokenizer": tokenizer.name,
        "facts": {**source.facts, **cut.facts()},
    }
    report = progress or (lambda _done, _total, _tokens: None)
    with _writing(output), _locked(output):
        manifest = _found(output, order)
        if manifest is None:
            made = _start(output, order)
            _check_disk(output, source, tokenizer, cut=cut, done=made[-1].done if made else _Done())
            with closing(_Folder(output=output, order=order, made=made)) as folder:
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
            )
            write_manifest(output, manifest)
        (output / MARKER_NAME).unlink(missing_ok=True)
    report(source.total_bytes, source.total_bytes, manifest.total_tokens)
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

    def progress(self, done: "_Done", total: int) -> int:
        """Input bytes done; `total` when the tokens suffice, however much input is left."""
        if self.max_tokens is None:
            return done.position
        return max(done.position, min(total, total * done.tokens // self.max_tokens))

    def is_full(self, shard_tokens: int, made: int, *, done: "_Done", total: int) -> bool:
        """Whether the shard after `made` others, of `shard_tokens` tokens, ends here."""
        if self.num_shards is None:
            return shard_tokens >= self.shard_tokens
        return self.progress(done, total) * self.num_shards >= (made + 1) * total

    def is_reached(self, done: "_Done") -> bool:
        """Whether no further document is wanted."""
        return self.max_tokens is not None and done.tokens >= self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class _Done:
    """How far the input has been turned into tokens; `documents` includes empty ones."""

    documents: int = 0
    num_docs: int = 0
    tokens: int = 0
    text_bytes: int = 0
    position: int = 0

    def plus(self, item: Encoded) -> "_Done":
        return _Done(
            documents=self.documents + 1,
            num_docs=self.num_docs + (len(item.tokens) > 0),
            tokens=self.tokens + len(item.tokens),
            text_bytes=self.text_bytes + item.text_bytes,
            position=item.position,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A whole shard, and how far the input was done at its end."""

    shard: Shard
    done: _Done


class _Folder:
    """The shards being made, one open at a time; the marker follows each that is whole."""

    def __init__(self, *, output: Path, order: dict, made: list[_Made]) -> None:
        self.made = made
        self._output, self._order = output, order
        self._writer: ShardWriter | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the open shard."""
        return self._writer.tokens if self._writer else 0

    def append(self, item: Encoded) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self._output, len(self.made), dtype=item.tokens.dtype)
        self._writer.append(item.tokens)

    def end_shard(self, done: _Done) -> None:
        """Close the open shard, if there is one, and note it."""
        if self._writer is None:
            return
        self.made.append(_Made(shard=self._writer.close(), done=done))
        self._writer = None
        _mark(self._output, self._order, self.made)

    def close(self) -> None:
        """Drop what is not whole."""
        if self._writer:
            self._writer.discard()


def _write_shards(
    folder: _Folder,
    source: Source,
    tokenizer: Tokenizer,
    *,
    cut: _Cut,
    workers: int,
    report: Progress,
) -> None:
    total = source.total_bytes
    done = folder.made[-1].done if folder.made else _Done()
    if cut.is_reached(done):
        return
    documents = islice(source.documents(), done.documents, None)
    with closing(encode_documents(documents, tokenizer, workers=workers)) as encoded:
        for item in encoded:
            report(cut.progress(done, total), total, done.tokens)
            done = done.plus(item)
            if not len(item.tokens):
                continue
            folder.append(item)
            if cut.is_full(folder.tokens, len(folder.made), done=done, total=total):
                folder.end_shard(done)
            if cut.is_reached(done):
                break
    folder.end_shard(done)


def _check_disk(
    output: Path, source: Source, tokenizer: Tokenizer, *, cut: _Cut, done: _Done
) -> None:
    """DataError when the result, foretold from the first documents, exceeds the free disk."""
    sample, chars = _Done(), 0
    for document in source.documents():
        tokens = tokenizer.encode_array(document.text)
        num_tokens = len(tokens) + bool(document.text)
        sample = replace(
            sample,
            documents=sample.documents + 1,
            tokens=sample.tokens + num_tokens,
            position=document.position,
        )
        chars += len(document.text)
        if chars >= SAMPLE_CHARS and sample.position:
            break
    if not sample.tokens:
        return
    expected = sample.tokens * source.total_bytes // max(sample.position, 1)
    if cut.max_tokens is not None:
        expected = min(expected, cut.max_tokens)
    left = max(expected - done.tokens, 0)
    needed = left * token_dtype(tokenizer.vocab_size).itemsize
    needed += left * sample.documents // sample.tokens * INDEX_BYTES
    free = shutil.disk_usage(output).free
    if free < needed:
        raise DataError(
            f"the disk is too small: got {free:,} bytes free at {output}, expected at least"
            f" {needed:,} for about {left:,} tokens. Free space or choose another --output."
        )


def _found(output: Path, order: dict) -> Manifest | None:
    """The dataset in `output` when it is the one ordered and whole, None when it must be made."""
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(output)
    for key, wanted in order.items():
        if getattr(manifest, key) != wanted:
            raise DataError(
                f"{output} holds another dataset: got {key} {getattr(manifest, key)!r}, expected"
                f" {wanted!r}. Delete the folder or choose another --output."
            )
    try:
        return verify(output) if manifest.total_bytes <= HASHED_BYTES else verify_sizes(output)
    except DataError:
        return None


def _start(output: Path, order: dict) -> list[_Made]:
    """The shards of an interrupted preparation that are whole; everything else of it is removed.

    DataError for files of others.
    """
    leftovers = [path for path in output.glob("shard_*") if path.suffix in (".npy", ".idx")]
    is_ours = (output / MANIFEST_NAME).exists() or (output / MARKER_NAME).exists()
    if leftovers and not is_ours:
        raise DataError(
            f"{output} holds shards without a manifest, such as {leftovers[0].name}."
            " Delete them or choose another --output."
        )
    made = _kept(output, order)
    _mark(output, order, made)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    half_written = [
        path
        for name in ("shard_", MANIFEST_NAME, MARKER_NAME)
        for path in output.glob(f".{name}*.tmp")
    ]
    kept = {Path(each.shard.name).stem for each in made}
    for path in (*leftovers, *half_written):
        if path.stem not in kept:
            path.unlink()
    return made


def _mark(output: Path, order: dict, made: Sequence[_Made]) -> None:
    content = {"order": order, "shards": [asdict(each) for each in made]}
    write_atomic(output / MARKER_NAME, json.dumps(content) + "\n")


def _kept(output: Path, order: dict) -> list[_Made]:
    """The shards that the marker names, up to the first that is not as it says."""
    made: list[_Made] = []
    try:
        content = json.loads((output / MARKER_NAME).read_text(encoding="utf-8"))
        if content["order"] != order:
            return made
        for number, raw in enumerate(content["shards"]):
            each = _Made(shard=Shard(**raw["shard"]), done=_Done(**raw["done"]))
            path = output / shard_name(number)
            if each.shard.name != path.name or file_digest(path) != each.shard.sha256:
                break
            read_index(path.with_suffix(".idx"), tokens=each.shard.tokens)
            made.append(each)
    except (OSError, ValueError, KeyError, TypeError):
        return made
    return made


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        yield
    except BrokenPipeError:
        raise  # whoever read the progress is gone: not about the output
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write to {output}: {reason}. Free space there or choose another --output."
        ) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder alone; the kernel lets go when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
