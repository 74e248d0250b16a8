"""Checkpoints are whole or absent, belong to one run, and notice every changed byte."""

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nmoe import checkpoint
from nmoe.checkpoint import CheckpointError, FileInfo, Progress, Stage, Writer
from nmoe.dist import World

WORLD = World(rank=0, size=1)
PROGRESS = Progress(
    step=10, tokens=100, train_s=1.0, wall_s=2.0, compile_s=0.0, eval_s=0.0, checkpoint_s=0.0
)


def save(
    folder: Path, step: int = 10, *, kind: checkpoint.Kind = "step", keep: int = 2, size: int = 3
) -> checkpoint.Saved:
    writer = Writer(folder, fingerprint="abc", world=WORLD, keep=keep)
    start(writer, step, kind=kind, size=size)
    saved = writer.wait()
    writer.close()
    return saved


def start(writer: Writer, step: int, *, kind: checkpoint.Kind = "step", size: int = 3) -> None:
    writer.start(
        kind,
        replace(PROGRESS, step=step),
        replicated={"model": {"w": torch.arange(3.0)}},
        local={"model": {"e": torch.ones(size)}, "cursor": [1, 2]},
    )


def test_checkpoint_returns_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.manifest.progress == PROGRESS
    replicated, local = checkpoint.load(newest, fingerprint="abc", world=WORLD)
    assert torch.equal(replicated["model"]["w"], torch.arange(3.0))
    assert local["cursor"] == [1, 2]
    assert newest.bytes == sum(part.stat().st_size for part in newest.path.glob("*.pt"))


def test_checkpoint_keeps_the_newest_and_leaves_the_target_alone(tmp_path: Path) -> None:
    save(tmp_path, 5, kind="target")
    for step in (10, 20, 30):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step_00000020",
        "step_00000030",
        "target_00000005",
    ]


def test_checkpoint_at_the_target_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 10)
    save(tmp_path, 8, kind="target")
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.manifest.kind == "target"


def test_checkpoint_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    save(tmp_path, 10)
    saved = save(tmp_path, 20)
    (saved.path / "manifest.json").unlink()
    (tmp_path / ".step_00000030.tmp").mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.manifest.progress.step == 10


def make_writer(folder: Path) -> Writer:
    return Writer(folder, fingerprint="abc", world=WORLD, keep=2)


def newest_step(folder: Path) -> int | None:
    newest = checkpoint.newest(folder)
    return newest.manifest.progress.step if newest else None


def test_checkpoint_leaves_the_older_one_when_the_disk_is_full(tmp_path: Path) -> None:
    save(tmp_path, 10)
    writer = make_writer(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        start(writer, 20, size=1 << 20)
        with pytest.raises(OSError, match=r"step_00000020 .* rank 0: \[Errno 27\] File too large"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.close()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.manifest.progress.step == 10
    checkpoint.load(newest, fingerprint="abc", world=WORLD)
    assert save(tmp_path, 20).manifest.progress.step == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000020"]


def test_writer_lets_its_caller_go_on_and_is_whole_only_after_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 10)
    write, disk = checkpoint.write_part, threading.Event()

    def write_slowly(path: Path, content: Mapping[str, Any]) -> FileInfo:
        disk.wait()
        return write(path, content)

    monkeypatch.setattr(checkpoint, "write_part", write_slowly)
    writer = make_writer(tmp_path)
    assert (writer.is_busy, writer.stage) == (False, Stage.READY)
    start(writer, 20)
    assert (writer.is_busy, writer.stage) == (True, Stage.BUSY)
    assert writer.advance(Stage.BUSY) is None
    assert newest_step(tmp_path) == 10
    disk.set()
    saved = writer.wait()
    assert (writer.is_busy, writer.stage) == (False, Stage.READY)
    assert newest_step(tmp_path) == saved.manifest.progress.step == 20
    assert writer.advance(Stage.READY) is None
    writer.close()


def test_writer_goes_no_further_while_another_rank_is_busy(tmp_path: Path) -> None:
    writer = make_writer(tmp_path)
    start(writer, 10)
    writer.close()  # its job is done, but nobody has said so of the others
    assert writer.stage is Stage.READY
    assert writer.advance(Stage.BUSY) is None
    assert newest_step(tmp_path) is None
    assert (tmp_path / ".step_00000010.tmp" / "rank_0.pt").exists()


@pytest.mark.parametrize(
    ("owner", "call", "whole"),
    [
        (checkpoint, "write_part", 10),
        (checkpoint, "write_atomic", 10),
        (checkpoint, "fsync_dir", 10),
        (os, "replace", 10),
        (shutil, "rmtree", 20),  # when the oldest goes, the new one stands
    ],
)
def test_writer_leaves_an_old_or_a_new_checkpoint_when_any_call_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str, whole: int
) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    writer = make_writer(tmp_path)

    def fail(*args: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        if call == "rmtree":
            patch.setattr(owner, call, lambda path, ignore_errors=False: ignore_errors or fail())
        else:
            patch.setattr(owner, call, fail)
        start(writer, 20)
        with pytest.raises(OSError, match="rank 0: .* Input/output error"):
            writer.wait()
    writer.close()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None
    assert newest.manifest.progress.step == whole
    checkpoint.load(newest, fingerprint="abc", world=WORLD)
    save(tmp_path, 30)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["replicated.pt", "rank_0.pt"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_checkpoint_is_refused_when_a_file_was_changed(
    tmp_path: Path, name: str, damage: str
) -> None:
    saved = save(tmp_path)
    file = saved.path / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    with pytest.raises(CheckpointError, match="missing or was changed"):
        checkpoint.load(saved, fingerprint="abc", world=WORLD)


def test_checkpoint_is_refused_for_another_run_or_world(tmp_path: Path) -> None:
    saved = save(tmp_path)
    with pytest.raises(CheckpointError, match="another configuration"):
        checkpoint.load(saved, fingerprint="xyz", world=WORLD)
    with pytest.raises(CheckpointError, match="got 2 ranks, expected 1"):
        checkpoint.load(saved, fingerprint="abc", world=World(rank=0, size=2))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_checkpoint_is_refused_when_its_manifest_is_garbage(tmp_path: Path, text: str) -> None:
    saved = save(tmp_path)
    (saved.path / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.newest(tmp_path)


def test_checkpoint_manifest_is_readable_json(tmp_path: Path) -> None:
    raw = json.loads((save(tmp_path).path / "manifest.json").read_text())
    assert raw["kind"] == "step"
    assert set(raw["files"]) == {"replicated.pt", "rank_0.pt"}
