"""Throughput of the loader from page cache: one rank, the speedrun's batch, one core."""

import os
from pathlib import Path

import numpy as np
import pytest

from nmoe.data.loader import FlowData, Loader
from nmoe.data.manifest import Manifest, write_manifest
from nmoe.data.shards import ShardWriter
from nmoe.flow import Flow, FlowSource, Stage, apportion

SEQ_LEN, BATCH_SIZE, BATCHES = 2048, 256, 40
SHARDS, SHARD_TOKENS = 4, 1 << 24
VOCAB_SIZE = 50257
WEIGHTS = (6, 3, 1)


@pytest.fixture
def _one_core():
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def write_random(folder: Path, *, seed: int) -> Path:
    """Uniform tokens in shards of 32 MiB, which stay in the page cache."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    shards = []
    for number in range(SHARDS):
        tokens = rng.integers(0, VOCAB_SIZE, SHARD_TOKENS, dtype=np.uint16)
        writer = ShardWriter(folder, number, dtype=tokens.dtype)
        for document in np.split(tokens, 1 << 12):
            writer.append(document)
        shards.append(writer.close())
    manifest = Manifest(
        name=folder.name,
        source="random",
        revision=str(seed),
        tokenizer="gpt2",
        vocab_size=VOCAB_SIZE,
        eos_id=VOCAB_SIZE - 1,
        total_tokens=SHARDS * SHARD_TOKENS,
        num_docs=SHARDS << 12,
        text_bytes=4 * SHARDS * SHARD_TOKENS,
        shards=tuple(shards),
    )
    write_manifest(folder, manifest)
    return folder


def flow_of(folders: tuple[Path, ...]) -> FlowData:
    """A flow over the folders that outlasts the measurement."""
    windows = 10 * BATCHES * BATCH_SIZE
    sources = tuple(
        FlowSource(name=each.name, path=str(each), digest="", windows=1) for each in folders
    )
    stage = Stage(name="only", quotas=tuple(apportion(windows, WEIGHTS)))
    flow = Flow(profile="mixture", sources=sources, stages=(stage,), digest="")
    return FlowData(flow=flow, folders=folders)


@pytest.mark.usefixtures("_one_core")
@pytest.mark.parametrize("num_sources", [1, 3])
def test_loader_from_page_cache(benchmark, tmp_path: Path, num_sources: int):
    """All batches are read by the loader's thread and taken by this one, both on one core."""
    folders = tuple(write_random(tmp_path / f"s{i}", seed=i) for i in range(num_sources))
    data = folders[0] if num_sources == 1 else flow_of(folders)

    def read() -> None:
        with Loader(data, seq_len=SEQ_LEN, batch_size=BATCH_SIZE, seed=1) as loader:
            for _ in range(BATCHES):
                loader.next_batch()

    benchmark.pedantic(read, rounds=5, warmup_rounds=1)
    tokens = BATCHES * BATCH_SIZE * SEQ_LEN
    print(f"\n{num_sources} source(s): {tokens / benchmark.stats.stats.min:,.0f} tokens/s")
