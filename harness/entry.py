"""A scoreboard entry, format 2: its sections, canonical JSON, the chain of ids.

What a run does not tell is None, never a guess. `entry_id` is the sha256 of the canonical JSON
(sorted keys, no spaces, UTF-8) of everything else in the entry, `prev_entry_id` included, so that
an entry can neither be edited nor dropped nor moved without breaking the chain behind it.
"""

import hashlib
import json
import re
import types
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal, cast

from nmoe.config import ConfigError

SCHEMA_VERSION = 2
Status = Literal["provisional", "verified", "replicated", "certified", "disputed", "withdrawn"]
Verdict = Literal["pass", "fail", "skip"]
StopRule = Literal["first_crossing", "fixed_horizon"]
_ID_HEAD, _ID_TAIL = '{"entry_id":"', '",'
_ID_CHARS = 64
_PREV = re.compile(r',"prev_entry_id":"([0-9a-f]{64})"')
_NUMBER: frozenset[type] = frozenset((int, float, types.NoneType))


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What must be equal before two times may be compared.

    `machine` is the GPU model (`devices` of them) or the CPU model (`devices` cores); `validation`
    digests the validation text and how it is cut; `rules` is the version of the rules, or "custom"
    when a task is not run as its rules say; `python` matters where the text comes from the
    interpreter.
    """

    task: str
    rules: str
    target: float
    validation: str
    machine: str
    devices: int
    dtype: str
    python: str | None

    @property
    def label(self) -> str:
        """One line for a heading."""
        rules = " · custom rules" if self.rules == "custom" else ""
        python = f" · python {self.python}" if self.python else ""
        machine = f"{self.devices} x {self.machine}"
        return f"{self.task} <= {self.target:g}{rules} · {machine} · {self.dtype}{python}"

    @cached_property
    def cohort_id(self) -> str:
        """A short hash over all of it."""
        return hashlib.sha256(canonical(asdict(self)).encode()).hexdigest()[:16]

    def differences(self, other: "Cohort") -> list[str]:
        """The fields that differ, with both values."""
        return [
            f"{item.name}: {getattr(self, item.name)} and {getattr(other, item.name)}"
            for item in fields(self)
            if getattr(self, item.name) != getattr(other, item.name)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChange:
    """A status, since when (UTC) and why."""

    status: Status
    utc: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Achievement:
    """What a run achieved. Times are seconds; energy is of the GPUs alone.

    `train_s` counts training steps up to the passing validation, `wall_s` everything since start.
    """

    run_id: str
    preset: str
    task: str
    target: float
    reached: bool
    loss: float | None
    val_tokens: int | None
    step: int
    tokens: int
    train_s: float
    wall_s: float
    compile_s: float | None
    eval_s: float | None
    checkpoint_s: float | None
    tok_s: float | None
    mfu: float | None
    peak_memory_bytes: int | None
    energy_j: float | None
    core: float | None
    seed: int
    dtype: str
    dtype_reason: str
    deterministic: bool
    attempts: int
    created: str
    finished: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How the step that counts was chosen; `series` is the set of repeats the run belongs to."""

    stop_rule: StopRule | None
    eval_every: int | None
    evals_seen: int | None
    first_crossing_step: int | None
    series: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """The repeats behind an entry: all that were registered before they started.

    `failed` counts those that did not come to the horizon. `losses` and `times_s` are those of
    the finished runs, in the order of `run_ids`; `mean_train_s` is the olympic mean (without
    fastest and slowest) from ten runs on. `z` tests mean <= target with `sigma`, whose origin and
    degrees of freedom are stated; `p` is one-sided.
    """

    series: str
    registered_utc: str
    horizon: int
    n: int
    started: int
    finished: int
    failed: int
    run_ids: tuple[str, ...]
    seeds: tuple[int, ...]
    statuses: tuple[str, ...]
    losses: tuple[float, ...]
    times_s: tuple[float, ...]
    mean_loss: float
    sd_loss: float
    mean_train_s: float
    sd_train_s: float
    sigma: float
    sigma_from: str
    sigma_df: int | None
    z: float
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """CORE and how it was scored; `tasks` holds items, acc and centered of each task."""

    version: str | None
    value: float | None
    low: float | None
    high: float | None
    without_boolq: float | None
    tasks: dict[str, dict[str, float | None]]
    cropped: int | None
    empty_regions: int | None
    bundle_sha: str | None
    cap: int | None
    ctx: int | None
    precision: str | None

    def __post_init__(self) -> None:
        check_tasks(self.tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Parameter counts and the shape of the mixture."""

    params_total: int | None
    params_active: int | None
    params_embedding: int | None
    params_expert: int | None
    experts: int | None
    top_k: int | None
    shared: int | None
    config_sha: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """The code and the pinned packages it ran with."""

    git_commit: str | None
    is_dirty: bool | None
    lock_sha: str | None
    package_versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What was read. `train_sha256` and `val_sha256` cover all shards and what tokens mean."""

    source: str | None
    revision: str | None
    tokenizer: str | None
    train_sha256: str | None
    train_shards: int | None
    train_tokens: int | None
    val_sha256: str | None
    val_shards: int | None
    order_seed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Env:
    """The machine, as far as plan and samples tell it."""

    gpu_name: str | None
    gpu_count: int | None
    capability: str | None
    memory_bytes: int | None
    driver: str | None
    power_limit_w: float | None
    cpu: str | None
    cores: int | None
    world: int | None
    python: str | None
    torch_version: str | None
    triton_version: str | None
    cuda: str | None
    cudnn: str | None
    nccl: str | None
    vbios: str | None
    ecc: bool | None
    mig: bool | None
    topology: str | None
    container_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What the samples of all GPUs add up to while the clock of the run stood open."""

    samples: int | None
    clock_sm_p5_mhz: int | None
    clock_sm_p50_mhz: int | None
    temperature_max_c: int | None
    throttle_union: int | None
    power_mean_w: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the clock of the score is and what it leaves out."""

    clock: str | None
    sync_points: tuple[str, ...]
    included: tuple[str, ...]
    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """sha256 of the files behind the entry; the checkpoint by its manifest, which hashes parts."""

    plan_sha: str | None
    events_sha: str | None
    core_items_sha: str | None
    checkpoint_sha: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of the ladder: `id` begins with its rung, V0 to V4; a skipped one says why."""

    id: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was verified, where and when; losses are nats a token.

    `overlap_share` is the part of the validation tokens that training text holds as well.
    """

    checks: tuple[Check, ...] = ()
    reeval_loss: float | None = None
    reeval_abs_diff: float | None = None
    naive_abs_diff: float | None = None
    overlap_share: float | None = None
    replay_steps: int | None = None
    replay_max_abs_diff: float | None = None
    verifier_commit: str | None = None
    verifier_machine: str | None = None
    utc: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A run that reached its target, as of the moment of this record.

    A later record of the same run replaces an earlier one: it may change the status and what was
    learned about the run, never what the run achieved.
    """

    schema_version: int
    entry_id: str
    prev_entry_id: str | None
    created_utc: str
    status: Status
    status_history: tuple[StatusChange, ...]
    cohort: Cohort
    result: Achievement
    selection: Selection
    replicates: Replicates | None
    core: Core
    model: ModelFacts
    code: Code
    data: DataFacts
    env: Env
    telemetry: Telemetry | None
    timing: Timing
    artifacts: Artifacts
    verification: Verification | None


# Sections in which a later record of a run may differ from an earlier one.
CHANGEABLE = ("status", "status_history", "replicates", "verification")


def canonical(content: Any) -> str:
    """Canonical JSON; ValueError for numbers that JSON cannot hold."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )


def compute_id(entry: Entry) -> str:
    """sha256 of the entry's canonical JSON without its id."""
    content = asdict(entry)
    del content["entry_id"]
    return _sha256(canonical(content))


def sealed(entry: Entry, *, prev: str | None) -> Entry:
    """The entry behind `prev` in a chain, with its id."""
    entry = replace(entry, prev_entry_id=prev, entry_id="")
    return replace(entry, entry_id=compute_id(entry))


def to_line(entry: Entry) -> str:
    """One line of JSON: the id first, then the canonical JSON that it is the hash of."""
    content = asdict(entry)
    entry_id = content.pop("entry_id")
    return f"{_ID_HEAD}{entry_id}{_ID_TAIL}{canonical(content)[1:]}"


def has_own_hash(line: str) -> bool:
    """Whether a line of `to_line` hashes to the id that it names, character by character."""
    start = len(_ID_HEAD)
    end = start + _ID_CHARS
    if not line.startswith(_ID_HEAD) or line[end : end + len(_ID_TAIL)] != _ID_TAIL:
        return False
    return _sha256("{" + line[end + len(_ID_TAIL) :]) == line[start:end]


def link(line: str) -> tuple[str, str | None]:
    """(id, id of the entry before) of a line of `to_line`, without reading the rest of it."""
    start = len(_ID_HEAD)
    found = _PREV.search(line)
    return line[start : start + _ID_CHARS], found[1] if found else None


def check_tasks(tasks: object) -> None:
    """ConfigError unless every task has items, acc and centered, and these are numbers."""
    for name, task in cast("dict[str, Any]", tasks).items():
        if isinstance(task, dict) and len(cast("dict[str, Any]", task)) == 3:
            values = cast("dict[str, object]", task)
            names = ("items", "acc", "centered")
            if all(type(values.get(name, "")) in _NUMBER for name in names):
                continue
        raise ConfigError(f"core.tasks.{name}: got {task!r}, expected items, acc, centered")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
