"""Text that a training set shares with a validation set, found by hashes of token windows.

Validation is hashed at every token; training window after window, at the start of every document
and at the end of a shard. So every shared run of 2 * window - 1 tokens or more is found, and of a
document that is copied whole also `window` tokens. Shorter runs are found by chance or not at all.

    hash = sum over i of mix(token_i) * BASE^i  mod 2^64        (mix: splitmix64)

Two different windows have equal hashes about once in 2^64 pairs. Memory is some 70 bytes a
validation token, whatever the size of the training set.

Legend: M validation windows, N window tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmoe.data.index import read_index
from nmoe.data.loader import mix64
from nmoe.data.manifest import DataError, Manifest, Shard
from nmoe.data.shards import TokenStream, open_shard

# As much text as 50 tokens of a large vocabulary, the length from which repeated strings count as
# duplicates in Lee et al. 2021, "Deduplicating Training Data Makes Language Models Better".
WINDOW_BYTES = 200
MIN_WINDOW = 8
MAX_VALIDATION_TOKENS = 1 << 25
BASE = 0x9E3779B97F4A7C15  # odd, and 5 mod 8: its powers differ in few trailing zeros
CHUNK_TOKENS = 1 << 22
FILTER_BITS = 26  # at most 64 MiB, of which validation of 10 million tokens fills a seventh
NUM_EXAMPLES = 5
# Of the validation tokens: licences and idioms recur in disjoint documents of one corpus.
MAX_OVERLAP = 0.01

Progress = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A validation document, how much of it is shared, and where one such window lies in both."""

    document: int
    shared_tokens: int
    token: int
    train_shard: str
    train_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """What of the validation set lies in windows that training holds as well."""

    window: int
    tokens: int
    shared_tokens: int
    documents: int
    shared_documents: int
    expected_false: float
    examples: tuple[Example, ...]

    @property
    def share(self) -> float:
        """Shared part of the validation tokens."""
        return self.shared_tokens / self.tokens

    def check(self, *, at_most: float) -> None:
        """DataError when a larger share than that is shared."""
        if not self.share <= at_most:
            raise DataError(
                f"validation text is in the training set: got {self.share:.3%} of its tokens,"
                f" expected at most {at_most:.3%}. Leave those documents out of training, or state"
                " with --max-overlap what may be shared."
            )

    def lines(self) -> list[str]:
        """The findings as text."""
        return [
            f"{self.shared_tokens:,} of {self.tokens:,} validation tokens ({self.share:.3%}) lie in"
            f" windows of {self.window} tokens that training holds as well;"
            f" {self.shared_documents:,} of {self.documents:,} documents have some",
            *(
                f"  document {each.document}: {each.shared_tokens:,} shared tokens, such as token"
                f" {each.token:,} = {each.train_shard} token {each.train_token:,}"
                for each in self.examples
            ),
            f"windows expected to be equal by chance of the hash: {self.expected_false:.1g}",
        ]


def find_overlap(
    train: Path, validation: Path, *, window: int | None = None, progress: Progress | None = None
) -> Overlap:
    """Compare two datasets; `progress` gets (training tokens done, in total, done).

    A window is as many tokens as make WINDOW_BYTES of validation text, unless it is named. Raises
    DataError for datasets that cannot be compared.
    """
    held_out, trained = TokenStream(validation), TokenStream(train)
    _check(trained.manifest, held_out.manifest)
    if window is None:
        manifest = held_out.manifest
        window = max(
            MIN_WINDOW, round(WINDOW_BYTES * manifest.total_tokens / max(1, manifest.text_bytes))
        )
    if not 1 <= window <= len(held_out):
        raise DataError(
            f"window: got {window} tokens, expected 1 to the {len(held_out)} of {validation}."
        )
    hasher = _Hasher(window, vocab_size=held_out.manifest.vocab_size)
    found = _Found(hasher, held_out)
    num_windows, shard_start, shard_starts, total = 0, 0, {}, len(trained)
    for shard in _in_order(trained.manifest):
        shard_starts[shard.name] = shard_start
        path = train / shard.name
        tokens = open_shard(path, tokens=shard.tokens)
        starts = read_index(path.with_suffix(".idx"), tokens=shard.tokens)[:, 0].astype(np.int64)
        for end, at, hashes in _train_hashes(tokens, starts, hasher):
            found.look_up(hashes, shard_start + at)
            num_windows += len(hashes)
            if progress:
                progress(shard_start + end, total, shard_start + end)
        shard_start += shard.tokens
    return found.overlap(
        borders=_document_borders(validation, held_out.manifest),
        shard_starts=shard_starts,
        num_windows=num_windows,
    )


class _Hasher:
    """Hashes of windows of N tokens, uint64."""

    def __init__(self, window: int, *, vocab_size: int) -> None:
        self.window = window
        self._mixed = mix64(np.arange(vocab_size, dtype=np.uint64))
        self._powers = np.cumprod(np.full(window, BASE, dtype=np.uint64))

    def rows(self, windows: np.ndarray) -> np.ndarray:
        """Of each row of [rows, N]."""
        return (self._mixed[windows] * self._powers).sum(axis=1, dtype=np.uint64)

    def everywhere(self, tokens: np.ndarray) -> np.ndarray:
        """Of the windows at every token, uint64 [len(tokens) - N + 1]."""
        mixed = self._mixed[tokens]
        hashes = np.zeros(len(tokens) - self.window + 1, dtype=np.uint64)
        for offset, power in enumerate(self._powers):
            hashes += mixed[offset : offset + len(hashes)] * power
        return hashes


class _Found:
    """The validation windows, sorted by hash, and for each hash where training first had it."""

    def __init__(self, hasher: _Hasher, held_out: TokenStream) -> None:
        self._window, self._tokens = hasher.window, len(held_out)
        tokens = np.empty(len(held_out), dtype=np.uint32)
        held_out.read_into(tokens, 0)
        hashes_M = hasher.everywhere(tokens)
        self._order_M = np.argsort(hashes_M)
        self._sorted_M = hashes_M[self._order_M]
        self._train_at_M = np.full(len(hashes_M), -1, dtype=np.int64)
        bits = min(FILTER_BITS, len(hashes_M).bit_length() + 4)
        self._shift = np.uint64(64 - bits)
        self._filter = np.zeros(1 << bits, dtype=bool)
        self._filter[hashes_M >> self._shift] = True

    def look_up(self, hashes: np.ndarray, at: np.ndarray) -> None:
        """Note which of the training windows `hashes` at tokens `at` validation has as well."""
        maybe = np.flatnonzero(self._filter[hashes >> self._shift])
        hashes, first = np.unique(hashes[maybe], return_index=True)
        places = np.searchsorted(self._sorted_M, hashes)
        places = np.minimum(places, len(self._sorted_M) - 1)
        is_new = (self._sorted_M[places] == hashes) & (self._train_at_M[places] < 0)
        self._train_at_M[places[is_new]] = at[maybe[first[is_new]]]

    def overlap(
        self, *, borders: np.ndarray, shard_starts: dict[str, int], num_windows: int
    ) -> Overlap:
        """Sum up; `borders` are those of the validation documents, [documents + 1]."""
        # only the first of equal hashes was noted
        run_starts = np.searchsorted(self._sorted_M, self._sorted_M)
        train_at = self._train_at_M[run_starts]
        at, train_at = self._order_M[train_at >= 0], train_at[train_at >= 0]
        by_place = np.argsort(at)
        at, train_at = at[by_place], train_at[by_place]
        edges = np.zeros(self._tokens + 1, dtype=np.int32)
        np.add.at(edges, at, 1)
        np.add.at(edges, at + self._window, -1)
        shared = np.concatenate([[0], np.cumsum(np.cumsum(edges[:-1]) > 0)])
        shared_of = np.diff(shared[borders])
        names, starts = list(shard_starts), list(shard_starts.values())
        examples: list[Example] = []
        for document in np.argsort(-shared_of, kind="stable")[:NUM_EXAMPLES].tolist():
            if not shared_of[document]:
                break
            # a window that ends in the document may have begun in the one before
            i = int(np.searchsorted(at, borders[document] - self._window + 1))
            number = int(np.searchsorted(starts, train_at[i], side="right")) - 1
            examples.append(
                Example(
                    document=document,
                    shared_tokens=int(shared_of[document]),
                    token=int(at[i]),
                    train_shard=names[number],
                    train_token=int(train_at[i]) - starts[number],
                )
            )
        return Overlap(
            window=self._window,
            tokens=self._tokens,
            shared_tokens=int(shared[-1]),
            documents=len(shared_of),
            shared_documents=int(np.count_nonzero(shared_of)),
            expected_false=num_windows * len(self._sorted_M) / 2**64,
            examples=tuple(examples),
        )


def _train_hashes(
    tokens: np.ndarray, starts: np.ndarray, hasher: _Hasher
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(end of the chunk, places, hashes) of the windows of a shard, a chunk at a time."""
    width = hasher.window
    step = max(1, CHUNK_TOKENS // width) * width
    # and the last window, which the stride may miss
    starts = np.unique(np.append(starts, len(tokens) - width))
    starts = starts[(starts >= 0) & (starts + width <= len(tokens))]
    for begin in range(0, len(tokens), step):
        chunk = tokens[begin : begin + step]
        rows = chunk[: len(chunk) // width * width].reshape(-1, width)
        here = starts[np.searchsorted(starts, begin) : np.searchsorted(starts, begin + step)]
        at = np.concatenate([begin + width * np.arange(len(rows)), here])
        first = hasher.rows(tokens[here[:, None] + np.arange(width)])
        yield begin + len(chunk), at, np.concatenate([hasher.rows(rows), first])


def _in_order(manifest: Manifest) -> list[Shard]:
    """The shards as the token stream has them."""
    return sorted(manifest.shards, key=lambda shard: shard.name)


def _document_borders(folder: Path, manifest: Manifest) -> np.ndarray:
    """Where the documents of a whole dataset start, and the end of the last."""
    borders, start = [np.zeros(1, dtype=np.int64)], 0
    for shard in _in_order(manifest):
        index = read_index((folder / shard.name).with_suffix(".idx"), tokens=shard.tokens)
        borders.append(start + index[:, 1].astype(np.int64))
        start += shard.tokens
    return np.concatenate(borders)


def _check(train: Manifest, validation: Manifest) -> None:
    kinds = [(each.tokenizer, each.vocab_size, each.eos_id) for each in (train, validation)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"datasets cannot be compared: got tokens of {kinds[0][0]} and {kinds[1][0]},"
            " expected one tokenizer. Prepare both with the same."
        )
    if validation.total_tokens > MAX_VALIDATION_TOKENS:
        raise DataError(
            f"{validation.name} is too large to be the validation side: got"
            f" {validation.total_tokens:,} tokens, expected at most {MAX_VALIDATION_TOKENS:,}."
            " Name the training set first and the validation set behind --against."
        )
