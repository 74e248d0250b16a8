"""Text to token ids and back to bytes: one protocol, opened by name."""

import base64
import hashlib
import importlib.util
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
import tiktoken
from tiktoken_ext import openai_public

from nmoe.data.download import DownloadError, check_base_url, download
from nmoe.data.json_tokenizer import JsonTokenizer
from nmoe.data.manifest import DataError, tokenizer_id
from nmoe.paths import data_root, locked

END_OF_TEXT = "<|endoftext|>"
GPT2 = "gpt2"
JSON_SUFFIX = ".json"
# The largest, o200k_base, has 3.6 MB.
MAX_RANKS_BYTES = 16 << 20


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


class TiktokenTokenizer:
    """An encoding of tiktoken, from a file of its ranks.

    `<|endoftext|>` in a text is ordinary text, and a lone surrogate becomes `?`.
    """

    def __init__(self, name: str, encoding: tiktoken.Encoding) -> None:
        self.name = name
        self.vocab_size: int = encoding.n_vocab
        self.eos_id: int = encoding.eot_token
        self._encoding = encoding

    @classmethod
    def open(
        cls, name: str, path: Path | None = None, *, mirror: str | None = None
    ) -> "TiktokenTokenizer":
        """From the ranks in `path`, else in `<data root>/tokenizers`, where those of GPT-2 are
        fetched to when they are missing, from `mirror` if it has them. DataError when all fail.
        """

        def load(url: str, expected_hash: str) -> dict[bytes, int]:
            ranks = path or _placed_ranks(name, url, expected_hash, mirror=mirror)
            return _read_ranks(ranks, name=name, url=url, sha256=expected_hash)

        # The ranks of r50k_base are those of GPT-2, in the newer format of files.
        definition = _definition("r50k_base" if name == GPT2 else name, load)
        return cls(name, tiktoken.Encoding(**{**definition, "name": name}))

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(_without_surrogates(text))

    def encode_array(self, text: str) -> np.ndarray:
        text = _without_surrogates(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def byte_lengths(self) -> np.ndarray:
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token in self._encoding.token_byte_values():
            lengths[self._encoding.encode_single_token(token)] = len(token)
        return lengths


def _definition(name: str, load: Callable[[str, str], dict[bytes, int]]) -> dict[str, Any]:
    """What tiktoken says of an encoding: pattern, special tokens, and the ranks by `load`.

    tiktoken would fetch the ranks itself, into a place of its own and without a mirror. This runs
    its definitions in a copy of their module in which the loading function is another.
    """
    spec = importlib.util.find_spec(openai_public.__name__)
    assert spec is not None
    assert spec.loader is not None
    definitions: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(definitions)
    definitions.load_tiktoken_bpe = load
    return definitions.ENCODING_CONSTRUCTORS[name]()


def _placed_ranks(name: str, url: str, sha256: str, *, mirror: str | None) -> Path:
    """The file in the data root; that of GPT-2 is fetched there when it is missing."""
    file_name = "gpt2.tiktoken" if name == GPT2 else url.rpartition("/")[2]
    path = data_root().tokenizer(file_name)
    if path.exists():
        return path
    way_out = f"Fetch {url} elsewhere and put it at {path}, or name the file: {name}:/path/to/file"
    if name != GPT2:
        raise DataError(f"no vocabulary of {name} in {path.parent}. {way_out}.")
    addresses = [url] if mirror is None else [check_base_url(mirror) + urlsplit(url).path, url]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):
            for number, address in enumerate(addresses, start=1):
                try:
                    if not path.exists():
                        list(download(address, path, digest=sha256, max_bytes=MAX_RANKS_BYTES))
                except DownloadError as error:
                    if number == len(addresses):
                        raise DataError(f"no GPT-2 vocabulary: {error}. {way_out}.") from None
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}. {way_out}.") from None
    return path


def _read_ranks(path: Path, *, name: str, url: str, sha256: str) -> dict[bytes, int]:
    """The ranks of a file: a line holds a token in base64 and its id."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read the vocabulary of {name} {path}: {error.strerror}. Fetch {url} there."
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path} is not the vocabulary of {name}: got sha256 {found[:12]}…, expected"
            f" {sha256[:12]}…. Fetch {url} again."
        )
    pairs = (line.split() for line in content.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _without_surrogates(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


ENCODINGS = tuple(sorted(openai_public.ENCODING_CONSTRUCTORS))


def check_name(name: str) -> None:
    """DataError when `name` is no tokenizer; reads nothing."""
    kind = name.partition(":")[0]
    if name != "byte" and kind not in ENCODINGS and not kind.endswith(JSON_SUFFIX):
        raise DataError(
            f"unknown tokenizer: got {name!r}, expected one of: byte, {', '.join(ENCODINGS)},"
            " one of these with :RANKS_FILE behind it, or FILE.json."
        )


def open_tokenizer(name: str, *, mirror: str | None = None) -> Tokenizer:
    """The tokenizer called `name`; DataError when there is none or its files cannot be had.

    `byte`; an encoding of tiktoken, `gpt2` or `gpt2:RANKS_FILE`; or a file of the `tokenizers`
    library, `FILE.json` or `FILE.json:EOS_TOKEN`. `mirror` is where missing ranks are looked for.
    """
    check_name(name)
    if name == "byte":
        return ByteTokenizer()
    kind, _, rest = name.partition(":")
    if kind in ENCODINGS:
        return TiktokenTokenizer.open(
            kind, Path(rest).expanduser() if rest else None, mirror=mirror
        )
    path = Path(kind).expanduser()
    try:
        return JsonTokenizer(path.read_bytes(), name=tokenizer_id(name), eos=rest or None)
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}.") from None
    except DataError as error:
        raise DataError(f"cannot use the tokenizer {path}: {error}.") from None
