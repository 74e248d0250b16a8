"""A tokenizer of the `tokenizers` library, from the JSON file that it writes."""

import json
import re
from functools import cached_property
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Library

from nmoe.data.manifest import DataError

# Ends of a text by custom, when nothing is said of which token it is.
KNOWN_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Letters, signs and scripts: a vocabulary that cannot encode one of them fails at once.
PROBE = "".join(map(chr, range(32, 127))) + "\n\u6771\U0001f600"
SPACE = "\u2581"  # what SentencePiece writes for a space


class JsonTokenizer:
    """The ids of a JSON file, without the tokens it would add, cut off or pad with.

    Special tokens in a text are ordinary text, and a lone surrogate becomes `?`.
    """

    def __init__(self, content: bytes, *, name: str, eos: str | None = None) -> None:
        """`eos` is the token that ends a text, by default the only known one that the file has.

        DataError, without the name of the file, when it cannot be used.
        """
        self.name = name
        self._raw, self._library = _read(content)
        self._library.encode_special_tokens = True
        self._library.no_truncation()
        self._library.no_padding()
        self.vocab_size = max(self._library.get_vocab(with_added_tokens=True).values()) + 1
        self.eos_id = self._find_eos(eos)

    def encode(self, text: str) -> list[int]:
        if not text.isascii():
            text = text.encode("utf-8", "replace").decode("utf-8")
        # `encode` would also work out where each token stands in the text: half the speed.
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_array(self, text: str) -> np.ndarray:
        return np.array(self.encode(text), dtype=np.uint32)

    def byte_lengths(self) -> np.ndarray:
        return self._byte_lengths

    @cached_property
    def _byte_lengths(self) -> np.ndarray:
        """A character stands for a byte in a byte-level vocabulary, else for its UTF-8."""
        is_byte_level = "ByteLevel" in json.dumps(
            [self._raw["decoder"], self._raw["pre_tokenizer"]]
        )
        special = {each["content"] for each in self._raw["added_tokens"] if each["special"]}
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._library.get_vocab(with_added_tokens=True).items():
            if token in special:
                continue
            if is_byte_level:
                lengths[number] = len(token)
            elif BYTE_TOKEN.fullmatch(token):
                lengths[number] = 1
            else:
                lengths[number] = len(token.replace(SPACE, " ").encode())
        return lengths

    def _find_eos(self, eos: str | None) -> int:
        special = [each["content"] for each in self._raw["added_tokens"] if each["special"]]
        found = [eos] if eos is not None else [each for each in special if each in KNOWN_EOS]
        if len(found) != 1:
            raise DataError(
                f"nothing tells which token ends a text: got {', '.join(special) or 'none'},"
                " expected one. Name it behind the file: FILE.json:TOKEN"
            )
        number = self._library.token_to_id(found[0])
        if number is None or found[0] not in special:
            raise DataError(f"{found[0]!r} is no special token of it, so it cannot end a text")
        if number in self.encode(found[0]):
            raise DataError(f"a text that spells {found[0]} would get the token that ends a text")
        return number


def _read(content: bytes) -> tuple[dict[str, Any], Library]:
    try:
        library = Library.from_str(content.decode("utf-8"))
        library.encode_batch_fast([PROBE])
        # The file as the library understands it: every key is there.
        return json.loads(library.to_str()), library
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower
        raise DataError(
            f"no file of the `tokenizers` library that encodes any text ({error})"
        ) from None
