"""The data of the speedrun: the canonical split from a mirror, or that of files of one's own."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nmoe.data import cli
from nmoe.data.manifest import DataError, digest, read_manifest
from nmoe.data.speedrun import (
    MAX_TOKENS,
    REPO,
    TRAIN_TOKENS,
    VAL_FILE,
    VAL_TOKENS,
    Inputs,
    local_sources,
)
from nmoe.paths import REPO_ROOT
from tests.data.hub_server import Hub, serve

NAMES = ["shard_00000.parquet", "shard_00001.parquet", "shard_00002.parquet", VAL_FILE]
RANKS_PATH = "/encodings/r50k_base.tiktoken"


def parquet(first: int) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {first + i}" for i in range(50)]}), buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def mirror(real_data: Path) -> Iterator[Hub]:
    """A mirror of four small files and the GPT-2 ranks."""
    ranks = real_data / "gpt2_bpe" / "gpt2.tiktoken"
    if not ranks.is_file():
        pytest.skip(f"no GPT-2 vocabulary among the real test data: {ranks}")
    hub = Hub(REPO, {name: parquet(100 * number) for number, name in enumerate(NAMES)})
    hub.others = {RANKS_PATH: ranks.read_bytes()}
    with serve(hub) as served:
        yield served


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    (folder / "sub" / "b.txt").write_text("two")
    (folder / "readme.md").write_text("no text of the kinds")
    (folder / "c.parquet").write_bytes(parquet(0))
    return folder


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nmoe.data.cli", "prep-speedrun", *map(str, arguments)]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_numbers_are_those_of_the_speedrun():
    assert VAL_TOKENS == 5120 * 2049
    assert TRAIN_TOKENS == 10**10
    assert list(MAX_TOKENS) == ["val", "train"]


def test_last_file_is_validation_and_the_others_training(mirror, data_dir, capsys):
    assert cli.main(["prep-speedrun", "--mirror", mirror.url, "--json"]) == 0

    train, val = (read_manifest(data_dir / "speedrun" / split) for split in ("train", "val"))
    assert list(val.inputs) == [VAL_FILE]
    assert list(train.inputs) == NAMES[:-1]
    assert (train.revision, val.revision) == (mirror.commit, mirror.commit)
    assert (train.tokenizer, train.num_docs, val.num_docs) == ("gpt2", 150, 50)
    assert mirror.fetched == [VAL_FILE, *NAMES[:-1]]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ended = [line["job"] for line in lines if line["done"] == line["total"]]
    assert ended == ["speedrun/val", "speedrun/train"]


def test_people_are_told_what_was_read_and_that_it_is_short(mirror, capsys):
    assert cli.main(["prep-speedrun", "--mirror", mirror.url]) == 0

    shown = capsys.readouterr().err
    assert f"speedrun/val: 150 tokens of 50 documents of {VAL_FILE} in" in shown
    assert "of shard_00000.parquet, shard_00001.parquet, shard_00002.parquet in" in shown
    assert "validation is short: 150 tokens" in shown


def test_killed_preparation_is_gone_on_with_to_the_same_bytes(mirror, tmp_path):
    mirror.stalls_at = NAMES[1]
    killed = subprocess.Popen(
        command("--mirror", mirror.url, "--output", tmp_path / "killed", "--json"),
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert mirror.is_stalled.wait(60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    mirror.may_go_on.set()
    before = (tmp_path / "killed" / "val" / "shard_00000.npy").stat().st_ino
    assert not (tmp_path / "killed" / "train" / "manifest.json").exists()
    mirror.asked.clear()

    for name in ("killed", "whole"):
        assert cli.main(command("--mirror", mirror.url, "--output", tmp_path / name)[3:]) == 0

    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert (tmp_path / "killed" / "val" / "shard_00000.npy").stat().st_ino == before
    assert VAL_FILE not in mirror.fetched[: mirror.fetched.index(NAMES[2])]


def test_commit_of_the_first_split_is_kept_when_the_hub_moves_on(mirror, data_dir):
    assert cli.main(["prep-speedrun", "--mirror", mirror.url]) == 0
    before = contents(data_dir / "speedrun")
    shutil.rmtree(data_dir / "speedrun" / "train")
    mirror.asked.clear()

    assert cli.main(["prep-speedrun", "--mirror", mirror.url]) == 0

    assert contents(data_dir / "speedrun") == before
    assert not [path for path, _ in mirror.asked if "/revision/" in path]


def test_vocabulary_that_cannot_be_had_is_told_before_anything_else(
    mirror, data_dir, monkeypatch, capsys
):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    mirror.others.clear()

    assert cli.main(["prep-speedrun", "--mirror", mirror.url]) == 4

    assert str(data_dir / "tokenizers" / "gpt2.tiktoken") in capsys.readouterr().err
    assert not (data_dir / "speedrun").exists()


def test_whole_data_is_found_without_a_network(mirror, data_dir):
    assert cli.main(["prep-speedrun", "--mirror", mirror.url]) == 0
    before = contents(data_dir / "speedrun")

    assert cli.main(["prep-speedrun", "--mirror", "http://127.0.0.1:9"]) == 0

    assert contents(data_dir / "speedrun") == before


def test_files_of_the_hub_give_the_same_data_when_they_are_at_hand(mirror, tmp_path, data_dir):
    for name, content in mirror.files.items():
        (tmp_path / name).write_bytes(content)
    here, there = tmp_path / "here", tmp_path / "there"

    assert cli.main(["prep-speedrun", "--mirror", mirror.url, "--output", str(there)]) == 0
    assert cli.main(["prep-speedrun", "--from", str(tmp_path), "--output", str(here)]) == 0

    for split in MAX_TOKENS:
        assert digest(read_manifest(here / split)) == digest(read_manifest(there / split))


@pytest.mark.parametrize("arguments", [[], ["--mirror", "http://127.0.0.1:9"]])
def test_no_network_is_one_line_that_names_what_to_fetch(arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    done = subprocess.run(
        command(*arguments, "--output", tmp_path / "x"),
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (4, "")
    disk, line = done.stderr.splitlines()
    assert "take 20.0 GB in" in disk
    assert line.startswith("error: cannot reach http")
    assert f"https://huggingface.co/datasets/{REPO}" in line
    assert VAL_FILE in line
    assert "n prep data --from FOLDER" in line
    assert "--mirror URL" in line


def names(source) -> list[str]:
    return [file.path.name for file in source.files]


def test_last_file_of_a_folder_is_validation(files):
    sources = local_sources(Inputs(paths=(files,)))

    assert names(sources["val"]) == ["c.parquet"]
    assert names(sources["train"]) == ["a.jsonl", "b.txt"]


def test_named_file_is_validation_and_never_trained_on(files, tmp_path):
    link = tmp_path / "link.txt"
    link.symlink_to(files / "sub" / "b.txt")

    for val in (files / "sub" / "b.txt", files / "sub", link):
        sources = local_sources(Inputs(paths=(files,), val=(val,)))
        assert names(sources["train"]) == ["a.jsonl", "c.parquet"]
        assert len(names(sources["val"])) == 1


def test_file_named_twice_is_read_once(files):
    paths = (files, files / "a.jsonl", files / "sub")

    assert names(local_sources(Inputs(paths=paths))["train"]) == ["a.jsonl", "b.txt"]


def test_one_file_is_refused_because_nothing_is_left(files):
    with pytest.raises(DataError, match=r"nothing is left to train on: got 1 file.*--val"):
        local_sources(Inputs(paths=(files / "a.jsonl",)))


@pytest.mark.parametrize("arguments", [["--val", "x"], ["--text-key", "x"], ["--from"]])
def test_options_that_mean_nothing_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["prep-speedrun", *arguments])
    assert ended.value.code == 2
    assert "--from" in capsys.readouterr().err
