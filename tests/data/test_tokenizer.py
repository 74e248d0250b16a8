"""Tokenizers: the byte one is UTF-8 and an EOS; the protocol's parts agree with one another."""

import hashlib
import re
import shutil
import string
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nmoe.data import tokenizer as tokenizer_module
from nmoe.data.manifest import DataError, tokenizer_id
from nmoe.data.tokenizer import Tokenizer, open_tokenizer
from tests.data.hub_server import Hub, serve


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


@pytest.mark.parametrize("name", ["gpt5", "gpt5:FILE", "", "byte:x", "json"])
def test_opening_lists_the_known_names_when_the_name_is_unknown(name: str) -> None:
    with pytest.raises(DataError, match=rf"unknown tokenizer: got '{name}', .*byte, .*FILE\.json"):
        open_tokenizer(name)


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


GPT2_PATH = "/encodings/r50k_base.tiktoken"


@pytest.fixture
def mirror(ranks: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A mirror that has the ranks of GPT-2."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub = Hub("a/b", {})
    hub.others = {GPT2_PATH: ranks.read_bytes()}
    with serve(hub) as served:
        yield served


def test_gpt2_is_fetched_once_when_it_is_missing(mirror: Hub, data_dir: Path) -> None:
    for _ in range(2):
        assert open_tokenizer("gpt2", mirror=mirror.url).encode("Hello world") == [15496, 995]

    assert mirror.asked == [(GPT2_PATH, None)]
    assert [path.name for path in (data_dir / "tokenizers").iterdir()] == ["gpt2.tiktoken"]


def test_gpt2_error_names_file_and_place_when_there_is_no_network(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    placed = re.escape(str(data_dir / "tokenizers" / "gpt2.tiktoken"))

    with pytest.raises(DataError, match=rf"Fetch https://.*r50k_base\.tiktoken.*{placed}.*gpt2:/"):
        open_tokenizer("gpt2", mirror="http://127.0.0.1:9")


def test_gpt2_is_refused_when_the_mirror_sends_something_else(
    mirror: Hub, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    mirror.others = {GPT2_PATH: b"IQ== 0\n"}

    with pytest.raises(DataError, match="no GPT-2 vocabulary"):
        open_tokenizer("gpt2", mirror=mirror.url)
    assert list((data_dir / "tokenizers").iterdir()) == []


def test_ranks_are_refused_when_they_are_missing_or_others(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the vocabulary of gpt2 .*No such file"):
        open_tokenizer(f"gpt2:{tmp_path / 'none'}")
    (tmp_path / "other").write_text("IQ== 0\n")
    with pytest.raises(DataError, match="is not the vocabulary of o200k_base: got sha256"):
        open_tokenizer(f"o200k_base:{tmp_path / 'other'}")


@pytest.mark.parametrize(
    ("name", "file"),
    [("cl100k_base", "cl100k_base"), ("p50k_edit", "p50k_base"), ("o200k_harmony", "o200k_base")],
)
def test_encoding_names_the_file_to_fetch_and_its_place_when_it_is_missing(
    data_dir: Path, name: str, file: str
) -> None:
    placed = re.escape(str(data_dir / "tokenizers" / f"{file}.tiktoken"))

    with pytest.raises(DataError, match=rf"Fetch https://.*/{file}\.tiktoken .*{placed}.*{name}:/"):
        open_tokenizer(name)


def test_encoding_of_the_same_ranks_is_the_same_under_its_own_name(
    ranks: Path, gpt2: Tokenizer, data_dir: Path
) -> None:
    (data_dir / "tokenizers").mkdir()
    shutil.copy(ranks, data_dir / "tokenizers" / "r50k_base.tiktoken")

    other = open_tokenizer("r50k_base")

    assert (other.name, other.vocab_size, other.eos_id) == ("r50k_base", 50257, 50256)
    assert other.encode("Hello <|endoftext|>") == gpt2.encode("Hello <|endoftext|>")


def test_encoding_has_the_vocabulary_of_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """On ranks of single bytes: special tokens keep their ids, ids between stand for nothing."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    monkeypatch.setattr(tokenizer_module, "_read_ranks", lambda *_, **__: ranks)
    wanted = {"cl100k_base": (100277, 100257), "o200k_base": (200019, 199999)}

    for name, (vocab_size, eos_id) in wanted.items():
        tokenizer = open_tokenizer(f"{name}:ranks")
        assert (tokenizer.vocab_size, tokenizer.eos_id) == (vocab_size, eos_id)
        assert bytes(tokenizer.encode("a<|endoftext|>")) == b"a<|endoftext|>"
        assert tokenizer.byte_lengths().shape == (vocab_size,)
        assert tokenizer.byte_lengths().sum() == 256


TEXTS = ["the cat sat on the mat", "<|endoftext|> is written here", "Zürich 東京 \U0001f600"] * 20


def byte_level(eos: str = "<|endoftext|>", special: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    """A small byte-level BPE, which would cut, pad and frame what it encodes."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[eos, *special],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    made.enable_truncation(4)
    made.enable_padding(length=50)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{eos} $A", special_tokens=[(eos, made.token_to_id(eos))]
    )
    return made


@pytest.fixture
def json_file(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@given(text=st.text())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lengths_of_the_ids_are_those_of_the_text(json_file: Path, text: str) -> None:
    tokenizer = open_tokenizer(str(json_file))
    ids = tokenizer.encode(text)

    assert tokenizer.encode_array(text).tolist() == ids
    assert int(tokenizer.byte_lengths()[ids].sum()) == len(text.encode("utf-8", "replace"))


def test_json_eos_stands_outside_all_text(json_file: Path) -> None:
    tokenizer = open_tokenizer(str(json_file))

    assert (tokenizer.vocab_size, tokenizer.eos_id) == (305, 0)
    assert 0 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.byte_lengths()[0] == 0


def test_json_name_is_the_digest_of_the_file(json_file: Path, tmp_path: Path) -> None:
    shutil.copy(json_file, tmp_path / "copy.json")
    name = open_tokenizer(str(json_file)).name
    digest = hashlib.sha256(json_file.read_bytes()).hexdigest()

    assert name == f"json:sha256-{digest}" == tokenizer_id(str(tmp_path / "copy.json"))
    assert open_tokenizer(f"{json_file}:<|endoftext|>").name == name


def test_json_eos_is_the_one_that_is_named(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    byte_level("</s>", special=("<eos>", "<odd>")).save(str(path))

    with pytest.raises(DataError, match="which token ends a text: got </s>, <eos>, <odd>"):
        open_tokenizer(str(path))
    assert open_tokenizer(f"{path}:<odd>").eos_id == 2
    with pytest.raises(DataError, match="'cat' is no special token"):
        open_tokenizer(f"{path}:cat")


def test_json_lengths_are_those_of_the_text_when_spaces_are_marked(tmp_path: Path) -> None:
    words = ["<unk>", "\u2581", "\u2581cat", "\u2581東", *string.ascii_lowercase, "東"]
    vocabulary = [(word, -float(number)) for number, word in enumerate(words)]
    made = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme="never")
    made.add_special_tokens(["<unk>", "</s>"])
    made.save(str(tmp_path / "unigram.json"))
    tokenizer = open_tokenizer(str(tmp_path / "unigram.json"))

    text = "the cat sat on 東 mats"
    assert int(tokenizer.byte_lengths()[tokenizer.encode(text)].sum()) == len(text.encode())
    assert tokenizer.eos_id == len(words)
    with pytest.raises(DataError, match="a text that spells <unk> would get the token that ends"):
        open_tokenizer(f"{tmp_path / 'unigram.json'}:<unk>")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[1]", b'{"model": 3}'])
def test_json_file_is_refused_when_it_holds_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)

    with pytest.raises(DataError, match=r"a\.json: no file of the `tokenizers` library that"):
        open_tokenizer(str(tmp_path / "a.json"))


def test_json_file_is_refused_when_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read the tokenizer .*a\.json: No such file"):
        open_tokenizer(str(tmp_path / "a.json"))
