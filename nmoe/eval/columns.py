"""The prompts of a whole task as a few arrays, in which what the rows of an item share stands once.

Legend: I items, P prompts, N tokens kept.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from nmoe.eval.prompts import (
    Encode,
    Item,
    Prompt,
    common_prefix,
    encode_prompts,
    fit_item,
    hash_texts,
    render,
)
from nmoe.eval.tasks import Task

# Items that a thread renders at a time.
_CHUNK = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What each item adds to a batch [I]: rows, tokens of its longest row, scored positions."""

    num_rows: np.ndarray
    num_tokens: np.ndarray
    num_positions: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """All prompts of a task, not cropped yet.

    Item i has the prompts `first[i]` up to `first[i + 1]` and the tokens `offset[i]` up to
    `offset[i + 1]`: those its rows begin with alike (`shared[i]` of them), then the rest of each
    row. Row p has `length[p]` tokens and scores those from `start[p]` on.
    """

    text_hash_I: np.ndarray
    first_I: np.ndarray
    offset_I: np.ndarray
    shared_I: np.ndarray
    start_P: np.ndarray
    length_P: np.ndarray
    tokens_N: np.ndarray

    def item(self, task: Task, index: int, *, max_tokens: int | None) -> Item:
        """Item `index`, cropped to `max_tokens`; raises CoreError as `fit_item` does."""
        shared, at = int(self.shared_I[index]), int(self.offset_I[index])
        head = self.tokens_N[at : at + shared]
        at += shared
        prompts = []
        for p in range(self.first_I[index], self.first_I[index + 1]):
            length = int(self.length_P[p])
            tail = self.tokens_N[at : at + length - shared]
            at += length - shared
            row = np.concatenate((head, tail), dtype=np.int32, casting="unsafe")
            prompts.append(Prompt(tokens=row, start=int(self.start_P[p]), end=length))
        text_hash = int(self.text_hash_I[index])
        return fit_item(task, index, prompts, text_hash=text_hash, max_tokens=max_tokens)

    def sizes(self, task: Task, *, max_tokens: int | None) -> Sizes:
        """The sizes of all items, cropped; raises CoreError for the first that does not fit."""
        length_P = self.length_P
        if max_tokens is not None:
            length_P = np.minimum(length_P, max_tokens)
        start_P = self.start_P - (self.length_P - length_P)
        scored_P = np.where(start_P > 0, length_P - start_P, 0)
        misfits = start_P < 0
        if task.task_type == "language_modeling":
            misfits |= scored_P == 0
        if misfits.any():
            index = int(np.searchsorted(self.first_I, misfits.argmax(), side="right")) - 1
            self.item(task, index, max_tokens=max_tokens)
        return Sizes(
            num_rows=np.diff(self.first_I),
            num_tokens=np.maximum.reduceat(length_P, self.first_I[:-1]),
            num_positions=np.add.reduceat(scored_P, self.first_I[:-1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packed:
    """One item on its way into the columns."""

    text_hash: int
    shared: int
    starts: list[int]
    lengths: list[int]
    tokens: np.ndarray


def make_columns(task: Task, *, encode: Encode, bos_id: int, threads: int = 1) -> Columns:
    """Render and encode all items of a task; raises CoreError as `encode_prompts` does.

    With more than one thread, `encode` is called from all of them at once.
    """
    items = list(_packed_items(task, encode=encode, bos_id=bos_id, threads=threads))
    tokens_N = np.concatenate([item.tokens for item in items])
    return Columns(
        text_hash_I=np.array([item.text_hash for item in items], dtype=np.uint64),
        first_I=_ends([len(item.lengths) for item in items]),
        offset_I=_ends([len(item.tokens) for item in items]),
        shared_I=np.array([item.shared for item in items], dtype=np.int32),
        start_P=np.array([start for item in items for start in item.starts], dtype=np.int32),
        length_P=np.array([length for item in items for length in item.lengths], dtype=np.int32),
        tokens_N=tokens_N.astype(np.uint16 if tokens_N.max() < 1 << 16 else np.uint32),
    )


def _packed_items(task: Task, *, encode: Encode, bos_id: int, threads: int) -> Iterator[_Packed]:
    def pack(indices: Sequence[int]) -> list[_Packed]:
        return [_pack(task, index, encode=encode, bos_id=bos_id) for index in indices]

    count = len(task.rows)
    chunks = [range(at, min(at + _CHUNK, count)) for at in range(0, count, _CHUNK)]
    if threads == 1:
        for chunk in chunks:
            yield from pack(chunk)
        return
    with ThreadPoolExecutor(threads) as pool:
        for packed in pool.map(pack, chunks):
            yield from packed


def _pack(task: Task, index: int, *, encode: Encode, bos_id: int) -> _Packed:
    texts = render(task, index)
    prompts = encode_prompts(task, index, texts, encode=encode, bos_id=bos_id)
    rows = [prompt.tokens for prompt in prompts]
    shared = common_prefix(rows)
    return _Packed(
        text_hash=hash_texts(texts),
        shared=shared,
        starts=[prompt.start for prompt in prompts],
        lengths=[len(row) for row in rows],
        tokens=np.concatenate([rows[0][:shared], *(row[shared:] for row in rows)]),
    )


def _ends(counts: Sequence[int]) -> np.ndarray:
    """Where each item begins, and the end of the last."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
