"""Documents to tokens in threads: read in order, encoded in chunks, handed out in order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from nmoe.data.documents import Document, Place
from nmoe.data.shards import token_dtype
from nmoe.data.tokenizer import Tokenizer

# A task for a thread: large enough to hide the hand-over, small enough to share the work evenly.
CHUNK_CHARS = 1 << 18
CHUNK_DOCUMENTS = 1 << 10
# Chunks in memory for each thread: the others go on while one meets a book.
CHUNKS_AHEAD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """One document: its tokens with EOS (none when it is empty), and the place behind it."""

    tokens: np.ndarray
    text_bytes: int
    place: Place


def encode_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, *, workers: int
) -> Generator[Encoded]:
    """The documents in their order, whatever the number of threads.

    CHUNKS_AHEAD chunks a thread are in memory. Threads suffice: tiktoken lets go of the GIL.
    """
    pending: deque[Future[list[Encoded]]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="encode")
    try:
        for chunk in _chunks(documents):
            pending.append(pool.submit(_encode, chunk, tokenizer))
            if len(pending) >= CHUNKS_AHEAD * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    chars = 0
    for document in documents:
        chunk.append(document)
        chars += len(document.text)
        if chars >= CHUNK_CHARS or len(chunk) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def _encode(chunk: list[Document], tokenizer: Tokenizer) -> list[Encoded]:
    dtype = token_dtype(tokenizer.vocab_size)
    encoded: list[Encoded] = []
    for document in chunk:
        ids = tokenizer.encode_array(document.text) if document.text else None
        tokens = np.empty(0 if ids is None else len(ids) + 1, dtype=dtype)
        if ids is not None:
            tokens[:-1] = ids
            tokens[-1] = tokenizer.eos_id
        text_bytes = len(document.text.encode("utf-8", "replace"))
        encoded.append(Encoded(tokens=tokens, text_bytes=text_bytes, place=document.place))
    return encoded
