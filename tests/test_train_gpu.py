"""The trainer on GPUs: its curve, resume, host waits, a dying rank.

Only what the trainer itself needs is imported: a bare GPU machine has torch, triton and pytest.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from nmoe import train as trainer
from nmoe.build import close
from nmoe.events import AlertEvent, StepEvent, ValEvent
from nmoe.paths import RunFolder
from tests import tiny

CONFIG = (
    tiny.CONFIG.replace("dim = 32", "dim = 128")
    .replace("dense_hidden = 64", "dense_hidden = 128")
    .replace('impl = "reference"', 'impl = "triton"')
    .replace("hidden = 32", "hidden = 64")
    .replace("seq_len = 32", "seq_len = 128")
    .replace("micro_batch = 2", "micro_batch = 4")
    .replace('dtype = "fp32"', 'dtype = "bf16"')
    .replace("every = 4\n", "every = 1\n")
)
KEEP = ("--set", "checkpoint.keep=10")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the tiny data set in it."""
    tiny.write_data(tmp_path / "root")
    return tmp_path / "root"


def losses(folder: RunFolder) -> list[float]:
    steps = [record.event for record in tiny.events(folder, StepEvent)]
    by_step = {event.step: event.loss for event in steps if isinstance(event, StepEvent)}
    return [by_step[step] for step in sorted(by_step)]


def validations(folder: RunFolder) -> list[float]:
    found = [record.event for record in tiny.events(folder, ValEvent)]
    return [event.loss for event in found if isinstance(event, ValEvent)]


def other_root(root: Path, name: str) -> Path:
    other = root.parent / name
    other.mkdir()
    (other / "tiny").symlink_to(root / "tiny")
    return other


def train(root: Path, *words: str, world: int = 1) -> RunFolder:
    """Train to the last step; the target is out of reach."""
    args = [str(tiny.write_config(root, CONFIG)), *words]
    assert tiny.finish(tiny.start_ranks(args, root, world=world)) == [6] * world
    return tiny.only_run(root)


@pytest.mark.gpu
def test_train_takes_the_steps_of_the_reference_when_on_a_gpu(root: Path) -> None:
    """bf16 kernels and the fp32 specification on the CPU follow one curve."""
    kernels = train(root)
    other = other_root(root, "reference")
    words = ("--set", "model.impl=reference", "--set", "train.dtype=fp32")
    reference = train(other, *words)
    assert losses(kernels) == pytest.approx(losses(reference), abs=0.03)
    assert validations(kernels) == pytest.approx(validations(reference), abs=0.03)
    assert losses(kernels)[-1] < losses(kernels)[0] - 0.5


@pytest.mark.gpu
@pytest.mark.parametrize("matrices", ["adamw", "muon"])
def test_train_is_bit_identical_when_resumed_on_a_gpu(root: Path, matrices: str) -> None:
    resumed_is_whole(root, "--set", f"optim.matrices={matrices}", world=1)


@pytest.mark.multigpu
def test_train_is_bit_identical_when_resumed_on_two_gpus(root: Path) -> None:
    resumed_is_whole(root, world=2)


def resumed_is_whole(root: Path, *words: str, world: int) -> None:
    """Go on from step 12 of a finished run, in a copy of it, to the same bits."""
    whole = train(root, *KEEP, *words, world=world)
    other = other_root(root, "resumed")
    shutil.copytree(whole.root, other / "runs" / whole.run_id)
    folder = tiny.only_run(other)
    for step in (18, 24):
        shutil.rmtree(folder.checkpoints / f"step_{step:08d}")
    args = ["--run", str(folder.root), "--attempt", "1"]
    assert tiny.finish(tiny.start_ranks(args, other, world=world)) == [6] * world
    assert losses(folder) == losses(whole)
    assert validations(folder)[-1] == validations(whole)[-1]
    name = "step_00000024"
    assert tiny.weights_digest(folder, name) == tiny.weights_digest(whole, name)


@pytest.mark.multigpu
def test_train_agrees_with_one_gpu_when_on_two(root: Path) -> None:
    alone = train(root)
    together = train(other_root(root, "together"), world=2)
    assert losses(together) == pytest.approx(losses(alone), abs=0.02)


@pytest.mark.gpu
def test_step_never_makes_the_host_wait(root: Path) -> None:
    run = tiny.open_run(root, "train.deterministic=false", text=CONFIG)
    try:
        trainer.train_step(run)
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(2):
            trainer.train_step(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        close(run)
    assert run.step == 3


@pytest.mark.multigpu
def test_train_fails_within_ten_seconds_when_one_gpu_rank_is_killed(root: Path) -> None:
    args = [str(tiny.write_config(root, CONFIG)), "--set", "train.steps=50000"]
    ranks = tiny.start_ranks(args, root, world=2)
    deadline = time.monotonic() + 120
    while not list((root / "runs").glob("*/train.jsonl")) or not losses(tiny.only_run(root)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(ranks[1].pid, signal.SIGKILL)
    codes = tiny.finish(ranks)
    assert time.monotonic() - began < 10
    assert codes == [5, -signal.SIGKILL]
    alert = tiny.events(tiny.only_run(root), AlertEvent)[-1].event
    assert isinstance(alert, AlertEvent)
    assert alert.level == "error"
