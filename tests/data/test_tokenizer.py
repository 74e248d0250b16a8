"""Tokenizers: the byte one is UTF-8 and an EOS; the protocol's parts agree with one another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmoe.data.manifest import DataError
from nmoe.data.tokenizer import open_tokenizer


@given(text=st.text())
def test_byte_ids_are_the_utf8_bytes(text: str) -> None:
    tokenizer = open_tokenizer("byte")

    ids = tokenizer.encode(text)

    assert bytes(ids).decode("utf-8") == text
    assert tokenizer.encode_array(text).tolist() == ids
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode())


def test_byte_eos_stands_outside_all_text() -> None:
    tokenizer = open_tokenizer("byte")

    assert (tokenizer.name, tokenizer.vocab_size, tokenizer.eos_id) == ("byte", 257, 256)
    assert tokenizer.byte_lengths().shape == (257,)
    assert tokenizer.byte_lengths()[256] == 0


def test_byte_encodes_a_lone_surrogate_as_a_question_mark() -> None:
    assert open_tokenizer("byte").encode("a\ud800") == [97, 63]


def test_opening_lists_the_known_names_when_the_name_is_unknown() -> None:
    with pytest.raises(DataError, match=r"unknown tokenizer: got 'gpt5', expected one of: byte"):
        open_tokenizer("gpt5")
