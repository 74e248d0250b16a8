"""Documents to a dataset: shards first, the manifest last, safe to kill at any instant."""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from nmoe.data.shards import token_dtype, write_shard
from nmoe.data.sources import Source
from nmoe.data.tokenizer import Tokenizer
from nmoe.paths import write_atomic

# 128 MiB of uint16: a 10-billion-token set makes 149 files, and one shard fits in memory.
SHARD_TOKENS = 1 << 26
# Stands in the folder while shards are being written: what it lies beside is safe to redo.
MARKER_NAME = "unfinished.json"
# A dataset up to this size is checked by hash when it is found already prepared: about a second.
HASHED_BYTES = 1 << 30

Progress = Callable[[int, int], None]


def prepare(
    source: Source,
    tokenizer: Tokenizer,
    *,
    output: Path,
    name: str,
    shard_tokens: int = SHARD_TOKENS,
    progress: Progress | None = None,
) -> Manifest:
    """Tokenise `source` into `output`; a whole dataset of the same input is left as it is.

    A shard is closed by the document that fills it, so a document never spans two shards.
    `progress` gets (input bytes done, in total). A second caller waits for the first one.
    Raises DataError for unusable input or output, and when `output` holds something else.
    """
    if shard_tokens <= 0:
        raise DataError(f"shard size: got {shard_tokens} tokens, expected a positive number.")
    order = {
        "source": source.name,
        "revision": source.revision,
        "tokenizer": tokenizer.name,
        "facts": {**source.facts, "shard_tokens": str(shard_tokens)},
    }
    report = progress or (lambda _done, _total: None)
    with _writing(output), _locked(output):
        manifest = _found(output, order)
        if manifest is None:
            _start_over(output, order)
            shards, texts = _write_shards(
                source, tokenizer, output=output, shard_tokens=shard_tokens, report=report
            )
            manifest = Manifest(
                name=name,
                **order,
                vocab_size=tokenizer.vocab_size,
                eos_id=tokenizer.eos_id,
                total_tokens=sum(shard.tokens for shard in shards),
                num_docs=texts.count,
                text_bytes=texts.bytes,
                shards=tuple(shards),
            )
            write_manifest(output, manifest)
        (output / MARKER_NAME).unlink(missing_ok=True)
    report(source.total_bytes, source.total_bytes)
    return manifest


@dataclass(slots=True, kw_only=True)
class _Texts:
    """What has been read so far."""

    count: int = 0
    bytes: int = 0


def _write_shards(
    source: Source, tokenizer: Tokenizer, *, output: Path, shard_tokens: int, report: Progress
) -> tuple[list[Shard], _Texts]:
    shards: list[Shard] = []
    texts = _Texts()
    pending: list[np.ndarray] = []
    pending_tokens = 0
    position = 0
    for document in source.documents():
        report(position, source.total_bytes)
        position = document.position
        if not document.text:
            continue
        pending.append(_with_eos(document.text, tokenizer))
        pending_tokens += len(pending[-1])
        texts.count += 1
        texts.bytes += len(document.text.encode("utf-8", "replace"))
        if pending_tokens >= shard_tokens:
            shards.append(write_shard(output, len(shards), documents=pending))
            pending, pending_tokens = [], 0
    if pending:
        shards.append(write_shard(output, len(shards), documents=pending))
    if not shards:
        raise DataError(f"{source.name} holds no text: nothing was written. Check the input.")
    return shards, texts


def _with_eos(text: str, tokenizer: Tokenizer) -> np.ndarray:
    ids = tokenizer.encode_array(text)
    tokens = np.empty(len(ids) + 1, dtype=token_dtype(tokenizer.vocab_size))
    tokens[:-1] = ids
    tokens[-1] = tokenizer.eos_id
    return tokens


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


def _start_over(output: Path, order: dict) -> None:
    """Remove what an interrupted or damaged preparation left; DataError for files of others."""
    leftovers = [path for path in output.glob("shard_*") if path.suffix in (".npy", ".idx")]
    is_ours = (output / MANIFEST_NAME).exists() or (output / MARKER_NAME).exists()
    if leftovers and not is_ours:
        raise DataError(
            f"{output} holds shards without a manifest, such as {leftovers[0].name}."
            " Delete them or choose another --output."
        )
    write_atomic(output / MARKER_NAME, json.dumps(order, indent=1) + "\n")
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    half_written = [
        path
        for name in ("shard_", MANIFEST_NAME, MARKER_NAME)
        for path in output.glob(f".{name}*.tmp")
    ]
    for path in (*leftovers, *half_written):
        path.unlink()


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
