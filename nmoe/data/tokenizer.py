"""Text to token ids and back to bytes: one protocol, opened by name."""

import base64
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from nmoe.data.manifest import DataError
from nmoe.paths import data_root

GPT2_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
# Pinned by tiktoken for the file at GPT2_URL: the ranks of GPT-2, without its end-of-text token.
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_FILE_NAME = "gpt2.tiktoken"
END_OF_TEXT = "<|endoftext|>"


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


class Gpt2Tokenizer:
    """The byte-pair encoding of GPT-2 by tiktoken, and EOS = 50256.

    `<|endoftext|>` in a text is ordinary text, and a lone surrogate becomes `?`.
    """

    name = "gpt2"
    vocab_size = 50257
    eos_id = 50256

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self._encoding = encoding

    @classmethod
    def open(cls, path: Path | None = None) -> "Gpt2Tokenizer":
        """From the ranks in `path`, else `<data root>/tokenizers/gpt2.tiktoken`, else by tiktoken.

        tiktoken reads its own cache, or fetches the vocabulary into it. DataError when all fail.
        """
        placed = data_root().tokenizer(GPT2_FILE_NAME)
        if path or placed.exists():
            return cls(_gpt2_encoding(path or placed))
        try:
            return cls(tiktoken.get_encoding(cls.name))
        except (OSError, ValueError) as error:  # the errors of requests are OSErrors
            reason = type(error).__name__
            raise DataError(
                f"no GPT-2 vocabulary: got no {placed}, and tiktoken could not fetch it ({reason})."
                f" Fetch {GPT2_URL} elsewhere and put it there as {GPT2_FILE_NAME},"
                " or name the file: gpt2:/path/to/gpt2.tiktoken."
            ) from None

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(_without_surrogates(text))

    def encode_array(self, text: str) -> np.ndarray:
        text = _without_surrogates(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def byte_lengths(self) -> np.ndarray:
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        bytes_of = self._encoding.decode_single_token_bytes
        lengths = np.array([len(bytes_of(i)) for i in range(self.vocab_size)], dtype=np.int64)
        lengths[self.eos_id] = 0
        return lengths


def _gpt2_encoding(path: Path) -> tiktoken.Encoding:
    """The encoding of a ranks file: a line holds a token in base64 and its id."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the GPT-2 vocabulary {path}: {error.strerror}. Fetch {GPT2_URL} there."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != GPT2_SHA256:
        raise DataError(
            f"{path} is not the GPT-2 vocabulary: got sha256 {found[:12]}…, expected"
            f" {GPT2_SHA256[:12]}…. Fetch {GPT2_URL} again."
        )
    pairs = (line.split() for line in content.splitlines())
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens={END_OF_TEXT: Gpt2Tokenizer.eos_id},
        explicit_n_vocab=Gpt2Tokenizer.vocab_size,
    )


def _without_surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


TOKENIZERS = {"byte": ByteTokenizer, "gpt2": Gpt2Tokenizer.open}


def check_name(name: str) -> None:
    """DataError when `name` is neither a tokenizer nor `gpt2:FILE`; reads nothing."""
    if name not in TOKENIZERS and not name.startswith("gpt2:"):
        known = ", ".join(sorted(TOKENIZERS))
        raise DataError(f"unknown tokenizer: got {name!r}, expected one of: {known}, gpt2:FILE.")


def open_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`; `gpt2:FILE` reads its ranks from FILE. DataError otherwise."""
    check_name(name)
    if name in TOKENIZERS:
        return TOKENIZERS[name]()
    return Gpt2Tokenizer.open(Path(name.partition(":")[2]).expanduser())
