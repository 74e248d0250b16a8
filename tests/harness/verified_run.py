"""A tiny real run that reached its target and is on a board, for verification to look at."""

from dataclasses import replace
from pathlib import Path

from harness import leaderboard
from nmoe import dist
from nmoe.config import Hardware
from nmoe.data.minibundle import write_mini_bundle
from nmoe.paths import DataRoot, RunFolder
from nmoe.standalone import create_folder, make_plan
from tests.tiny import run_here, write_config, write_data

# Above the loss that the run reaches in its last validations.
OVERRIDES = (
    *("target.target_loss=2.6", "train.steps=40", "train.seq_len=64", "eval.cap=10"),
    *("schedule.hold_tokens=20_000", "schedule.decay_tokens=0"),
)


def prepare(path: Path) -> DataRoot:
    """A data root with data and bundle."""
    write_data(path)
    write_mini_bundle(path / "eval" / "pocket_bundle")
    return DataRoot(path=path, reason="test")


def train(root: DataRoot, *overrides: str) -> RunFolder:
    """Train in this process, on a machine with a name; the run is not scored yet."""
    world = dist.World(rank=0, size=1)
    plan = make_plan(write_config(root.path), overrides=(*OVERRIDES, *overrides), world=world)
    plan = replace(plan, hardware=Hardware(cpu="Some CPU", cores=2))
    folder = root.run(plan.run_id)
    create_folder(plan, folder)
    assert run_here(["--run", str(folder.root)], root.path) == 0
    return folder


def enter(root: DataRoot, folder: RunFolder) -> None:
    """Score the run and enter it."""
    event = leaderboard.finish(folder, root)
    assert event.entry_id, event.reason
