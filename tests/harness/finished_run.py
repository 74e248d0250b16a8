"""A finished run on disk, as the trainer leaves it, with anything in it changed at will."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nmoe.config import Config, Digests, Hardware, Plan, config_digest, read_config
from nmoe.data.manifest import Manifest, Shard, write_manifest
from nmoe.event_log import EventLog
from nmoe.events import (
    CoreEvent,
    CoreTaskEvent,
    Event,
    OutcomeEvent,
    PhaseEvent,
    StepEvent,
    ValEvent,
)
from nmoe.flops import count_parameters, padded_vocab
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder, write_atomic

RUN_ID = "pocket-20260101-000000-abcd"
TASKS = {"copy": 0.5, "count": 0.25, "close": 0.0}


def make_plan(run_id: str = RUN_ID, *, config: Config | None = None, **changes: Any) -> Plan:
    """The plan of a `pocket` run on two cores, or of another config."""
    config = config or read_config(REPO_ROOT / "configs/speedrun/pocket.toml")
    values: dict[str, Any] = {
        "run_id": run_id,
        "created": "2026-01-01T00:00:00+00:00",
        "world": 1,
        "device": "cpu",
        "dtype": "fp32",
        "dtype_reason": "named in the preset",
        "choice": "no GPU",
        "hardware": Hardware(cpu="Some CPU", cores=2),
        "digests": Digests(config=config_digest(config), commit="c" * 40, is_dirty=False),
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
    }
    sections = {item.name: getattr(config, item.name) for item in fields(Config)}
    return Plan(**(sections | values | changes))


def write_dataset(folder: Path, *, source: str = "stdlib", sha256: str = "a" * 64) -> None:
    """A manifest; the scorer reads nothing else of a dataset."""
    shard = Shard(name="shard_00000.npy", tokens=1000, bytes=2128, sha256=sha256)
    manifest = Manifest(
        name="made",
        source=source,
        revision="1",
        tokenizer="byte",
        vocab_size=257,
        eos_id=256,
        total_tokens=1000,
        num_docs=10,
        text_bytes=990,
        shards=(shard,),
    )
    write_manifest(folder, manifest)


def events_of(
    plan: Plan, *, steps: int = 200, loss: float | None = None, train_s: float = 60.0
) -> list[Event]:
    """The events of a run that reaches its target at `steps` and is scored."""
    batch = plan.train.batch_size * plan.train.seq_len
    end_loss = plan.target.target_loss - 0.01 if loss is None else loss
    parameters = count_parameters(plan, padded_vocab(257))
    events: list[Event] = [PhaseEvent(phase="training")]
    every = plan.validation.every
    for step in range(every, steps + 1, every):
        clock = train_s * step / steps
        val_loss = end_loss if step == steps else end_loss + 0.5
        events += [
            StepEvent(
                step=step,
                tokens=step * batch,
                loss=val_loss + 0.1,
                lr=1e-3,
                grad_norm=1.0,
                ms=10.0,
                tok_s=1000.0,
                mfu=None,
                train_s=clock,
                wall_s=clock + 1,
            ),
            ValEvent(
                step=step,
                loss=val_loss,
                bpb=val_loss / 0.7,
                tokens=plan.validation.windows * plan.train.seq_len,
                train_s=clock,
                seconds=0.5,
            ),
        ]
    for index, (name, centered) in enumerate(TASKS.items(), start=1):
        events.append(
            CoreTaskEvent(
                name=name,
                index=index,
                count=len(TASKS),
                items=50,
                acc=centered / 2 + 0.5,
                centered=centered,
                seconds=0.1,
            )
        )
    score = sum(TASKS.values()) / len(TASKS)
    events += [
        CoreEvent(score=score, tasks=len(TASKS), items=150, bundle="b" * 64, seconds=1.0),
        OutcomeEvent(
            status="done",
            step=steps,
            tokens=steps * batch,
            loss=end_loss,
            train_s=train_s,
            wall_s=train_s + 10,
            compile_s=1.0,
            eval_s=5.0,
            checkpoint_s=1.0,
            peak_memory_bytes=10**9,
            params_total=parameters.total,
            params_active=parameters.active,
        ),
    ]
    return events


def write_run(
    root: DataRoot,
    *,
    plan: Plan | None = None,
    events: list[Event] | None = None,
    changes: dict[type[Event], dict[str, Any]] | None = None,
    **options: Any,
) -> RunFolder:
    """A run folder; `changes` alters the last event of each type, `options` go to events_of."""
    plan = plan or make_plan()
    events = list(events or events_of(plan, **options))
    for kind, change in (changes or {}).items():
        at = max(i for i, event in enumerate(events) if isinstance(event, kind))
        events[at] = replace(events[at], **change)
    folder = root.run(plan.run_id)
    folder.root.mkdir(parents=True)
    write_atomic(folder.plan, plan.to_json())
    log = EventLog(folder.train, attempt=0)
    for event in events:
        log.write(event)
    log.close()
    dataset = root.dataset(plan.data.data_path)
    for split, digit in (("train", "a"), ("val", "b")):
        if not (dataset / split).exists():
            write_dataset(dataset / split, sha256=digit * 64)
    return folder
