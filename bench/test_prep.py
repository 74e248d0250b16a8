"""Throughput of preparation against tiktoken's own batch encoder with as many threads."""

import itertools
import statistics
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiktoken

from nmoe.data.prep import prepare
from nmoe.data.sources import open_source
from nmoe.data.tokenizer import TiktokenTokenizer
from tests.conftest import real_data  # noqa: F401  a fixture

ROUNDS = 3


@pytest.mark.parametrize("workers", [1, 2])
def test_prep_against_tiktoken(benchmark, real_data: Path, tmp_path: Path, workers: int):  # noqa: F811
    """The benchmarked time is that of prep, from Parquet file to manifest; the ratio is printed.

    The two take turns, so that whatever else the machine does meets both alike.
    """
    file = real_data / "corpus" / "train.parquet"
    tokenizer = TiktokenTokenizer.open("gpt2", real_data / "gpt2_bpe" / "gpt2.tiktoken")
    texts = pq.read_table(file, columns=["text"])["text"].to_pylist()
    source = open_source("parquet", [str(file)])
    encoding: tiktoken.Encoding = tokenizer._encoding
    raw_s: list[float] = []
    prep_s: list[float] = []
    folders = (tmp_path / str(number) for number in itertools.count())

    def in_turn() -> None:
        start = time.perf_counter()
        encoding.encode_ordinary_batch(texts, num_threads=workers)
        raw_s.append(time.perf_counter() - start)

    def prep() -> int:
        start = time.perf_counter()
        manifest = prepare(source, tokenizer, output=next(folders), name="bench", workers=workers)
        prep_s.append(time.perf_counter() - start)
        return manifest.total_tokens

    tokens = benchmark.pedantic(prep, setup=in_turn, rounds=ROUNDS, warmup_rounds=1)
    raw, mine = min(raw_s), min(prep_s)
    median = statistics.median(a / b for a, b in zip(raw_s, prep_s, strict=True))
    print(
        f"\n{workers} threads: prep {tokens / mine:,.0f} tokens/s, tiktoken {tokens / raw:,.0f};"
        f" ratio {raw / mine:.2f} of the best rounds, {median:.2f} in the median round"
    )
