"""Runs that prepare the speedrun's data, and `n prep data` without a run, as people call them."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import dataset
from nmoe.data.manifest import read_manifest
from nmoe.data.speedrun import REPO, TRAIN_TOKENS, VAL_FILE
from tests.conftest import REPO_ROOT
from tests.data.hub_server import Hub, serve
from tests.tiny import CONFIG

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
DEADLINE_S = 60.0
NOWHERE = "http://127.0.0.1:9"


def n(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end, not on a terminal."""
    command = [sys.executable, "-P", "-m", "harness.cli", *map(str, arguments)]
    env = os.environ | environ
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE_S)


def parquet(first: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {first + i}" for i in range(200)]}), buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ranks(real_data: Path) -> Path:
    path = real_data / "gpt2_bpe" / "gpt2.tiktoken"
    if not path.is_file():
        pytest.skip(f"no GPT-2 vocabulary among the real test data: {path}")
    return path


@pytest.fixture
def mirror(ranks: Path) -> Iterator[Hub]:
    hub = Hub(REPO, {name: parquet(ord(name[10])) for name in ("shard_00000.parquet", VAL_FILE)})
    hub.others = {"/encodings/r50k_base.tiktoken": ranks.read_bytes()}
    with serve(hub) as served:
        yield served


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny model on the CPU that trains on the speedrun's data."""
    text = CONFIG.replace('tokenizer = "byte"', 'tokenizer = "gpt2"').replace(
        'data_path = "tiny"', 'data_path = "speedrun"'
    )
    path = tmp_path / "tiny.toml"
    path.write_text(text.replace("steps = 24", "steps = 2"))
    return path


def roomy(folder: Path) -> None:
    needed = dataset.TOKEN_BYTES * dataset.SPEEDRUN_TOKENS + 2 * dataset.WAITING_BYTES
    if (free := shutil.disk_usage(folder).free) < needed:
        pytest.skip(f"a run that prepares the speedrun's data wants {needed} bytes, got {free}")


def test_numbers_are_those_of_the_preparation():
    assert (dataset.REPO, dataset.SPEEDRUN_TOKENS) == (REPO, TRAIN_TOKENS)


def test_run_prepares_its_data_from_a_mirror_and_trains_on_it(mirror, config, data_dir):
    roomy(data_dir)

    done = n("train", config, "--headless", "--json", "--mirror", mirror.url)

    assert done.returncode == 6, done.stderr  # two steps reach no target
    events = [json.loads(line) for line in done.stdout.splitlines()]
    jobs = [event["job"] for event in events if event["k"] == "prep"]
    assert list(dict.fromkeys(jobs)) == ["pocket_bundle", "speedrun/val", "speedrun/train"]
    assert any(event["k"] == "val" for event in events)
    for split in dataset.SPLITS:
        manifest = read_manifest(data_dir / "speedrun" / split)
        assert manifest.revision == mirror.commit
    mirror.asked.clear()
    again = n("train", config, "--headless", "--json", "--mirror", NOWHERE)
    assert again.returncode == 6
    assert mirror.asked == []


def test_run_without_a_network_ends_with_4_and_says_what_to_fetch(config, ranks, data_dir):
    roomy(data_dir)

    done = n("train", config, "--headless", "--mirror", NOWHERE)

    assert done.returncode == 4
    assert f"cannot reach {NOWHERE}/api/datasets/{REPO}" in done.stderr
    assert "n prep data --from FOLDER" in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_of_an_official_preset_tells_what_preparation_takes(data_dir):
    roomy(data_dir)
    fake = ("--fake-hardware", SCENARIOS / "h100x8.json")

    done = n("speedrun", "super", "--dry-run", *fake)

    assert done.returncode == 0
    assert f"no dataset in {data_dir / 'speedrun'}: the run prepares it first" in done.stdout
    assert "problem: no dataset" not in done.stdout


def test_mirror_that_is_no_web_address_is_refused_before_anything_else(data_dir):
    done = n("speedrun", "pocket", "--mirror", "example.com")

    assert done.returncode == 2
    assert "got --mirror 'example.com', expected http://" in done.stderr
    assert not list(data_dir.iterdir())


def test_prep_data_makes_the_speedruns_data(mirror, data_dir):
    done = n("prep", "data", "--mirror", mirror.url)

    assert done.returncode == 0, done.stderr
    assert list(read_manifest(data_dir / "speedrun" / "val").inputs) == [VAL_FILE]


def test_prep_data_uses_files_at_hand(ranks, data_dir, tmp_path):
    (data_dir / "tokenizers").mkdir()
    shutil.copy(ranks, data_dir / "tokenizers" / "gpt2.tiktoken")
    (tmp_path / "a.parquet").write_bytes(parquet(0))
    (tmp_path / "z.txt").write_text("the end")

    done = n("prep", "data", "--from", tmp_path)

    assert done.returncode == 0, done.stderr
    assert "speedrun/val: 3 tokens of 1 documents of z.txt" in done.stderr
    assert n("prep", "data", "--from", tmp_path / "a.parquet").returncode == 4


def test_prep_data_makes_any_other_dataset_of_a_named_source(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    source = ("--source", "text", "--dataset", tmp_path / "a.txt", "--output", tmp_path / "set")

    assert n("prep", "data", *source).returncode == 0
    assert read_manifest(tmp_path / "set").total_tokens == 4
