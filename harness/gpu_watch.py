"""What GPUs do to the speed of a run: alerts that name the cost in tokens a second, and energy.

Pure bookkeeping on samples; who samples and who writes is not its business.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness import format as text
from nmoe.events import AlertEvent, EnergyEvent, GpuEvent, Level, TopologyEvent

# Seconds that trouble must last to be told, and be gone to be over.
HOLD_S, CLEAR_S = 15.0, 30.0
# Trouble is told this late at the latest, its cost known or not.
PATIENCE_S = 60.0
# A GPU whose clock is below this share of the median of the others holds all of them up.
STRAGGLER_FRAC = 0.9
# Speeds that a median is taken over, and how few of them are too few.
SPEEDS, MIN_SPEEDS = 30, 3
ENERGY_EVERY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How far training is; `tok_s` None when it stands still, as in a validation."""

    step: int = 0
    tokens: int = 0
    tok_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A reason to be slow: NVML's clock event bits that mean it, and how it is said."""

    code: str
    word: str
    level: Level
    bits: int = 0


TROUBLES = (
    Trouble(code="gpu-hot", word="slowed by heat", level="error", bits=0x20 | 0x40),
    Trouble(code="gpu-slowdown", word="slowed by hardware or power brake", level="error",
            bits=0x08 | 0x80),
    Trouble(code="gpu-straggler", word="slower than the others", level="warning"),
    Trouble(code="gpu-power-cap", word="power-capped", level="warning", bits=0x04),
)  # fmt: skip
REASONS = sum(trouble.bits for trouble in TROUBLES)  # no two share a bit


@dataclass(slots=True)
class Episode:
    """Trouble of one kind under way: since when and until when on which GPU, and at what speed.

    `hits` of `samples` had it; `now` are the GPUs that have it in the newest one.
    """

    since: dict[int, float] = field(default_factory=dict[int, float])
    until: dict[int, float] = field(default_factory=dict[int, float])
    hits: Counter[int] = field(default_factory=Counter[int])
    samples: Counter[int] = field(default_factory=Counter[int])
    now: set[int] = field(default_factory=set[int])
    told: set[int] = field(default_factory=set[int])
    speeds: deque[float] = field(default_factory=lambda: deque[float](maxlen=SPEEDS))

    def note(self, indices: Iterable[int], now: float) -> None:
        """Take note of the GPUs that have the trouble at `now`."""
        self.now = set(indices)
        for index in self.now:
            self.since.setdefault(index, now)
            self.until[index] = now
        self.hits.update(self.now)
        self.samples.update(self.since.keys())

    def lasted_s(self, index: int) -> float:
        """How long a GPU has had it so far."""
        return self.until[index] - self.since[index]

    def is_steady(self, index: int) -> bool:
        """Whether it has lasted, and for most of the time: clocks flicker by nature."""
        is_mostly = 2 * self.hits[index] >= self.samples[index]
        return self.lasted_s(index) >= HOLD_S and is_mostly

    def forget(self, index: int) -> None:
        """It is over."""
        for table in (self.since, self.until, self.hits, self.samples):
            del table[index]
        self.told.discard(index)


class GpuWatch:
    """Turns samples into alerts, each kind of trouble told once when it begins and once after."""

    def __init__(self) -> None:
        self._episodes = {trouble.code: Episode() for trouble in TROUBLES}
        self._clean: deque[float] = deque(maxlen=SPEEDS)
        self._step = 0
        self._said: set[tuple[str, int]] = set()
        self._errors: dict[int, int] = {}

    def see(self, sample: Sequence[GpuEvent], *, now: float, pace: Pace) -> list[AlertEvent]:
        """What a person should know after this sample; `now` is in seconds of any clock."""
        alerts = [*self._once(sample), *self._ecc(sample)]
        if pace.tok_s is None:
            return alerts  # only training can be slowed down; a validation is no end of trouble
        for trouble in TROUBLES:
            self._episodes[trouble.code].note(_troubled(trouble, sample), now)
        self._note_speed(pace.step, pace.tok_s)
        for trouble in TROUBLES:
            alerts += self._began(trouble, sample)
            alerts += self._ended(trouble, now)
        return alerts

    def _note_speed(self, step: int, tok_s: float) -> None:
        """Each step event's speed counts once: for every trouble there is now, or as untroubled.

        Between the two, while a trouble may be over, it counts for neither.
        """
        if step == self._step:
            return
        self._step = step
        episodes = self._episodes.values()
        for episode in episodes:
            if episode.now:
                episode.speeds.append(tok_s)
        if not any(episode.now or episode.told for episode in episodes):
            self._clean.append(tok_s)

    def _began(self, trouble: Trouble, sample: Sequence[GpuEvent]) -> Iterable[AlertEvent]:
        episode = self._episodes[trouble.code]
        new = {
            index: episode.lasted_s(index)
            for index in episode.since
            if index not in episode.told and episode.is_steady(index)
        }
        cost = self._cost(episode)
        is_cost_due = bool(cost) or max(new.values(), default=0) >= PATIENCE_S
        if not new or (not is_cost_due and len(self._clean) >= MIN_SPEEDS):
            return
        episode.told |= new.keys()
        figures = _figures([gpu for gpu in sample if gpu.index in new])
        yield _alert(trouble, f"{_names(new)} {trouble.word}{figures}{cost}")

    def _ended(self, trouble: Trouble, now: float) -> Iterable[AlertEvent]:
        episode = self._episodes[trouble.code]
        over = [index for index, until in episode.until.items() if now - until >= CLEAR_S]
        told = [index for index in over if index in episode.told]
        if told:
            lasted = max(map(episode.lasted_s, told))
            message = f"{_names(told)} no longer {trouble.word} after {text.age(lasted)}"
            yield _alert(trouble, message + self._cost(episode), level="info")
        for index in over:
            episode.forget(index)
        if not episode.since:
            episode.speeds.clear()

    def _cost(self, episode: Episode) -> str:
        """What the run lost meanwhile; nothing while it is not known with and without."""
        if min(len(episode.speeds), len(self._clean)) < MIN_SPEEDS:
            return ""
        speed, before = median(episode.speeds), median(self._clean)
        lost = 1 - speed / before if before else 0.0
        if lost < 0.001:
            return f": {text.rate(speed)}, no slower than before"
        return (
            f": {text.rate(speed)}, {text.percent(lost, decimals=1)} below"
            f" {text.rate(before)} without it"
        )

    def _once(self, sample: Sequence[GpuEvent]) -> Iterable[AlertEvent]:
        """What is told once a GPU: that it is lost, that it waits for a reset."""
        for gpu in sample:
            if gpu.is_lost and self._is_first("gpu-lost", gpu.index):
                what = f"GPU {gpu.index} is lost: it fell off the bus or needs a reset"
                yield AlertEvent(code="gpu-lost", level="error", message=what)
            if gpu.is_remap_pending and self._is_first("gpu-remap", gpu.index):
                what = f"GPU {gpu.index} has memory rows to remap: reset it after the run"
                yield AlertEvent(code="gpu-remap", level="warning", message=what)

    def _is_first(self, code: str, index: int) -> bool:
        is_first = (code, index) not in self._said
        self._said.add((code, index))
        return is_first

    def _ecc(self, sample: Sequence[GpuEvent]) -> Iterable[AlertEvent]:
        """Uncorrected memory errors since the run began; those before are not its own."""
        for gpu in sample:
            if gpu.ecc_uncorrected is None:
                continue
            new = gpu.ecc_uncorrected - self._errors.get(gpu.index, gpu.ecc_uncorrected)
            self._errors[gpu.index] = gpu.ecc_uncorrected
            if new > 0:
                message = f"GPU {gpu.index} had {new} uncorrected memory errors: do not trust it"
                yield AlertEvent(code="gpu-ecc", level="error", message=message)


def topology_alerts(topology: TopologyEvent) -> list[AlertEvent]:
    """GPUs that are joined to the host or to their peers by less than they could be."""
    alerts: list[AlertEvent] = []
    most = max((count for count in topology.nvlinks if count is not None), default=0)
    rows = zip(
        topology.indices, topology.nvlinks, topology.pcie_widths, topology.pcie_max_widths,
        strict=True,
    )  # fmt: skip
    for index, links, width, max_width in rows:
        if links is not None and links < most:
            what = f"GPU {index} has {links} NVLinks, others {most}"
            alerts.append(AlertEvent(code="gpu-links", level="warning", message=what))
        if width is not None and max_width is not None and 0 < width < max_width:
            what = f"GPU {index} runs PCIe x{width} of x{max_width}: reseat it, or see the slot"
            alerts.append(AlertEvent(code="gpu-pcie", level="warning", message=what))
    return alerts


class EnergyMeter:
    """Energy of all GPUs while steps are trained, from their counters; both ends at step events.

    A run whose GPUs do not all tell their energy has none.
    """

    def __init__(self) -> None:
        self._total: float | None = None
        self._pending = 0.0
        self._joules = 0.0
        self._first_tokens: int | None = None
        self._last_tokens: int = 0
        self._said_at = float("-inf")

    def see(self, sample: Sequence[GpuEvent], *, now: float, pace: Pace) -> EnergyEvent | None:
        """What was used so far, every ten seconds."""
        told = [gpu.energy_j for gpu in sample if gpu.energy_j is not None]
        total = sum(told) if told and len(told) == len(sample) else None
        is_training = pace.tok_s is not None
        if total is not None and self._total is not None and is_training:
            # A counter that went back is of a driver that was loaded anew.
            self._pending += max(0.0, total - self._total)
        self._total = total
        if total is None or not is_training or pace.tokens == self._last_tokens:
            return None
        if self._first_tokens is None:
            self._first_tokens = pace.tokens
        else:
            self._joules += self._pending
        self._pending, self._last_tokens = 0.0, pace.tokens
        tokens = pace.tokens - self._first_tokens
        if not tokens or now - self._said_at < ENERGY_EVERY_S:
            return None
        self._said_at = now
        return EnergyEvent(step=pace.step, tokens=tokens, joules=round(self._joules, 3))


def _troubled(trouble: Trouble, sample: Sequence[GpuEvent]) -> list[int]:
    """The GPUs that have this trouble now."""
    if trouble.bits:
        return [gpu.index for gpu in sample if (gpu.throttle or 0) & trouble.bits]
    return stragglers(sample)


def stragglers(sample: Sequence[GpuEvent]) -> list[int]:
    """The GPUs that run slower than the others and do not say why.

    By their clocks: all ranks take the same time for a step, since each waits for the slowest.
    """
    silent = {gpu.index for gpu in sample if not (gpu.throttle or 0) & REASONS}
    clocks = {gpu.index: gpu.sm_mhz for gpu in sample if gpu.sm_mhz is not None}
    return [
        index
        for index, clock in clocks.items()
        if len(clocks) > 1
        and index in silent
        and clock < STRAGGLER_FRAC * median(c for other, c in clocks.items() if other != index)
    ]


def _alert(trouble: Trouble, message: str, *, level: Level | None = None) -> AlertEvent:
    return AlertEvent(code=trouble.code, level=level or trouble.level, message=message)


def _names(indices: Iterable[int]) -> str:
    """Who, with its verb: GPU 6 is, or GPUs 0, 1, 6 are."""
    names = sorted(indices)
    if len(names) == 1:
        return f"GPU {names[0]} is"
    return f"GPUs {', '.join(map(str, names))} are"


def _figures(gpus: Sequence[GpuEvent]) -> str:
    """Watts and clock of the slowest of them, as far as it tells."""
    gpu = min(gpus, key=lambda gpu: gpu.sm_mhz or 0, default=None)
    if gpu is None:
        return ""
    parts = [
        (gpu.power_w, gpu.power_limit_w, "W"),
        (gpu.sm_mhz, gpu.sm_max_mhz, "MHz"),
        (gpu.temperature_c, None, "°C"),
    ]
    shown = [
        text.fixed(value, unit=unit) if limit is None
        else f"{text.fixed(value)} of {text.fixed(limit, unit=unit)}"
        for value, limit, unit in parts
        if value is not None
    ]  # fmt: skip
    return f" ({', '.join(shown)})" if shown else ""
