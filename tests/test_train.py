"""The trainer as real processes: determinism, ranks, resume, stopping, bad days."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from nmoe.config import read_plan
from nmoe.data.minibundle import write_mini_bundle
from nmoe.events import (
    AlertEvent,
    CheckpointEvent,
    CoreEvent,
    CoreTaskEvent,
    EpochEvent,
    ExitEvent,
    OutcomeEvent,
    RouterEvent,
    StepEvent,
    StopAckEvent,
    ValEvent,
)
from nmoe.paths import REPO_ROOT, RunFolder
from tests import tiny


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the tiny data set in it."""
    tiny.write_data(tmp_path / "root")
    return tmp_path / "root"


def train(root: Path, *overrides: str, world: int = 1, expect: int = 6) -> RunFolder:
    """Run the tiny preset to its end and check every rank's exit code."""
    config = tiny.write_config(root)
    args = [str(config), *(word for override in overrides for word in ("--set", override))]
    if world == 1:
        assert tiny.run_here(args, root) == expect
    else:
        assert tiny.finish(tiny.start_ranks(args, root, world=world)) == [expect] * world
    return tiny.only_run(root)


def copy_data(root: Path, name: str) -> Path:
    """Another data root on the same data."""
    other = root.parent / name
    other.mkdir()
    (other / "tiny").symlink_to(root / "tiny")
    return other


def losses(folder: RunFolder) -> list[float]:
    """The logged losses, the last taken of each step."""
    steps = [record.event for record in tiny.events(folder, StepEvent)]
    by_step = {event.step: event.loss for event in steps if isinstance(event, StepEvent)}
    return [by_step[step] for step in sorted(by_step)]


def last_validation(folder: RunFolder) -> float:
    event = tiny.events(folder, ValEvent)[-1].event
    assert isinstance(event, ValEvent)
    return event.loss


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_train_is_identical_when_run_twice(root: Path) -> None:
    first = train(root)
    second = train(copy_data(root, "again"))
    assert losses(first) == losses(second)
    assert len(losses(first)) == 8  # every 4 steps and at checkpoints
    assert losses(first)[-1] < losses(first)[0] - 0.5
    assert last_validation(first) == last_validation(second)
    name = "step_00000024"
    assert tiny.weights_digest(first, name) == tiny.weights_digest(second, name)


def test_train_differs_when_seeded_differently(root: Path) -> None:
    first = train(root, "train.steps=4")
    second = train(copy_data(root, "again"), "train.steps=4", "train.seed=7")
    assert losses(first) != losses(second)


@pytest.mark.parametrize("world", [2, 4])
def test_train_agrees_with_one_rank_when_spread_over_ranks(root: Path, world: int) -> None:
    every_step = ("log.every=1", "train.steps=20")
    alone = train(root, *every_step)
    together = train(copy_data(root, "together"), *every_step, world=world)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5)
    assert len(losses(alone)) == 20
    assert last_validation(together) == pytest.approx(last_validation(alone), abs=0.01)


def test_train_takes_the_same_steps_when_micro_batches_differ(root: Path) -> None:
    small = train(root, "train.micro_batch=1", "train.steps=8")
    large = train(copy_data(root, "large"), "train.micro_batch=8", "train.steps=8")
    assert losses(small) == pytest.approx(losses(large), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_train_is_bit_identical_when_killed_and_resumed(root: Path, world: int) -> None:
    whole = train(root, "log.every=1", world=world)
    broken = copy_data(root, "broken")
    config = tiny.write_config(broken)
    ranks = tiny.start_ranks([str(config), "--set", "log.every=1"], broken, world=world)

    def is_past_a_checkpoint() -> bool:
        runs = list((broken / "runs").glob("*/train.jsonl"))
        return bool(runs) and '"name":"step_00000012"' in runs[0].read_text()

    wait_for(is_past_a_checkpoint)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    tiny.finish(ranks)
    folder = tiny.only_run(broken)
    assert (folder.checkpoints / "step_00000012").is_dir()
    resume = tiny.start_ranks(["--run", str(folder.root), "--attempt", "1"], broken, world=world)
    assert tiny.finish(resume) == [6] * world
    assert losses(folder) == losses(whole)
    assert last_validation(folder) == last_validation(whole)
    name = "step_00000024"
    assert tiny.weights_digest(folder, name) == tiny.weights_digest(whole, name)


def test_train_stops_at_a_logged_step_with_a_checkpoint_when_asked(root: Path) -> None:
    config = tiny.write_config(root)
    ranks = tiny.start_ranks(
        [str(config), "--set", "train.steps=5000", "--set", "checkpoint.every=0"], root, world=2
    )
    wait_for(lambda: bool(list((root / "runs").glob("*/train.jsonl"))))
    folder = tiny.only_run(root)
    wait_for(lambda: bool(tiny.events(folder, StepEvent)))
    folder.control.mkdir(exist_ok=True)
    folder.stop_request.write_text('{"mode": "checkpoint", "by": "test"}')
    assert tiny.finish(ranks) == [130, 130]
    ack = tiny.events(folder, StopAckEvent)[-1].event
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    assert isinstance(ack, StopAckEvent)
    assert isinstance(outcome, OutcomeEvent)
    assert ack.step % 4 == 0
    assert outcome.status == "interrupted"
    assert (folder.checkpoints / f"step_{ack.step:08d}" / "manifest.json").exists()


def test_train_stops_with_a_checkpoint_when_its_supervisor_is_gone(root: Path) -> None:
    config = tiny.write_config(root)
    read_end, write_end = os.pipe()
    args = [str(config), "--set", "train.steps=50000", "--supervisor-fd", str(read_end)]
    ranks = tiny.start_ranks(args, root, pass_fds=[read_end])
    os.close(read_end)
    wait_for(lambda: bool(list((root / "runs").glob("*/train.jsonl"))))
    folder = tiny.only_run(root)
    wait_for(lambda: bool(tiny.events(folder, StepEvent)))
    began = time.monotonic()
    os.close(write_end)
    assert tiny.finish(ranks) == [130]
    assert time.monotonic() - began < 10
    assert tiny.events(folder, CheckpointEvent)


def test_train_reports_divergence_when_the_loss_is_not_finite(root: Path) -> None:
    folder = train(root, "optim.lr_dense=1e30", "optim.lr_muon=1e30", world=2, expect=5)
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    alert = tiny.events(folder, AlertEvent)[-1].event
    assert isinstance(outcome, OutcomeEvent)
    assert isinstance(alert, AlertEvent)
    assert outcome.status == "diverged"
    assert "the loss is nan" in alert.message
    assert not list(folder.checkpoints.glob("step_*"))


def test_train_stops_every_rank_when_one_is_killed(root: Path) -> None:
    config = tiny.write_config(root)
    ranks = tiny.start_ranks([str(config), "--set", "train.steps=50000"], root, world=4)
    wait_for(lambda: bool(list((root / "runs").glob("*/train.jsonl"))))
    folder = tiny.only_run(root)
    wait_for(lambda: bool(tiny.events(folder, StepEvent)))
    began = time.monotonic()
    os.kill(ranks[2].pid, signal.SIGKILL)
    codes = tiny.finish(ranks)
    assert time.monotonic() - began < 10
    assert codes[2] == -signal.SIGKILL
    assert [code for rank, code in enumerate(codes) if rank != 2] == [5, 5, 5]
    alert = tiny.events(folder, AlertEvent)[-1].event
    assert isinstance(alert, AlertEvent)
    assert alert.level == "error"


def test_train_scores_core_and_exits_with_zero_when_the_target_is_reached(root: Path) -> None:
    write_mini_bundle(root / "eval" / "pocket_bundle")
    folder = train(root, "target.target_loss=4.9", "train.seq_len=128", expect=0)
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    core = tiny.events(folder, CoreEvent)[-1].event
    assert isinstance(outcome, OutcomeEvent)
    assert isinstance(core, CoreEvent)
    assert outcome.status == "done"
    assert outcome.loss == last_validation(folder) <= 4.9
    assert len(tiny.events(folder, CoreTaskEvent)) == core.tasks >= 5
    assert len(folder.core_items.read_text().splitlines()) == core.items
    assert list(folder.checkpoints.glob("target_*/manifest.json"))
    assert json.loads(folder.result.read_text())["status"] == "done"
    assert isinstance(tiny.events(folder, ExitEvent)[-1].event, ExitEvent)


def test_train_goes_to_a_fixed_horizon_and_counts_its_last_validation(root: Path) -> None:
    write_mini_bundle(root / "eval" / "pocket_bundle")
    early = ("target.target_loss=4.9", "train.seq_len=128")
    fixed = 'target.stop_rule="fixed_horizon"'
    folder = train(root, *early, fixed, "train.steps=22", expect=0)
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    vals = [r.event for r in tiny.events(folder, ValEvent) if isinstance(r.event, ValEvent)]
    assert isinstance(outcome, OutcomeEvent)
    assert [val.step for val in vals] == [8, 16, 22]
    assert vals[1].loss <= 4.9  # it went on
    assert (outcome.step, outcome.loss) == (22, vals[-1].loss)
    assert [path.parent.name for path in folder.checkpoints.glob("target_*/manifest.json")] == [
        "target_00000022"
    ]


def test_train_scores_core_alike_when_spread_over_ranks(root: Path) -> None:
    write_mini_bundle(root / "eval" / "pocket_bundle")
    reach = ("target.target_loss=4.9", "train.seq_len=128", "train.micro_batch=4")
    alone = train(root, *reach, expect=0)
    other = copy_data(root, "two")
    write_mini_bundle(other / "eval" / "pocket_bundle")
    together = train(other, *reach, world=2, expect=0)
    scores = [tiny.events(folder, CoreEvent)[-1].event for folder in (alone, together)]
    assert [s.score for s in scores if isinstance(s, CoreEvent)][0] == pytest.approx(
        [s.score for s in scores if isinstance(s, CoreEvent)][1], abs=0.02
    )


def test_train_fails_with_seven_when_the_bundle_is_missing(root: Path) -> None:
    folder = train(root, "target.target_loss=5.0", expect=7)
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    assert isinstance(outcome, OutcomeEvent)
    assert outcome.status == "core-failed"


def test_train_goes_on_with_core_when_resumed_after_the_target(root: Path) -> None:
    folder = train(root, "target.target_loss=5.0", expect=7)
    write_mini_bundle(root / "eval" / "pocket_bundle")
    steps = len(tiny.events(folder, StepEvent))
    resume = tiny.start_ranks(["--run", str(folder.root), "--attempt", "1"], root)
    tiny.finish(resume)
    outcomes = [record.event for record in tiny.events(folder, OutcomeEvent)]
    first, last = outcomes[0], outcomes[-1]
    assert isinstance(first, OutcomeEvent)
    assert isinstance(last, OutcomeEvent)
    assert len(tiny.events(folder, StepEvent)) == steps
    assert (last.loss, last.step, last.train_s) == (first.loss, first.step, first.train_s)


def test_train_writes_metrics_that_one_query_reads(root: Path) -> None:
    folder = train(root)
    rows = duckdb.sql(
        f"select step, value from '{folder.metrics}/step_*.parquet'"
        " where tag = 'train/loss' order by step"
    ).fetchall()
    assert [value for _, value in rows] == losses(folder)
    assert len(list(folder.metrics.glob("step_*.parquet"))) < len(rows)
    tags = duckdb.sql(f"select distinct tag from '{folder.metrics}/step_*.parquet'").fetchall()
    assert {"valid/bpb", "router/layer_01/cv", "optimizer/lr_muon"} <= {tag for (tag,) in tags}


def test_train_records_router_loads_that_add_up(root: Path) -> None:
    folder = train(root, "experts.num_dense_layers=1")
    event = tiny.events(folder, RouterEvent)[-1].event
    assert isinstance(event, RouterEvent)
    assert event.layers == (1,)
    plan = read_plan(folder.plan)
    record_bytes = 2 * plan.experts.num_experts
    assert folder.router.stat().st_size == (event.record + 1) * record_bytes


def test_train_announces_every_new_epoch(root: Path) -> None:
    folder = train(root, "train.steps=400", "validation.every=0", "checkpoint.every=0")
    epochs = [record.event for record in tiny.events(folder, EpochEvent)]
    assert [event.epoch for event in epochs if isinstance(event, EpochEvent)] == list(
        range(1, len(epochs) + 1)
    )
    assert epochs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepz=3"], 'unknown key "stepz" in [train]. Did you mean "steps"?'),
        (["train.dtype=auto"], "--set train.dtype=bf16"),
        (["train.dtype=fp8"], "fp8 experts are not built yet"),
        (["model.impl=triton"], "torch sees none"),
        (["attention.attn=mla"], "attention 'mla' is not built yet"),
        (["train.micro_batch=3"], "Change micro_batch"),
    ],
)
def test_train_refuses_what_it_cannot_do(root: Path, overrides: list[str], message: str) -> None:
    config = tiny.write_config(root)
    args = [word for override in overrides for word in ("--set", override)]
    (rank,) = tiny.start_ranks([str(config), *args], root)
    output, _ = rank.communicate(timeout=60)
    assert rank.returncode == 2
    assert message in output
    assert "Traceback" not in output


def test_train_exits_with_four_when_a_shard_is_truncated(root: Path) -> None:
    shard = next((root / "tiny" / "train").glob("*.npy"))
    shard.write_bytes(shard.read_bytes()[:-10])
    folder = train(root, expect=4)
    alert = tiny.events(folder, AlertEvent)[-1].event
    assert isinstance(alert, AlertEvent)
    assert shard.name in alert.message


def test_train_refuses_to_resume_when_the_data_has_changed(root: Path) -> None:
    folder = train(root)
    manifest = root / "tiny" / "val" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["shards"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(raw))
    resume = tiny.start_ranks(["--run", str(folder.root), "--attempt", "1"], root)
    output, _ = resume[0].communicate(timeout=60)
    assert resume[0].returncode == 5
    assert "from other data" in output


def test_train_refuses_a_second_process_when_the_run_is_alive(root: Path) -> None:
    config = tiny.write_config(root)
    (first,) = tiny.start_ranks([str(config), "--set", "train.steps=50000"], root)
    wait_for(lambda: bool(list((root / "runs").glob("*/train.jsonl"))))
    folder = tiny.only_run(root)
    (second,) = tiny.start_ranks(["--run", str(folder.root), "--attempt", "1"], root)
    output, _ = second.communicate(timeout=60)
    first.terminate()
    assert tiny.finish([first]) == [130]
    assert second.returncode == 2
    assert "is alive" in output


def test_torchrun_starts_two_ranks(root: Path) -> None:
    config = tiny.write_config(root)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = os.environ | {"DATA_DIR": str(root), "PYTHONPATH": str(REPO_ROOT)}
    done = subprocess.run(
        [
            *(*command, "-m", "nmoe.train", str(config), "--set", "train.steps=4"),
            *("--set", "train.micro_batch=8"),  # more than a rank's share: lowered to it
        ],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    folder = tiny.only_run(root)
    assert read_plan(folder.plan).world == 2
    assert read_plan(folder.plan).train.micro_batch == 4
    assert len(losses(folder)) == 1, done.stderr
    outcome = tiny.events(folder, OutcomeEvent)[-1].event
    assert isinstance(outcome, OutcomeEvent)
    assert outcome.status == "missed"
