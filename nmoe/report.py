"""What a run publishes: event lines, metric rows, router records; rank 0 writes, others are silent.

Legend: L MoE layers, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from nmoe.checkpoint import Saved
from nmoe.config import Plan
from nmoe.data.loader import Began, StageBegan
from nmoe.eval.core import CoreResult, TaskScore
from nmoe.event_log import EventLog
from nmoe.events import (
    AlertEvent,
    CheckpointEvent,
    CoreEvent,
    CoreTaskEvent,
    EpochEvent,
    Event,
    Level,
    OutcomeEvent,
    PhaseEvent,
    RouterEvent,
    StageEvent,
    StepEvent,
    ValEvent,
)
from nmoe.metrics import Clock, Interval, MetricsWriter, RouterHealth
from nmoe.paths import RunFolder
from nmoe.validate import Validation


class Reporter:
    """The publishing side of one attempt; on a rank that does not write every call does nothing."""

    def __init__(
        self,
        folder: RunFolder,
        plan: Plan,
        *,
        attempt: int,
        is_writer: bool,
        say: Callable[[str], None],
    ) -> None:
        """Open the run's event log and metrics; `say` gets milestones as lines of text."""
        self._folder = folder
        self._plan = plan
        self._is_writer = is_writer
        self._say = say
        if is_writer:
            self._log = EventLog(folder.train, attempt=attempt)
            self._metrics = MetricsWriter(folder.metrics, plan.run_id)

    def event(self, event: Event) -> None:
        """Append one event and say it in a line."""
        if self._is_writer:
            self._log.write(event)
            line = _spoken(event)
            if line:
                self._say(line)

    def alert(self, code: str, message: str, *, level: Level = "warning") -> None:
        """Append an alert."""
        self.event(AlertEvent(code=code, level=level, message=message))

    def resume(self, step: int) -> None:
        """Drop metric rows past `step`: those steps are taken again."""
        if self._is_writer:
            self._metrics.discard_after(step)

    def step(
        self,
        step: int,
        interval: Interval,
        *,
        clock: Clock,
        rates: Mapping[str, float],
        loader_wait_s: float,
        flops_per_token: int,
    ) -> None:
        """Publish the means over an interval of steps that ends after `step`."""
        if not self._is_writer:
            return
        plan = self._plan
        step_tokens = plan.train.batch_size * plan.train.seq_len
        tok_s = interval.steps * step_tokens / max(interval.seconds, 1e-9)
        tflops = tok_s * flops_per_token / plan.world / 1e12
        peak = plan.hardware.peak_tflops
        event = StepEvent(
            step=step,
            tokens=step * step_tokens,
            loss=interval.loss,
            lr=rates["dense"],
            grad_norm=interval.grad_norm,
            ms=1000 * interval.seconds / interval.steps,
            tok_s=tok_s,
            mfu=tflops / peak if peak else None,
            train_s=clock.train_s,
            wall_s=clock.wall_s,
        )
        self.event(event)
        self._metrics.add(
            step,
            {
                "train/loss": event.loss,
                "train/grad_norm": event.grad_norm,
                "train/tokens_seen": event.tokens,
                "throughput/tokens_per_s_gpu": tok_s / plan.world,
                "throughput/ms_per_step": event.ms,
                "throughput/loader_wait_ms": 1000 * loader_wait_s / interval.steps,
                "efficiency/tflops": tflops,
                "efficiency/mfu": event.mfu,
                "speedrun/train_s": event.train_s,
                "speedrun/wall_s": event.wall_s,
                **{f"optimizer/lr_{name}": rate for name, rate in rates.items()},
            },
        )

    def router(
        self, step: int, layers: Sequence[int], health: Sequence[RouterHealth], loads_LE: Tensor
    ) -> None:
        """Publish the balance of every MoE layer and append the loads to router.f16."""
        if not self._is_writer or not layers:
            return
        self.event(
            RouterEvent(
                step=step,
                layers=tuple(layers),
                cv=tuple(item.cv for item in health),
                entropy=tuple(item.entropy for item in health),
                experts_active=tuple(item.experts_active for item in health),
                max_load=tuple(item.max_load for item in health),
                bias_range=tuple(item.bias_range for item in health),
                record=self._append_loads(loads_LE),
            )
        )
        values = {
            f"router/layer_{layer:02d}/{name}": value
            for layer, item in zip(layers, health, strict=True)
            for name, value in asdict(item).items()
        }
        for name in ("cv", "entropy"):
            values[f"router_agg/{name}"] = sum(getattr(item, name) for item in health) / len(health)
        self._metrics.add(step, values)

    def validation(self, step: int, result: Validation, *, train_s: float, seconds: float) -> None:
        """Publish one validation."""
        self.event(
            ValEvent(
                step=step,
                loss=result.loss,
                bpb=result.bpb,
                tokens=result.tokens,
                train_s=train_s,
                seconds=seconds,
            )
        )
        self._add(
            step,
            {
                "valid/loss": result.loss,
                "valid/bpb": result.bpb,
                "valid/tokens": result.tokens,
            },
        )

    def began(self, step: int, began: Began) -> None:
        """An epoch of a source or a stage of the flow."""
        if isinstance(began, StageBegan):
            self.event(StageEvent(step=step, name=began.name, index=began.index))
        else:
            self.event(EpochEvent(step=step, epoch=began.epoch, source=began.source))

    def checkpoint(self, saved: Saved, *, seconds: float, paused_s: float) -> None:
        """Publish a whole checkpoint."""
        self.event(
            CheckpointEvent(
                step=saved.manifest.progress.step,
                name=saved.path.name,
                bytes=saved.bytes,
                seconds=seconds,
                paused_s=paused_s,
            )
        )

    def core_task(
        self, step: int, index: int, count: int, score: TaskScore, *, is_interim: bool = False
    ) -> None:
        """Publish the score of one CORE task; an interim one is kept apart in the metrics."""
        self.event(
            CoreTaskEvent(
                name=score.label,
                index=index,
                count=count,
                items=score.n,
                acc=score.acc,
                centered=score.centered,
                seconds=score.seconds,
                baseline=score.baseline,
                ci95=score.ci95,
                cropped=score.cropped,
                empty_regions=score.empty_regions,
                step=step,
                is_interim=is_interim,
            )
        )
        task = f"eval/{'interim' if is_interim else 'core'}/{score.label}"
        self._add(
            step,
            {
                f"{task}/acc": score.acc,
                f"{task}/centered": score.centered,
                f"{task}/n": score.n,
            },
        )

    def core(self, step: int, result: CoreResult, *, is_interim: bool = False) -> None:
        """Publish the CORE score; an interim one is kept apart in the metrics."""
        self.event(
            CoreEvent(
                score=result.core,
                tasks=len(result.tasks),
                items=result.num_items,
                bundle=result.csv_sha256,
                seconds=result.seconds,
                ci95=result.ci95,
                without_boolq=result.core_without_boolq,
                cropped=result.cropped,
                empty_regions=result.empty_regions,
                version=result.core_version,
                cap=result.cap,
                step=step,
                is_interim=is_interim,
            )
        )
        self._add(step, {"eval/interim/CORE" if is_interim else "eval/CORE": result.core})

    def flush(self) -> None:
        """Put metric rows on disk."""
        if self._is_writer:
            self._metrics.flush()

    def close(self) -> None:
        """Flush and close."""
        if self._is_writer:
            self._metrics.flush()
            self._log.close()

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._is_writer:
            self._metrics.add(step, values)

    def _append_loads(self, loads_LE: Tensor) -> int:
        share_LE = loads_LE.double() / loads_LE.sum(1, keepdim=True).clamp_min(1)
        data = share_LE.to(torch.float16).numpy().tobytes()
        with self._folder.router.open("ab") as file:
            record = file.tell() // len(data)
            file.write(data)
        return record


def _spoken(event: Event) -> str:
    match event:
        case StepEvent():
            return f"step {event.step}: loss {event.loss:.4f}, {event.tok_s:.0f} tokens/s"
        case ValEvent():
            return f"validation after step {event.step}: loss {event.loss:.4f}, bpb {event.bpb:.4f}"
        case CheckpointEvent():
            return (
                f"checkpoint {event.name}: {event.bytes} bytes, whole after {event.seconds:.2f} s,"
                f" {event.paused_s or 0:.2f} s of them off the clock"
            )
        case CoreTaskEvent():
            kind = "interim core" if event.is_interim else "core"
            return (
                f"{kind} task {event.name}: accuracy {event.acc:.4f}, centered {event.centered:.4f}"
            )
        case CoreEvent():
            return _spoken_core(event)
        case AlertEvent():
            return f"{event.level}: {event.message}"
        case OutcomeEvent():
            return f"{event.status} at step {event.step} after {event.train_s:.1f} s of training"
        case StageEvent():
            return f"stage {event.index + 1}, {event.name}, begins after step {event.step}"
        case PhaseEvent(note=note) if note:
            return f"phase {event.phase} {event.note}".rstrip()
        case _:
            return ""


def _spoken_core(event: CoreEvent) -> str:
    low, high = event.ci95 or (event.score, event.score)
    kind = f"interim core after step {event.step}" if event.is_interim else "core"
    line = f"{kind}: {event.score:.4f} [{low:.4f}, {high:.4f}] over {event.tasks} tasks"
    if event.without_boolq is not None:
        line += f", {event.without_boolq:.4f} without boolq (ours)"
    return f"{line}, cropped {event.cropped}, empty regions {event.empty_regions}"
