"""Facts of a run as appended lines: event kinds, encoding, decoding.

A line is one strict-JSON object: `{"v":1,"s":12,"t":1700000000.0,"a":0,"k":"step",...}` with schema
version, per-file sequence, unix time, attempt and kind. A non-finite number is written as null and
its field is named in `"nf"`. Readers skip kinds they do not know and refuse versions they do not.
"""

import json
from dataclasses import dataclass
from typing import ClassVar, Literal

from nmoe.event_line import VERSION, EventError, parse, strict, values
from nmoe.kinds import count, moment

Phase = Literal[
    "checking",
    "preparing",
    "launching",
    "compiling",
    "training",
    "validating",
    "core-eval",
    "stopping",
    "scoring",
]
Status = Literal["done", "missed", "failed", "diverged", "interrupted", "core-failed"]
Level = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all facts; `kind` is the `k` of the line."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEvent(Event):
    """The run entered a phase; `note` says why or what."""

    kind: ClassVar[str] = "phase"
    phase: Phase
    note: str = ""
    resume_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepEvent(Event):
    """Progress of a preparation job; `done == total` when finished."""

    kind: ClassVar[str] = "prep"
    job: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchEvent(Event):
    """The supervisor started the ranks of an attempt."""

    kind: ClassVar[str] = "launch"
    pids: tuple[int, ...]
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEvent(Event):
    """A rank is ready to train."""

    kind: ClassVar[str] = "rank"
    rank: int
    pid: int
    is_ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileEvent(Event):
    """Work before the clock: building, warming up or compiling `what` took `seconds`."""

    kind: ClassVar[str] = "compile"
    what: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(Event):
    """Means since the last step event; tokens and times are totals of the run."""

    kind: ClassVar[str] = "step"
    step: int
    tokens: int
    loss: float
    lr: float
    grad_norm: float
    ms: float
    tok_s: float
    mfu: float | None
    train_s: float
    wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValEvent(Event):
    """A validation: mean nats a token, bits a byte, targets counted."""

    kind: ClassVar[str] = "val"
    step: int
    loss: float
    bpb: float
    tokens: int
    train_s: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterEvent(Event):
    """Router health, one number a MoE layer; `record` indexes router.f16."""

    kind: ClassVar[str] = "router"
    step: int
    layers: tuple[int, ...]
    cv: tuple[float, ...]
    entropy: tuple[float, ...]
    experts_active: tuple[int, ...]
    max_load: tuple[float, ...]
    bias_range: tuple[float, ...]
    record: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint is whole on disk, `seconds` after its step; the clock stood for `paused_s`."""

    kind: ClassVar[str] = "ckpt"
    step: int
    name: str
    bytes: int
    seconds: float
    paused_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEvent(Event):
    """The dataset begins anew, or, in a flow, that of `source`."""

    kind: ClassVar[str] = "epoch"
    step: int
    epoch: int
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEvent(Event):
    """A stage of the plan's flow begins; `index` counts from 0."""

    kind: ClassVar[str] = "stage"
    step: int
    name: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreTaskEvent(Event):
    """One CORE task is scored: `index` of `count` tasks, `items` scored after `step`.

    `ci95` is of `acc`; `cropped` and `empty_regions` count items with an option that was cut to
    the context, or had nothing to score. An interim one was scored while training went on.
    """

    kind: ClassVar[str] = "core_task"
    name: str
    index: int
    count: int
    items: int
    acc: float
    centered: float
    seconds: float
    baseline: float | None = None
    ci95: tuple[float, float] | None = None
    cropped: int | None = None
    empty_regions: int | None = None
    step: int | None = None
    is_interim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreEvent(Event):
    """The CORE score of the passing validation's checkpoint, or an interim one of `step`.

    `ci95` is a bootstrap interval over items; `without_boolq` is ours; `cap` None scores all items.
    """

    kind: ClassVar[str] = "core"
    score: float
    tasks: int
    items: int
    bundle: str
    seconds: float
    ci95: tuple[float, float] | None = None
    without_boolq: float | None = None
    cropped: int | None = None
    empty_regions: int | None = None
    version: str = ""
    cap: int | None = None
    step: int | None = None
    is_interim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertEvent(Event):
    """Something a person should know; `code` is stable, `message` is for reading."""

    kind: ClassVar[str] = "alert"
    code: str
    level: Level
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequestEvent(Event):
    """The supervisor saw a request to stop, or escalated one."""

    kind: ClassVar[str] = "stop_req"
    by: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAckEvent(Event):
    """The trainer stops after `step`, which is saved."""

    kind: ClassVar[str] = "stop_ack"
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeEvent(Event):
    """How training ended, as the trainer saw it; the score is computed from the files."""

    kind: ClassVar[str] = "outcome"
    status: Status
    step: int
    tokens: int
    loss: float | None
    train_s: float
    wall_s: float
    compile_s: float
    eval_s: float
    checkpoint_s: float
    peak_memory_bytes: int
    params_total: int
    params_active: int
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitEvent(Event):
    """The attempt is over: exit code, or the signal and rank that ended it, and its last words."""

    kind: ClassVar[str] = "exit"
    status: Status
    rc: int
    signal: str | None = None
    rank: int | None = None
    tail: tuple[str, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultEvent(Event):
    """The score of the run, equal to result.json; `reason` says why there is no entry."""

    kind: ClassVar[str] = "result"
    reached: bool
    status: Status
    target: float
    loss: float | None
    step: int
    tokens: int
    train_s: float
    wall_s: float
    core: float | None
    rank: int | None
    entry_id: str | None
    board: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEvent(Event):
    """One NVML sample of one GPU; None is N/A, never zero.

    Fractions and rates are means since the last sample; counts are since the driver was loaded.
    `throttle` has NVML's bits of clock event reasons.
    """

    kind: ClassVar[str] = "gpu"
    index: int
    util: int | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    temperature_c: int | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttle: int | None = None
    is_lost: bool = False
    memory_temperature_c: int | None = None
    sm_max_mhz: int | None = None
    sm_frac: float | None = None
    tensor_frac: float | None = None
    dram_frac: float | None = None
    nvlink_tx_bytes_s: float | None = None
    nvlink_rx_bytes_s: float | None = None
    pcie_tx_bytes_s: float | None = None
    pcie_rx_bytes_s: float | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows: int | None = None
    is_remap_pending: bool | None = None
    pcie_replays: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TopologyEvent(Event):
    """How the N GPUs `indices` are joined; `nvlinks` counts a GPU's active links.

    `paths` has N x N words, row by row: "nvlink", "p2p" (peer reads over PCIe), or what two GPUs
    without peer access have in common ("switch", "bridge", "node", "system" …); None is N/A.
    """

    kind: ClassVar[str] = "topology"
    indices: tuple[int, ...]
    nvlinks: tuple[int | None, ...]
    paths: tuple[str | None, ...]
    pcie_gens: tuple[int | None, ...]
    pcie_widths: tuple[int | None, ...]
    pcie_max_widths: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyEvent(Event):
    """What the GPUs together used while `tokens` were trained in this attempt, up to `step`."""

    kind: ClassVar[str] = "energy"
    step: int
    tokens: int
    joules: float


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        *(PhaseEvent, PrepEvent, LaunchEvent, RankEvent, CompileEvent, StepEvent, ValEvent),
        *(RouterEvent, CheckpointEvent, EpochEvent, StageEvent, CoreTaskEvent, CoreEvent, GpuEvent),
        *(TopologyEvent, EnergyEvent),
        *(AlertEvent, StopRequestEvent, StopAckEvent, OutcomeEvent, ExitEvent, ResultEvent),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An event with its envelope: sequence in its file, unix time, attempt."""

    seq: int
    time: float
    attempt: int
    event: Event


def encode(record: Record) -> str:
    """One strict-JSON line without the newline."""
    head = {"v": VERSION, "s": record.seq, "t": round(record.time, 3), "a": record.attempt}
    line = {**head, "k": record.event.kind, **strict(record.event)}
    return json.dumps(line, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def decode(line: str | bytes) -> Record | None:
    """The record of a whole line, or None for a kind this version does not know.

    Raises EventError for anything else: no JSON, another version, missing or unusable fields.
    """
    raw = parse(line)
    event_type = KINDS.get(raw["k"])
    if event_type is None:
        return None
    try:
        event = event_type(**values(event_type, raw))
        seq, attempt = count(raw["s"]), count(raw["a"])
        return Record(seq=seq, time=moment(raw["t"]), attempt=attempt, event=event)
    except (KeyError, TypeError, ValueError) as error:
        raise EventError(f"broken {event_type.kind} event: {error}") from None
