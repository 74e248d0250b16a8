"""Tokenizers: the byte one is UTF-8 and an EOS; the protocol's parts agree with one another."""

import re
import shutil
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from nmoe.data.manifest import DataError
from nmoe.data.tokenizer import Tokenizer, open_tokenizer


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


@pytest.fixture(scope="module")
def ranks(real_data: Path) -> Path:
    path = real_data / "gpt2_bpe" / "gpt2.tiktoken"
    if not path.is_file():
        pytest.skip(f"no GPT-2 vocabulary among the real test data: {path}")
    return path


@pytest.fixture(scope="module")
def gpt2(ranks: Path) -> Tokenizer:
    return open_tokenizer(f"gpt2:{ranks}")


def test_gpt2_encodes_as_published(gpt2: Tokenizer) -> None:
    assert (gpt2.name, gpt2.vocab_size, gpt2.eos_id) == ("gpt2", 50257, 50256)
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.byte_lengths().shape == (50257,)
    assert gpt2.byte_lengths()[50256] == 0


def test_gpt2_end_of_text_is_ordinary_when_it_is_in_a_text(gpt2: Tokenizer) -> None:
    assert gpt2.encode("<|endoftext|>") == [27, 91, 437, 1659, 5239, 91, 29]
    assert gpt2.encode_array("<|endoftext|>").tolist() == gpt2.encode("<|endoftext|>")


@given(text=st.text())
def test_gpt2_lengths_of_the_ids_are_those_of_the_text(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)

    assert gpt2.encode_array(text).tolist() == ids
    assert int(gpt2.byte_lengths()[ids].sum()) == len(text.encode())


def test_gpt2_reads_a_lone_surrogate_as_a_question_mark(gpt2: Tokenizer) -> None:
    assert gpt2.encode("a\ud800 \U0001f600") == gpt2.encode("a? \U0001f600")
    assert gpt2.encode_array("a\ud800").tolist() == gpt2.encode("a?")


def test_gpt2_is_found_in_the_data_root(ranks: Path, data_dir: Path) -> None:
    (data_dir / "tokenizers").mkdir()
    shutil.copy(ranks, data_dir / "tokenizers" / "gpt2.tiktoken")

    assert open_tokenizer("gpt2").encode("Hello world") == [15496, 995]


def test_gpt2_error_names_file_and_place_when_there_is_no_network(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_name: str) -> tiktoken.Encoding:
        raise ConnectionError

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    placed = re.escape(str(data_dir / "tokenizers" / "gpt2.tiktoken"))

    with pytest.raises(DataError, match=rf"{placed}.*Fetch https://.*r50k_base\.tiktoken.*gpt2:/"):
        open_tokenizer("gpt2")


def test_gpt2_file_is_refused_when_it_is_missing_or_another(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the GPT-2 vocabulary .*No such file"):
        open_tokenizer(f"gpt2:{tmp_path / 'none'}")
    (tmp_path / "other").write_text("IQ== 0\n")
    with pytest.raises(DataError, match="is not the GPT-2 vocabulary: got sha256"):
        open_tokenizer(f"gpt2:{tmp_path / 'other'}")
