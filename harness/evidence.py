"""What the files of a run say beyond its score: the sections of its scoreboard entry.

Nothing is measured here and no clock is read; what the files do not tell is None.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles

from harness import rules
from harness.describe import describe
from harness.entry import (
    Artifacts,
    Code,
    Core,
    DataFacts,
    Env,
    ModelFacts,
    Selection,
    Telemetry,
    Timing,
)
from harness.run_state import RunState
from nmoe.config import Plan
from nmoe.data.manifest import Manifest, digest
from nmoe.event_log import read_events
from nmoe.events import GpuEvent, OutcomeEvent
from nmoe.flops import count_parameters, flops_per_token, padded_vocab
from nmoe.paths import RunFolder, file_digest

TARGET_CHECKPOINTS = "target_*/manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The sections of an entry that are read from files; `mfu` and `energy_j` go into its result.

    `energy_j` is what all GPUs took from the start of training to the passing validation.
    """

    selection: Selection
    core: Core
    model: ModelFacts
    code: Code
    data: DataFacts
    env: Env
    telemetry: Telemetry | None
    timing: Timing
    artifacts: Artifacts
    mfu: float | None
    energy_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Unix times between which the clock of the score stood open; `finished` ends what came after.

    The clock closes at the validation that ends the race; CORE is scored behind it.
    """

    began: float
    ended: float
    finished: float


def gather(
    folder: RunFolder,
    plan: Plan,
    state: RunState,
    *,
    train: Manifest | None,
    val: Manifest | None,
    span: Span | None,
    train_s: float,
) -> Evidence:
    """All that the run folder tells; `train` and `val` are the manifests of its data."""
    samples = _samples(folder, span)
    vocab = padded_vocab(val.vocab_size) if val else None
    return Evidence(
        selection=_selection(plan, state),
        core=_core(plan, state),
        model=_model(plan, state.outcome, vocab),
        code=Code(
            git_commit=plan.digests.commit,
            is_dirty=plan.digests.is_dirty,
            lock_sha=plan.digests.constraints,
            package_versions=plan.versions,
        ),
        data=_data(plan, train, val),
        env=_env(plan, state, samples),
        telemetry=_telemetry(samples),
        timing=_timing(),
        artifacts=artifacts(folder),
        mfu=_mfu(plan, state, vocab, train_s),
        energy_j=_energy_j(samples, plan, state),
    )


def artifacts(folder: RunFolder) -> Artifacts:
    """Hashes of the files behind an entry, as they are now."""
    checkpoints = sorted(folder.checkpoints.glob(TARGET_CHECKPOINTS))
    return Artifacts(
        plan_sha=_sha(folder.plan),
        events_sha=_sha(folder.train),
        core_items_sha=_sha(folder.core_items),
        checkpoint_sha=_sha(checkpoints[-1]) if checkpoints else None,
    )


def _selection(plan: Plan, state: RunState) -> Selection:
    vals, target = state.val_events, plan.target.target_loss
    return Selection(
        stop_rule=plan.target.stop_rule,
        eval_every=plan.validation.every,
        evals_seen=len(vals),
        first_crossing_step=next((val.step for val in vals if val.loss <= target), None),
        series=plan.series,
    )


def _core(plan: Plan, state: RunState) -> Core:
    core = state.core
    low, high = core.ci95 if core and core.ci95 else (None, None)
    return Core(
        version=core.version or None if core else None,
        value=core.score if core else None,
        low=low,
        high=high,
        without_boolq=core.without_boolq if core else None,
        tasks={
            task.name: {"items": task.items, "acc": task.acc, "centered": task.centered}
            for task in state.core_tasks
        },
        cropped=core.cropped if core else None,
        empty_regions=core.empty_regions if core else None,
        bundle_sha=core.bundle if core else None,
        cap=core.cap if core else None,
        ctx=plan.train.seq_len,
        precision=plan.dtype,
    )


def _model(plan: Plan, outcome: OutcomeEvent | None, vocab: int | None) -> ModelFacts:
    counted = count_parameters(plan, vocab) if vocab else None
    return ModelFacts(
        params_total=outcome.params_total if outcome else None,
        params_active=outcome.params_active if outcome else None,
        params_embedding=counted.embedding if counted else None,
        params_expert=counted.expert if counted else None,
        experts=plan.experts.num_experts,
        top_k=plan.experts.top_k,
        shared=plan.experts.num_shared,
        config_sha=plan.digests.config,
    )


def _data(plan: Plan, train: Manifest | None, val: Manifest | None) -> DataFacts:
    is_flow = plan.flow is not None
    return DataFacts(
        source=source(plan, train),
        revision=None if is_flow or not train else train.revision,
        tokenizer=val.tokenizer if val else None,
        train_sha256=plan.flow.digest if plan.flow else digest(train) if train else None,
        train_shards=None if is_flow or not train else len(train.shards),
        train_tokens=None if is_flow or not train else train.total_tokens,
        val_sha256=digest(val) if val else None,
        val_shards=len(val.shards) if val else None,
        order_seed=plan.train.seed,
    )


def source(plan: Plan, train: Manifest | None) -> str | None:
    """Where the training text came from, in words."""
    if plan.flow is not None:
        return f"flow {plan.flow.profile}: {', '.join(each.name for each in plan.flow.sources)}"
    return f"{train.source}@{train.revision}" if train else None


def _env(plan: Plan, state: RunState, samples: Sequence[tuple[float, GpuEvent]]) -> Env:
    hardware, is_gpu = plan.hardware, plan.device == "cuda"
    limits = {event.power_limit_w for _, event in samples}
    return Env(
        gpu_name=hardware.gpu if is_gpu else None,
        gpu_count=plan.world if is_gpu else None,
        capability=hardware.capability,
        memory_bytes=hardware.memory_bytes,
        driver=hardware.driver,
        power_limit_w=limits.pop() if len(limits) == 1 else None,
        cpu=hardware.cpu or None,
        cores=hardware.cores or None,
        world=plan.world,
        python=plan.versions.get("python"),
        torch_version=plan.versions.get("torch"),
        triton_version=plan.versions.get("triton"),
        cuda=plan.versions.get("cuda"),
        cudnn=plan.versions.get("cudnn"),
        nccl=plan.versions.get("nccl"),
        vbios=hardware.vbios,
        ecc=hardware.is_ecc,
        mig=hardware.is_mig,
        topology=describe(state.topology) if state.topology else None,
        container_digest=None,  # nothing inside a container tells it
    )


def _timing() -> Timing:
    clock = rules.current().clock
    return Timing(
        clock=clock.name,
        sync_points=clock.sync_points,
        included=clock.included,
        excluded=clock.excluded,
    )


def _samples(folder: RunFolder, span: Span | None) -> list[tuple[float, GpuEvent]]:
    if span is None:
        return []
    return [
        (record.time, record.event)
        for record in read_events(folder.gpus)
        if isinstance(record.event, GpuEvent) and span.began <= record.time <= span.ended
    ]


def _telemetry(samples: Sequence[tuple[float, GpuEvent]]) -> Telemetry | None:
    if not samples:
        return None
    events = [event for _, event in samples]
    clocks = sorted(event.sm_mhz for event in events if event.sm_mhz is not None)
    heat = [event.temperature_c for event in events if event.temperature_c is not None]
    power = [event.power_w for event in events if event.power_w is not None]
    reasons = [event.throttle for event in events if event.throttle is not None]
    union = 0
    for reason in reasons:
        union |= reason
    return Telemetry(
        samples=len(events),
        clock_sm_p5_mhz=round(_quantile(clocks, 5)) if clocks else None,
        clock_sm_p50_mhz=round(_quantile(clocks, 50)) if clocks else None,
        temperature_max_c=max(heat, default=None),
        throttle_union=union if reasons else None,
        power_mean_w=sum(power) / len(power) if power else None,
    )


def _quantile(values: Sequence[int], percent: int) -> float:
    return quantiles(values, n=100)[percent - 1] if len(values) > 1 else values[0]


def _energy_j(
    samples: Sequence[tuple[float, GpuEvent]], plan: Plan, state: RunState
) -> float | None:
    """From the energy counters; None unless one attempt was sampled on all its GPUs."""
    counters: dict[int, list[float]] = {}
    for _, event in samples:
        if event.energy_j is not None:
            counters.setdefault(event.index, []).append(event.energy_j)
    if state.attempt or len(counters) != plan.world or plan.device != "cuda":
        return None
    return sum(values[-1] - values[0] for values in counters.values())


def _mfu(plan: Plan, state: RunState, vocab: int | None, train_s: float) -> float | None:
    peak = plan.hardware.peak_tflops
    if not peak or not vocab or train_s <= 0 or plan.device != "cuda" or state.outcome is None:
        return None
    rate = state.outcome.tokens / train_s
    return rate * flops_per_token(plan, vocab) / (peak * 1e12 * plan.world)


def _sha(path: Path) -> str | None:
    try:
        return file_digest(path)
    except OSError:
        return None
