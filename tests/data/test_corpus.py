"""Real English with the GPT-2 vocabulary: known counts, and the same bytes after a kill."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmoe.data.manifest import Manifest, read_manifest
from nmoe.paths import REPO_ROOT
from tests.data.datasets import contents

# Tokens of the texts plus one EOS a document, counted with tiktoken alone.
VAL_TOKENS, VAL_DOCUMENTS = 1_099_608, 901
TRAIN_TOKENS, TRAIN_DOCUMENTS = 20_002_406, 13_174


# Prepares as the command line does, and dies at the first report past half of the input.
KILLED = """
import os, signal, sys
from pathlib import Path
from nmoe.data.prep import prepare
from nmoe.data.sources import open_source
from nmoe.data.tokenizer import open_tokenizer

file, ranks, output, option, number = sys.argv[1:]

def kill(done, total, tokens):
    if 2 * done > total:
        os.kill(os.getpid(), signal.SIGKILL)

prepare(open_source("parquet", [file]), open_tokenizer(f"gpt2:{ranks}"), output=Path(output),
        name=Path(file).stem, workers=2, progress=kill, **{option: int(number)})
"""


def inputs(real_data: Path, split: str) -> tuple[Path, Path]:
    """The texts of the split, and the ranks of the vocabulary."""
    file, ranks = real_data / "corpus" / f"{split}.parquet", real_data / "gpt2_bpe/gpt2.tiktoken"
    if not (file.is_file() and ranks.is_file()):
        pytest.skip(f"no {file} or no {ranks} among the real test data")
    return file, ranks


def prep(real_data: Path, split: str, output: Path, *options: str) -> Manifest:
    file, ranks = inputs(real_data, split)
    command = [
        *(sys.executable, "-m", "nmoe.data.cli", "prep", "--source", "parquet"),
        *("--dataset", str(file), "--tokenizer", f"gpt2:{ranks}", "--output", str(output)),
        *("--name", split, *options),
    ]
    subprocess.run(command, cwd=REPO_ROOT, check=True)
    return read_manifest(output)


def prep_killed(real_data: Path, split: str, output: Path, **option: int) -> int:
    """Kill a preparation half-way; how many shards it has left."""
    [(name, number)] = option.items()
    args = (*map(str, inputs(real_data, split)), str(output), name, str(number))
    done = subprocess.run([sys.executable, "-c", KILLED, *args], cwd=REPO_ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    return len(list(output.glob("shard_*.npy")))


def test_validation_text_has_its_known_tokens(real_data: Path, tmp_path: Path) -> None:
    manifest = prep(real_data, "val", tmp_path)

    assert manifest.total_tokens == VAL_TOKENS
    assert manifest.num_docs == VAL_DOCUMENTS


def test_validation_text_gives_the_same_bytes_when_prep_was_killed(
    real_data: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert prep_killed(real_data, "val", killed, shard_tokens=100_000) >= 2

    prep(real_data, "val", killed, "--shard-tokens", "100K", "--workers", "1")
    prep(real_data, "val", whole, "--shard-tokens", "100K", "--workers", "3")

    assert contents(killed) == contents(whole)


@pytest.mark.soak
def test_training_text_has_its_known_tokens_also_when_prep_was_killed(
    real_data: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert prep_killed(real_data, "train", killed, num_shards=8) == 4

    manifest = prep(real_data, "train", whole, "--num-shards", "8", "--workers", "1")
    prep(real_data, "train", killed, "--num-shards", "8")

    assert (manifest.total_tokens, manifest.num_docs) == (TRAIN_TOKENS, TRAIN_DOCUMENTS)
    assert contents(killed) == contents(whole)
