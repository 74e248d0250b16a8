"""Scoreboard entries of format 1, made into entries of format 2.

What format 1 did not tell is None. An entry that does not hash to its id is refused: a new id
would hide that it was changed.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from harness.entry import (
    SCHEMA_VERSION,
    Achievement,
    Artifacts,
    Code,
    Cohort,
    Core,
    DataFacts,
    Entry,
    Env,
    ModelFacts,
    Selection,
    StatusChange,
    Timing,
)
from nmoe.config import ConfigError, Digests, build

FORMAT = 1
# Fields that entries of format 1 may lack; None in them did not count for the id.
_ADDED_FIELDS = (
    *("core_low", "core_high", "core_without_boolq", "core_cropped", "core_empty_regions"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OldHardware:
    """The machine as format 1 told of it."""

    gpu: str | None = None
    num_gpus: int = 0
    capability: str | None = None
    memory_bytes: int | None = None
    peak_tflops: float | None = None
    driver: str | None = None
    cpu: str = ""
    cores: int = 0
    is_fake: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OldResult:
    """The result of an entry of format 1."""

    run_id: str
    preset: str
    task: str
    status: str
    reached: bool
    target: float
    loss: float | None
    step: int
    tokens: int
    train_s: float
    wall_s: float
    compile_s: float | None
    eval_s: float | None
    checkpoint_s: float | None
    tok_s: float | None
    peak_memory_bytes: int | None
    params_total: int | None
    params_active: int | None
    core: float | None
    core_tasks: dict[str, dict[str, float | None]]
    core_bundle: str | None
    seed: int
    dtype: str
    dtype_reason: str
    deterministic: bool
    world: int
    attempts: int
    hardware: OldHardware
    digests: Digests
    data_source: str | None
    train_data: str | None
    val_data: str | None
    versions: dict[str, str]
    created: str
    finished: str
    core_low: float | None = None
    core_high: float | None = None
    core_without_boolq: float | None = None
    core_cropped: int | None = None
    core_empty_regions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OldEntry:
    """An entry of format 1."""

    entry_id: str
    status: str
    cohort: Cohort
    result: OldResult


def migrated(raw: object, where: str) -> Entry:
    """The entry of format 2, without a place in a chain; ConfigError for what is no whole entry."""
    old = build(OldEntry, raw, where=where)
    if _old_id(old) != old.entry_id:
        raise ConfigError(f"{where}: {old.result.run_id}: the entry was changed after it was made")
    return Entry(
        schema_version=SCHEMA_VERSION,
        entry_id="",
        prev_entry_id=None,
        created_utc=old.result.finished,
        status="provisional",
        status_history=(
            StatusChange(
                status="provisional",
                utc=old.result.finished,
                reason=f"migrated from format {FORMAT}, where it was {old.entry_id}",
            ),
        ),
        cohort=old.cohort,
        result=_result(old.result),
        selection=Selection(
            stop_rule=None,
            eval_every=None,
            evals_seen=None,
            first_crossing_step=None,
            series=None,
        ),
        replicates=None,
        telemetry=None,
        timing=Timing(clock=None, sync_points=(), included=(), excluded=()),
        artifacts=Artifacts(
            **dict.fromkeys(("plan_sha", "events_sha", "core_items_sha", "checkpoint_sha"))
        ),
        verification=None,
        **_facts(old.result),
    )


def _old_id(old: OldEntry) -> str:
    """The id as format 1 computed it."""
    content = asdict(old)
    del content["entry_id"]
    for name in _ADDED_FIELDS:
        if content["result"][name] is None:
            del content["result"][name]
    # format 1 wrote letters outside ASCII as escapes
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _result(old: OldResult) -> Achievement:
    same = {
        name: getattr(old, name)
        for name in (
            *("run_id", "preset", "task", "target", "reached", "loss", "step", "tokens"),
            *("train_s", "wall_s", "compile_s", "eval_s", "checkpoint_s", "tok_s"),
            *("peak_memory_bytes", "core", "seed", "dtype", "dtype_reason", "deterministic"),
            *("attempts", "created", "finished"),
        )
    }
    return Achievement(**same, val_tokens=None, mfu=None, energy_j=None)


def _facts(old: OldResult) -> dict[str, Any]:
    """The sections about CORE, model, code, data and machine."""
    hardware, digests, versions = old.hardware, old.digests, old.versions
    is_gpu = hardware.gpu is not None
    unknown_env = (
        *("power_limit_w", "cuda", "cudnn", "nccl", "vbios"),
        *("ecc", "mig", "topology", "container_digest"),
    )
    unknown_data = ("revision", "tokenizer", "train_shards", "train_tokens", "val_shards")
    return {
        "core": Core(
            **dict.fromkeys(("version", "cap", "ctx", "precision")),  # pyright: ignore[reportArgumentType]
            value=old.core,
            low=old.core_low,
            high=old.core_high,
            without_boolq=old.core_without_boolq,
            tasks=old.core_tasks,
            cropped=old.core_cropped,
            empty_regions=old.core_empty_regions,
            bundle_sha=old.core_bundle,
        ),
        "model": ModelFacts(
            **dict.fromkeys(("params_embedding", "params_expert", "experts", "top_k", "shared")),  # pyright: ignore[reportArgumentType]
            params_total=old.params_total,
            params_active=old.params_active,
            config_sha=digests.config,
        ),
        "code": Code(
            git_commit=digests.commit,
            is_dirty=digests.is_dirty,
            lock_sha=digests.constraints,
            package_versions=versions,
        ),
        "data": DataFacts(
            **dict.fromkeys(unknown_data),  # pyright: ignore[reportArgumentType]
            source=old.data_source,
            train_sha256=old.train_data,
            val_sha256=old.val_data,
            order_seed=old.seed,
        ),
        "env": Env(
            **dict.fromkeys(unknown_env),  # pyright: ignore[reportArgumentType]
            gpu_name=hardware.gpu,
            gpu_count=old.world if is_gpu else None,
            capability=hardware.capability,
            memory_bytes=hardware.memory_bytes,
            driver=hardware.driver,
            cpu=hardware.cpu or None,
            cores=hardware.cores or None,
            world=old.world,
            python=versions.get("python"),
            torch_version=versions.get("torch"),
            triton_version=versions.get("triton"),
        ),
    }
