"""A run small enough to train in a test: its configuration, its data, and ways to start it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nmoe import dist, train
from nmoe.build import Run, build
from nmoe.control import Control
from nmoe.data.prep import prepare
from nmoe.data.sources import open_source
from nmoe.data.tokenizer import open_tokenizer
from nmoe.event_log import read_events
from nmoe.events import Event, Record
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder
from nmoe.report import Reporter
from nmoe.standalone import create_folder, make_plan

CONFIG = """
[model]
dim = 32
num_layers = 2
num_heads = 2
dense_hidden = 64
impl = "reference"
[experts]
num_experts = 8
top_k = 2
num_shared = 1
hidden = 32
[data]
task = "tiny"
tokenizer = "byte"
data_path = "tiny"
bundle = "pocket_bundle"
[optim]
matrices = "muon"
lr_dense = 5e-3
lr_router = 5e-3
lr_expert = 5e-3
[schedule]
warmup_steps = 4
hold_tokens = 5_000
decay_tokens = 5_000
[train]
steps = 24
batch_size = 8
seq_len = 32
micro_batch = 2
dtype = "fp32"
deterministic = true
[log]
every = 4
[validation]
every = 8
windows = 10
[checkpoint]
every = 6
[eval]
cap = 10
[target]
target_loss = 0.01
"""
VOCABULARY = (
    "def return self value index for in range if else not none list of tokens ( ) : = + , ."
)


def write_config(folder: Path, text: str = CONFIG) -> Path:
    """The tiny preset as a TOML file."""
    path = folder / "tiny.toml"
    path.write_text(text)
    return path


def write_data(root: Path, name: str = "tiny") -> None:
    """Training and validation text of a few thousand words drawn from a small vocabulary."""
    for split, words in (("train", 6000), ("val", 1200)):
        rng = random.Random(split)
        text = " ".join(rng.choices(VOCABULARY.split(), k=words))
        source = root / f"{name}-{split}.txt"
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(text)
        prepare(
            open_source("text", [str(source)]),
            open_tokenizer("byte"),
            output=root / name / split,
            name=f"{name}-{split}",
        )


def open_run(root: Path, *overrides: str, text: str = CONFIG) -> Run:
    """A run of one rank, built in this process and not begun; `nmoe.build.close` ends it."""
    world = dist.World(rank=0, size=1)
    plan = make_plan(write_config(root, text), overrides=overrides, world=world)
    data = DataRoot(path=root, reason="test")
    folder = data.run(plan.run_id)
    create_folder(plan, folder)
    report = Reporter(folder, plan, attempt=0, is_writer=True, say=lambda _: None)
    control = Control(folder, supervisor_fd=None)
    return build(plan, folder, data, world=world, control=control, report=report)


def start_ranks(
    args: Sequence[str],
    root: Path,
    *,
    world: int = 1,
    pass_fds: Sequence[int] = (),
    module: str = "nmoe.train",
) -> list[subprocess.Popen[str]]:
    """The trainer, or another module around it, as real processes, one a rank."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *args],
            env=rank_env(root, rank=rank, world=world, port=port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            pass_fds=pass_fds,
        )
        for rank in range(world)
    ]


def run_here(args: Sequence[str], root: Path) -> int:
    """The trainer with one rank in this process, which has torch loaded already; its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_DIR", str(root))
        try:
            return train.main(args)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def rank_env(root: Path, *, rank: int, world: int, port: int) -> dict[str, str]:
    """The environment of a rank, as torchrun sets it."""
    return os.environ | {
        "DATA_DIR": str(root),
        "PYTHONPATH": str(REPO_ROOT),
        "OMP_NUM_THREADS": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(ranks: Sequence[subprocess.Popen[str]], *, timeout_s: float = 120) -> list[int]:
    """Wait for all ranks; their exit codes, and their output when a test fails."""
    for rank in ranks:
        output, _ = rank.communicate(timeout=timeout_s)
        print(output)
    return [rank.returncode for rank in ranks]


def only_run(root: Path) -> RunFolder:
    """The one run under a data root."""
    (folder,) = (root / "runs").iterdir()
    return DataRoot(path=root, reason="test").run(folder.name)


def events(folder: RunFolder, kind: type[Event]) -> list[Record]:
    """A run's trainer events of one kind, in order."""
    return [record for record in read_events(folder.train) if isinstance(record.event, kind)]


def weights_digest(folder: RunFolder, name: str) -> dict[str, str]:
    """sha256 of a checkpoint's files."""
    manifest = json.loads((folder.checkpoints / name / "manifest.json").read_text())
    return {file: info["sha256"] for file, info in manifest["files"].items()}
