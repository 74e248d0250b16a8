"""Text to token ids and back to bytes: one protocol, opened by name."""

from functools import cached_property
from typing import Protocol

import numpy as np

from nmoe.data.manifest import DataError


class Tokenizer(Protocol):
    """What preparation, validation and evaluation need of a tokenizer; EOS doubles as BOS."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text, without EOS."""
        ...

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids as an integer array [num_tokens]."""
        ...

    def byte_lengths(self) -> np.ndarray:
        """UTF-8 bytes that each id stands for, int64 [vocab_size]; EOS stands for none."""
        ...


class ByteTokenizer:
    """One id a UTF-8 byte, and EOS = 256; a lone surrogate becomes `?`."""

    name = "byte"
    vocab_size = 257
    eos_id = 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "replace"))

    def encode_array(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)

    def byte_lengths(self) -> np.ndarray:
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.ones(self.vocab_size, dtype=np.int64)
        lengths[self.eos_id] = 0
        return lengths


TOKENIZERS = {"byte": ByteTokenizer}


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`; DataError that lists the known ones otherwise."""
    if name not in TOKENIZERS:
        known = ", ".join(sorted(TOKENIZERS))
        raise DataError(f"unknown tokenizer: got {name!r}, expected one of: {known}.")
    return TOKENIZERS[name]()
