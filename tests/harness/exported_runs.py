"""Real runs of the trainer in all that can happen to them, under one data root."""

import os

from nmoe import dist
from nmoe.paths import DataRoot, RunFolder
from nmoe.standalone import create_folder, make_plan
from tests import tiny
from tests.harness import verified_run

SMALL = ("train.steps=24", "schedule.hold_tokens=20_000", "target.target_loss=0.01")


def train_all(root: DataRoot) -> dict[str, RunFolder]:
    """Runs that are on a board, diverged, were stopped and resumed, were stopped."""
    done = verified_run.train(root)
    verified_run.enter(root, done)
    return {
        "done": done,
        "diverged": _run(root, "optim.lr_dense=1e30", "optim.lr_muon=1e30", expect=5),
        "resumed": _resume(root, _stopped(root)),
        "interrupted": _stopped(root),
    }


def _run(root: DataRoot, *overrides: str, expect: int) -> RunFolder:
    before = set(root.runs.iterdir())
    given = [part for each in (*SMALL, *overrides) for part in ("--set", each)]
    config = str(tiny.write_config(root.path))
    assert tiny.run_here([config, *given], root.path) == expect
    (path,) = set(root.runs.iterdir()) - before
    return root.run(path.name)


def _stopped(root: DataRoot) -> RunFolder:
    """Stopped at its first logged step, with a checkpoint: its supervisor is gone."""
    world = dist.World(rank=0, size=1)
    plan = make_plan(tiny.write_config(root.path), overrides=SMALL, world=world)
    folder = root.run(plan.run_id)
    create_folder(plan, folder)
    read_end, write_end = os.pipe()
    os.close(write_end)
    args = ["--run", str(folder.root), "--supervisor-fd", str(read_end)]
    assert tiny.run_here(args, root.path) == 130
    os.close(read_end)
    return folder


def _resume(root: DataRoot, folder: RunFolder) -> RunFolder:
    assert tiny.run_here(["--run", str(folder.root), "--attempt", "1"], root.path) == 6
    return folder
