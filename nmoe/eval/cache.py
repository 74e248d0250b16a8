"""Rendered and encoded tasks on disk, so that only the first evaluation pays for them.

A file holds the columns of one task and is named by the digest of all they depend on: the rows
after shuffle and cap, the prompt format, the tokenizer, BOS, and the version of the renderer. It
appears by a rename and is never changed, so processes that make the same one do not disturb each
other; one that is not whole is made again. The folder may be deleted at any time.

Layout, little-endian: magic, u64 items I, prompts P, tokens N, bytes a token; then the columns
in the order of their fields; then the sha256 of all that.
"""

import hashlib
import json
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from nmoe.eval.columns import Columns, make_columns
from nmoe.eval.prompts import Encode
from nmoe.eval.tasks import Task

# Changes whenever rendering, regions, hashes or the layout of the file change.
RENDERER_VERSION = 1

_MAGIC = b"NMOECORE"
_NUM_SIZES = 4
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptCache:
    """Where rendered tasks are kept, and by whose tokens: `tokenizer` is a digest of it.

    With `threads` above 1, `encode` is called from so many threads at once. `warn` hears of
    files that are damaged or cannot be written; the evaluation goes on without them.
    """

    folder: Path
    tokenizer: str
    threads: int = 1
    warn: Callable[[str], None] = lambda text: None


class PromptSource:
    """The columns of tasks: from the cache where they are whole, else made and kept there."""

    def __init__(self, encode: Encode, bos_id: int, *, cache: PromptCache | None) -> None:
        self._encode, self._bos_id, self._cache = encode, bos_id, cache
        self._is_writable = True

    @property
    def has_cache(self) -> bool:
        """Whether what one process renders can be found by another."""
        return self._cache is not None

    def columns(self, task: Task) -> Columns:
        """The columns of `task`; raises CoreError as `make_columns` does."""
        if self._cache is None:
            return make_columns(task, encode=self._encode, bos_id=self._bos_id)
        path = self._cache.folder / f"{_key(task, self._cache.tokenizer, self._bos_id)}.prompts"
        found = self._read(path, self._cache)
        if found is not None:
            return found
        threads = self._cache.threads
        made = make_columns(task, encode=self._encode, bos_id=self._bos_id, threads=threads)
        if self._is_writable:
            self._write(path, made, self._cache)
        return made

    def _read(self, path: Path, cache: PromptCache) -> Columns | None:
        try:
            return read_columns(path)
        except ValueError as error:
            cache.warn(f"{path} is damaged: {error}. It is made again.")
        except OSError:
            pass  # not there yet; where the disk is at fault, keeping it will tell
        return None

    def _write(self, path: Path, columns: Columns, cache: PromptCache) -> None:
        try:
            write_columns(path, columns)
        except OSError as error:
            self._is_writable = False
            cache.warn(
                f"the prompts of the evaluation are not kept in {cache.folder}:"
                f" {error.strerror or error}. Free space or fix the permissions there; until then"
                " every evaluation renders them again."
            )


def write_columns(path: Path, columns: Columns) -> None:
    """Write a whole file or nothing; raises OSError."""
    arrays = [getattr(columns, field.name) for field in fields(Columns)]
    sizes = (len(columns.text_hash_I), len(columns.start_P), len(columns.tokens_N))
    parts = [
        _MAGIC,
        np.array([*sizes, columns.tokens_N.itemsize], dtype="<u8").tobytes(),
        *(np.ascontiguousarray(array) for array in arrays),
    ]
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_columns(path: Path) -> Columns:
    """The columns of a file, mapped into memory; raises ValueError for a file that is not whole."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    body, stated = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != stated or body[: len(_MAGIC)] != _MAGIC:
        raise ValueError("its content does not fit its sha256")
    items, prompts, tokens, token_bytes = np.frombuffer(body, "<u8", _NUM_SIZES, len(_MAGIC))
    at = len(_MAGIC) + 8 * _NUM_SIZES
    arrays = []
    for dtype, count in (
        ("<u8", items),
        ("<i8", items + 1),
        ("<i8", items + 1),
        ("<i4", items),
        ("<i4", prompts),
        ("<i4", prompts),
        (f"<u{token_bytes}", tokens),
    ):
        arrays.append(np.frombuffer(body, dtype, int(count), at))
        at += arrays[-1].nbytes
    names = [field.name for field in fields(Columns)]
    return Columns(**dict(zip(names, arrays, strict=True)))


def _key(task: Task, tokenizer: str, bos_id: int) -> str:
    parts = (task.task_type, task.num_shots, task.delimiter, task.rows)
    text = json.dumps((RENDERER_VERSION, tokenizer, bos_id, *parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
