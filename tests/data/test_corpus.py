"""Real English with the GPT-2 vocabulary: known counts, and the same bytes after a kill."""

import json
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


def command(real_data: Path, split: str, output: Path, *options: str) -> list[str]:
    file, ranks = real_data / "corpus" / f"{split}.parquet", real_data / "gpt2_bpe/gpt2.tiktoken"
    if not (file.is_file() and ranks.is_file()):
        pytest.skip(f"no {file} or no {ranks} among the real test data")
    return [
        *(sys.executable, "-m", "nmoe.data.cli", "prep", "--source", "parquet"),
        *("--dataset", str(file), "--tokenizer", f"gpt2:{ranks}", "--output", str(output)),
        *("--name", split, *options),
    ]


def prep(real_data: Path, split: str, output: Path, *options: str) -> Manifest:
    subprocess.run(command(real_data, split, output, *options), cwd=REPO_ROOT, check=True)
    return read_manifest(output)


def kill_half_way(command: list[str]) -> None:
    """Start the command and kill it at the first progress line past half of its input."""
    with subprocess.Popen([*command, "--json"], cwd=REPO_ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout
        for line in child.stdout:
            fact = json.loads(line)
            if 2 * fact["done"] > fact["total"]:
                break
        child.kill()


def test_validation_text_has_its_known_tokens(real_data: Path, tmp_path: Path) -> None:
    manifest = prep(real_data, "val", tmp_path)

    assert manifest.total_tokens == VAL_TOKENS
    assert manifest.num_docs == VAL_DOCUMENTS


def test_validation_text_gives_the_same_bytes_when_prep_was_killed(
    real_data: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ("--shard-tokens", "100K", "--workers")
    kill_half_way(command(real_data, "val", killed, *options, "2"))
    assert not (killed / "manifest.json").exists()

    prep(real_data, "val", killed, *options, "1")
    prep(real_data, "val", whole, *options, "3")

    assert contents(killed) == contents(whole)


@pytest.mark.soak
def test_training_text_has_its_known_tokens_also_when_prep_was_killed(
    real_data: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_half_way(command(real_data, "train", killed, "--num-shards", "8"))
    kept = len(list(killed.glob("shard_*.npy")))

    manifest = prep(real_data, "train", whole, "--num-shards", "8", "--workers", "1")
    prep(real_data, "train", killed, "--num-shards", "8")

    assert 0 < kept < 8
    assert (manifest.total_tokens, manifest.num_docs) == (TRAIN_TOKENS, TRAIN_DOCUMENTS)
    assert contents(killed) == contents(whole)
