"""The score's clock, device-side sums between log steps, router health, Parquet parts.

Legend: L MoE layers, E experts, K top-k.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import log, sqrt
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nmoe.paths import fsync_dir

COLLAPSE_FRAC = 0.97
Excluded = Literal["compile_s", "eval_s", "checkpoint_s"]
ROWS = pa.schema(
    [
        ("run", pa.string()),
        ("tag", pa.string()),
        ("step", pa.int64()),
        ("ts_ms", pa.int64()),
        ("value", pa.float64()),
    ]
)


@dataclass(slots=True, kw_only=True)
class Clock:
    """Seconds of training and, apart, of what the score excludes; carried over a resume.

    `sync` waits for the device, so that queued work is charged to the side that queued it.
    """

    train_s: float = 0.0
    wall_s: float = 0.0
    compile_s: float = 0.0
    eval_s: float = 0.0
    checkpoint_s: float = 0.0
    sync: Callable[[], None] = field(default=lambda: None)
    _mark: float = field(default_factory=lambda: time.perf_counter())
    _is_training: bool = False

    def start(self) -> None:
        """Training begins now."""
        self._lap()
        self._is_training = True

    def stop(self) -> None:
        """Training ends now."""
        self.sync()
        self._lap()
        self._is_training = False

    def read(self) -> float:
        """Training seconds so far; does not wait for the device."""
        self._lap()
        return self.train_s

    @contextmanager
    def paused(self, charge: Excluded) -> Iterator[None]:
        """Charge what happens inside to `charge` and not to training."""
        was_training = self._is_training
        self.stop()
        began = time.perf_counter()
        try:
            yield
        finally:
            self.sync()
            setattr(self, charge, getattr(self, charge) + time.perf_counter() - began)
            self._lap()
            self._is_training = was_training

    def _lap(self) -> None:
        now = time.perf_counter()
        self.wall_s += now - self._mark
        if self._is_training:
            self.train_s += now - self._mark
        self._mark = now


class Stopwatch:
    """Seconds spent inside `running` blocks since the last `take`, on the host."""

    def __init__(self) -> None:
        self._total = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._total += time.perf_counter() - began

    def take(self) -> float:
        """The seconds so far; starts again from zero."""
        total, self._total = self._total, 0.0
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Means over the steps since the last log step; loads summed over micro-batches and ranks."""

    steps: int
    loss: float
    grad_norm: float
    seconds: float
    loads_LE: Tensor


class Meter:
    """Sums that stay on the device until a log step reads them."""

    def __init__(self, *, num_layers: int, num_experts: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._loads_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        self._steps = 0
        self._began_s = 0.0

    def add(self, *, loss: Tensor, grad_norm: Tensor, loads_LE: Tensor) -> None:
        """One step: this rank's share of the mean loss, the global norm, the global loads."""
        self._sums += torch.stack((loss.double(), grad_norm.double()))
        self._loads_LE += loads_LE
        self._steps += 1

    def loss_share(self) -> Tensor:
        """This rank's share of the summed losses, fp64, to be reduced with whatever else rides."""
        return self._sums[0]

    def take(self, *, loss_sum: float, train_s: float) -> Interval:
        """Close the interval at `train_s`, given the summed loss of all ranks."""
        steps = max(1, self._steps)
        interval = Interval(
            steps=steps,
            loss=loss_sum / steps,
            grad_norm=self._sums[1].item() / steps,
            seconds=train_s - self._began_s,
            loads_LE=self._loads_LE.cpu(),
        )
        self.restart(train_s=train_s)
        return interval

    def restart(self, *, train_s: float) -> None:
        """Forget everything and begin an interval at `train_s`."""
        self._sums.zero_()
        self._loads_LE = torch.zeros_like(self._loads_LE)
        self._steps = 0
        self._began_s = train_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterHealth:
    """Load balance of one MoE layer: entropy is relative to uniform, max_load to the mean."""

    cv: float
    entropy: float
    experts_active: int
    max_load: float
    bias_range: float


def router_health(loads_E: Tensor, bias_E: Tensor) -> RouterHealth:
    """Health of one layer from its choice counts and its balancing bias."""
    loads = loads_E.double()
    num_experts, mean = loads.numel(), max(loads.mean().item(), 1e-12)
    share = loads / max(loads.sum().item(), 1.0)
    entropy = -(share * share.clamp_min(1e-30).log()).sum().item()
    return RouterHealth(
        cv=loads.std(correction=0).item() / mean,
        entropy=entropy / max(log(num_experts), 1e-12),
        experts_active=int((loads > 0).sum()),
        max_load=loads.max().item() / mean,
        bias_range=(bias_E.max() - bias_E.min()).item(),
    )


def is_collapsed(health: RouterHealth, *, num_experts: int, top_k: int) -> bool:
    """Whether nearly all tokens go to the same K experts: few active, spread as wide as can be."""
    if num_experts <= top_k + 1:
        return False
    limit = COLLAPSE_FRAC * sqrt(num_experts / top_k - 1)
    return health.experts_active <= top_k + 1 and health.cv >= limit


class MetricsWriter:
    """Rows (run, tag, step, ts_ms, value) in Parquet parts named by their last step."""

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._run_id = run_id
        self._rows: list[tuple[str, str, int, int, float]] = []

    def discard_after(self, step: int) -> None:
        """Remove the parts past `step`; a part ends at every checkpoint, so none is cut."""
        for part in self._folder.glob("step_*.parquet"):
            if int(part.stem.removeprefix("step_")) > step:
                part.unlink()

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Keep one value a tag for `step`; None is left out."""
        now = time.time_ns() // 1_000_000
        self._rows += [
            (self._run_id, tag, step, now, float(value))
            for tag, value in values.items()
            if value is not None
        ]

    def flush(self) -> None:
        """Write what is kept as one part, temp + rename; nothing when nothing is kept."""
        if not self._rows:
            return
        last = max(row[2] for row in self._rows)
        columns = list(zip(*self._rows, strict=True))
        table = pa.table(dict(zip(ROWS.names, columns, strict=True)), schema=ROWS)
        path = self._folder / f"step_{last:08d}.parquet"
        if path.exists():
            table = pa.concat_tables([pq.read_table(path), table])
        temporary = path.with_suffix(".tmp")
        pq.write_table(table, temporary)
        temporary.replace(path)
        fsync_dir(self._folder)
        self._rows.clear()
