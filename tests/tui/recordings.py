"""Run folders as a trainer and a supervisor would leave them, made from events with fixed times."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nmoe import events as ev
from nmoe.config import (
    Config,
    Digests,
    Hardware,
    Plan,
    Target,
    config_digest,
    read_config,
    read_plan,
)
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder

START = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC
RUN_ID = "pocket-20260101-000000-abcd"
CORE_TASKS = {"copy": 0.62, "count": 0.31, "close_bracket": 0.18, "keyword": -0.04, "indent": 0.44}
TARGET = 1.7
LOG_EVERY = 10
VALIDATE_EVERY = 100


@dataclass
class Recording:
    """Lines of the two event files of one run, written in the order they are told."""

    root: DataRoot
    run_id: str = RUN_ID
    attempt: int = 0
    time: float = START

    def __post_init__(self) -> None:
        self.folder: RunFolder = self.root.run(self.run_id)
        self.folder.root.mkdir(parents=True, exist_ok=True)
        self._seq = {"train": 0, "supervisor": 0, "gpus": 0}

    def plan(self, **changes: Any) -> Plan:
        """Write plan.json."""
        plan = make_plan(self.run_id, **changes)
        self.folder.plan.write_text(plan.to_json(), encoding="utf-8")
        return plan

    def train(self, *events: ev.Event, seconds: float = 0.0) -> None:
        self._append("train", events, seconds)

    def supervisor(self, *events: ev.Event, seconds: float = 0.0) -> None:
        self._append("supervisor", events, seconds)

    def gpus(self, *events: ev.Event, seconds: float = 0.0) -> None:
        self._append("gpus", events, seconds)

    def _append(self, name: str, events: Sequence[ev.Event], seconds: float) -> None:
        path = {
            "train": self.folder.train,
            "supervisor": self.folder.supervisor,
            "gpus": self.folder.gpus,
        }[name]
        with path.open("a", encoding="utf-8") as file:
            for event in events:
                self.time += seconds
                record = ev.Record(
                    seq=self._seq[name], time=self.time, attempt=self.attempt, event=event
                )
                self._seq[name] += 1
                file.write(ev.encode(record) + "\n")


def data_root(path: Path) -> DataRoot:
    """A data root at `path`."""
    return DataRoot(path=path, reason="test")


def make_plan(run_id: str = RUN_ID, **changes: Any) -> Plan:
    """A plan of `pocket`; fields of Plan can be replaced."""
    config = read_config(REPO_ROOT / "configs" / "speedrun" / "pocket.toml")
    config = replace(config, target=Target(target_loss=TARGET))
    values: dict[str, Any] = {item.name: getattr(config, item.name) for item in fields(Config)}
    values |= {
        "run_id": run_id,
        "created": "2026-01-01T00:00:00+00:00",
        "world": 1,
        "device": "cpu",
        "dtype": "fp32",
        "dtype_reason": "set by pocket.toml",
        "choice": "pocket on 1 rank(s) on Some CPU: the CPU preset",
        "hardware": Hardware(cpu="Some CPU", cores=2),
        "digests": Digests(config=config_digest(config), commit="c" * 40, is_dirty=False),
    }
    return Plan(**(values | changes))


def loss_at(step: int) -> float:
    """A curve like those of small models, with a ripple that is the same each time."""
    base = 1.65 + 2.9 * math.exp(-step / 140) + 0.9 * math.exp(-step / 1100)
    return base + 0.03 * math.sin(step * 1.7) * math.exp(-step / 3000)


def step_event(step: int, *, loss: float | None = None, batch: int = 1024) -> ev.StepEvent:
    """A step event at 22 ms a step."""
    train_s = step * 0.022
    return ev.StepEvent(
        step=step,
        tokens=step * batch,
        loss=loss_at(step) if loss is None else loss,
        lr=8e-3 * min(1.0, step / 50),
        grad_norm=0.8 + 0.1 * math.sin(step),
        ms=22.0,
        tok_s=batch / 0.022,
        mfu=None,
        train_s=train_s,
        wall_s=train_s * 1.1 + 8,
    )


def val_event(step: int, *, loss: float | None = None) -> ev.ValEvent:
    value = loss_at(step) + 0.02 if loss is None else loss
    return ev.ValEvent(
        step=step, loss=value, bpb=value / math.log(2), tokens=32768, train_s=step * 0.022,
        seconds=0.4,
    )  # fmt: skip


def router_event(step: int) -> ev.RouterEvent:
    return ev.RouterEvent(
        step=step, layers=(0, 1), cv=(0.31, 0.24), entropy=(0.97, 0.98), experts_active=(8, 8),
        max_load=(1.6, 1.4), bias_range=(0.02, 0.03), record=step // LOG_EVERY,
    )  # fmt: skip


def steps(stop: int, *, start: int = 0, nan_from: int | None = None) -> Iterator[ev.Event]:
    """Step, router and validation events after `start` up to and including `stop`."""
    for step in range(start + LOG_EVERY, stop + 1, LOG_EVERY):
        is_nan = nan_from is not None and step >= nan_from
        yield step_event(step, loss=math.nan if is_nan else None)
        yield router_event(step)
        if step % VALIDATE_EVERY == 0 and not is_nan:
            yield val_event(step)
        if step % 500 == 0:
            yield ev.CheckpointEvent(
                step=step, name=f"step_{step:08}", bytes=3_400_000, seconds=0.05
            )


def outcome(status: ev.Status, *, step: int, message: str = "") -> ev.OutcomeEvent:
    return ev.OutcomeEvent(
        status=status, step=step, tokens=step * 1024, loss=loss_at(step), train_s=step * 0.022,
        wall_s=step * 0.025, compile_s=1.0, eval_s=4.0, checkpoint_s=0.3,
        peak_memory_bytes=600 << 20, params_total=300_000, params_active=120_000, message=message,
    )  # fmt: skip


def core_events(count: int | None = None) -> list[ev.Event]:
    """Scored tasks, `count` of them or all."""
    names = list(CORE_TASKS)[:count]
    return [
        ev.CoreTaskEvent(
            name=name, index=index, count=len(CORE_TASKS), items=60,
            acc=0.25 + 0.75 * CORE_TASKS[name], centered=CORE_TASKS[name], seconds=1.3,
        )
        for index, name in enumerate(names, start=1)
    ]  # fmt: skip


def prepare(recording: Recording, *, is_done: bool = True) -> None:
    """Supervisor events until the ranks are started, or in the middle of preparation."""
    recording.supervisor(ev.PhaseEvent(phase="checking"), ev.PhaseEvent(phase="preparing"))
    total = 24_000_000
    recording.supervisor(
        ev.PrepEvent(job="pocket/val", done=1_200_000, total=1_200_000, unit="bytes"),
        ev.PrepEvent(
            job="pocket/train", done=total if is_done else total * 5 // 12, total=total,
            unit="bytes",
        ),
        seconds=1.0,
    )  # fmt: skip
    if is_done:
        recording.supervisor(
            ev.PrepEvent(job="eval/pocket_bundle", done=5, total=5, unit="tasks"),
            ev.PhaseEvent(phase="launching"),
            ev.LaunchEvent(pids=(4242,), command=("python", "-m", "nmoe.train")),
        )
        recording.train(
            ev.RankEvent(rank=0, pid=4242, is_ready=True),
            ev.PhaseEvent(phase="compiling"),
            ev.CompileEvent(what="warm-up", seconds=1.0),
            ev.PhaseEvent(phase="training"),
            seconds=0.5,
        )


def recorded(root: DataRoot, name: str) -> RunFolder:
    """A copy of what a real run wrote, kept in tests/data/runs."""
    source = RunFolder(root=REPO_ROOT / "tests" / "data" / "runs" / name)
    folder = root.run(read_plan(source.plan).run_id)
    shutil.copytree(source.root, folder.root)
    return folder


def done(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run that reached its target and was scored and ranked."""
    recording = Recording(root, run_id)
    recording.plan()
    prepare(recording)
    recording.train(*steps(3200), seconds=0.1)
    final = TARGET - 0.004
    recording.train(val_event(3300, loss=final), ev.PhaseEvent(phase="core-eval"))
    recording.train(*core_events(), seconds=1.3)
    score = sum(CORE_TASKS.values()) / len(CORE_TASKS)
    recording.train(
        ev.CoreEvent(score=score, tasks=5, items=300, bundle="pocket_bundle", seconds=6.5),
        outcome("done", step=3300),
    )
    recording.supervisor(
        ev.PhaseEvent(phase="scoring"),
        ev.ExitEvent(status="done", rc=0),
        ev.ResultEvent(
            reached=True, status="done", target=TARGET, loss=final, step=3300,
            tokens=3300 * 1024, train_s=72.6, wall_s=91.0, core=score, rank=1, entry_id="e" * 64,
            board="LEADERBOARD.json",
        ),
    )  # fmt: skip
    return recording.folder


def training(root: DataRoot, run_id: str = RUN_ID, *, stop: int = 1500) -> Recording:
    """A run in the middle of training; more can be told."""
    recording = Recording(root, run_id)
    recording.plan()
    prepare(recording)
    recording.train(*steps(stop), seconds=0.1)
    return recording


def scoring_core(root: DataRoot, run_id: str = RUN_ID) -> Recording:
    """A run past its target with three of five tasks scored."""
    recording = training(root, run_id, stop=3200)
    recording.train(val_event(3300, loss=1.69), ev.PhaseEvent(phase="core-eval"), *core_events(3))
    return recording


def preparing(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run whose text is being tokenized."""
    recording = Recording(root, run_id)
    recording.plan()
    prepare(recording, is_done=False)
    return recording.folder


def failed(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run of which a rank was killed."""
    recording = training(root, run_id, stop=700)
    recording.supervisor(
        ev.ExitEvent(
            status="failed", rc=5, signal="SIGKILL", rank=0,
            tail=("Traceback (most recent call last):", "MemoryError: [/bold] out of memory"),
            hint="the system killed it for memory: lower train.micro_batch",
        )
    )  # fmt: skip
    return recording.folder


def diverged(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run whose loss became NaN."""
    recording = Recording(root, run_id)
    recording.plan()
    prepare(recording)
    recording.train(*steps(620, nan_from=600), seconds=0.1)
    recording.train(
        ev.AlertEvent(code="non-finite", level="error", message="loss is nan at step 600"),
        outcome("diverged", step=620, message="the loss is nan since step 600"),
    )
    recording.supervisor(ev.ExitEvent(status="diverged", rc=5))
    return recording.folder


def interrupted(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run that vanished without a word after step 740."""
    return training(root, run_id, stop=740).folder


def with_gpus(root: DataRoot, run_id: str = RUN_ID) -> RunFolder:
    """A run on eight GPUs, one of them lost and one that tells nothing."""
    recording = Recording(root, run_id)
    plan = make_plan(run_id)
    gpu = Hardware(gpu="B200", num_gpus=8, capability="10.0", memory_bytes=180 << 30, cores=96)
    recording.folder.plan.write_text(
        replace(
            plan,
            train=replace(plan.train, micro_batch=1),
            hardware=gpu,
            world=8,
            device="cuda",
            dtype="bf16",
        ).to_json()
    )
    prepare(recording)
    recording.train(*steps(400), seconds=0.1)
    recording.gpus(
        *(ev.GpuEvent(index=i, util=97, power_w=900.0, temperature_c=70) for i in range(6)),
        ev.GpuEvent(index=6),
        ev.GpuEvent(index=7, is_lost=True),
    )
    return recording.folder
