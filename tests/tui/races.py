"""Runs of `super` on eight B200 as files, with loads of experts, in all that can happen to them."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np

from harness import leaderboard, score
from nmoe import events as ev
from nmoe.config import Config, Digests, Hardware, Plan, config_digest, read_config
from nmoe.memory import fit_micro_batch
from nmoe.paths import REPO_ROOT, DataRoot
from tests.tui.recordings import START, Recording

RUN_ID = "super-20260101-000000-b200"
BATCH = 524_288
STEP_S = 0.52
LOG_EVERY, VALIDATE_EVERY, SAVE_EVERY = 10, 128, 1000
TASKS = (
    ("hellaswag_zeroshot", 0.25, 0.12), ("jeopardy", 0.0, 0.01),
    ("bigbench_qa_wikidata", 0.0, 0.21),
    ("arc_easy", 0.25, 0.29), ("arc_challenge", 0.25, -0.01), ("copa", 0.5, 0.18),
    ("commonsense_qa", 0.205, 0.03), ("piqa", 0.5, 0.24), ("openbook_qa", 0.25, 0.09),
    ("lambada_openai", 0.0, 0.26), ("hellaswag", 0.25, 0.11), ("winograd", 0.5, 0.11),
    ("winogrande", 0.5, 0.01), ("bigbench_dyck_languages", 0.0, 0.08),
    ("agi_eval_lsat_ar", 0.25, 0.02), ("bigbench_cs_algorithms", 0.0, 0.37),
    ("bigbench_operators", 0.0, 0.11), ("bigbench_repeat_copy_logic", 0.0, 0.0),
    ("squad", 0.0, 0.01), ("coqa", 0.0, 0.07), ("boolq", 0.62, -0.3),
    ("bigbench_language_identification", 0.25, 0.14),
)  # fmt: skip


def make_plan(run_id: str = RUN_ID, **changes: Any) -> Plan:
    """The plan of `super` in bf16 on eight B200."""
    config = read_config(REPO_ROOT / "configs" / "speedrun" / "super.toml")
    config = fit_micro_batch(config, 8, 180 << 30)
    values: dict[str, Any] = {item.name: getattr(config, item.name) for item in fields(Config)}
    values |= {
        "run_id": run_id,
        "created": "2026-01-01T00:00:00+00:00",
        "world": 8,
        "device": "cuda",
        "dtype": "bf16",
        "dtype_reason": "--dtype bf16",
        "choice": "super on 8 x B200",
        "hardware": Hardware(
            gpu="B200", num_gpus=8, capability="10.0", memory_bytes=180 << 30, cores=96,
            cpu="Some CPU", driver="580.65",
        ),
        "digests": Digests(config=config_digest(config), commit="c" * 40, is_dirty=False),
    }  # fmt: skip
    return Plan(**(values | changes))


def loss_at(step: int, *, slower: float = 1.0) -> float:
    """A curve like those published, with a ripple that is the same each time."""
    at = step / slower
    base = 3.05 + 5.6 * math.exp(-at / 240) + 1.35 * math.exp(-at / 2400)
    return base + 0.02 * math.sin(step * 1.7)


def loads(step: int, shape: tuple[int, int] = (12, 256)) -> np.ndarray:
    """Loads over an even share [L, E]: calmer with time, one hot expert, one dead."""
    layer, expert = np.indices(shape)
    spread = 0.35 + 0.4 * math.exp(-step / 800)
    load = 1 + spread * np.sin(expert * 0.7 + layer) * np.cos(expert * 0.05 + step * 0.002)
    load[shape[0] // 2, shape[1] // 3] = 6.5
    load[1, shape[1] // 2] = 0.0
    return load / load.mean(axis=1, keepdims=True)


def router_event(step: int, record: int, load: np.ndarray) -> ev.RouterEvent:
    share = load / load.sum(axis=1, keepdims=True)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=1) / math.log(load.shape[1])
    return ev.RouterEvent(
        step=step,
        layers=tuple(range(load.shape[0])),
        cv=tuple(load.std(axis=1).tolist()),
        entropy=tuple(entropy.tolist()),
        experts_active=tuple(int(each) for each in (load > 0).sum(axis=1)),
        max_load=tuple(load.max(axis=1).tolist()),
        bias_range=tuple(0.02 + 0.01 * layer for layer in range(load.shape[0])),
        record=record,
    )


class Race(Recording):
    """A recording that also keeps the loads of its router events."""

    def steps(
        self, stop: int, *, start: int = 0, nan_from: int | None = None, slower: float = 1.0
    ) -> Iterator[ev.Event]:
        """Step, router, validation and checkpoint events after `start` up to `stop`."""
        for step in range(start + LOG_EVERY, stop + 1, LOG_EVERY):
            is_nan = nan_from is not None and step >= nan_from
            loss = math.nan if is_nan else loss_at(step, slower=slower)
            train_s = step * STEP_S * slower
            # GPU 6 is held back from step 2,300 on.
            step_s = STEP_S * slower * (1.06 if step > 2300 else 1 + 0.004 * math.sin(step))
            yield ev.StepEvent(
                step=step, tokens=step * BATCH, loss=loss, lr=1.8e-3 * min(1.0, step / 880),
                grad_norm=0.6 + 0.05 * math.sin(step), ms=step_s * 1e3,
                tok_s=BATCH / step_s, mfu=0.41, train_s=train_s, wall_s=train_s * 1.1 + 40,
            )  # fmt: skip
            yield self._router(step)
            if step % VALIDATE_EVERY < LOG_EVERY and not is_nan:
                yield ev.ValEvent(
                    step=step - step % VALIDATE_EVERY, loss=loss + 0.01, bpb=loss / 3.2,
                    tokens=10_485_760, train_s=train_s, seconds=4.1,
                )  # fmt: skip
            if step % SAVE_EVERY == 0:
                yield ev.CheckpointEvent(
                    step=step, name=f"step_{step:08}", bytes=9 << 30, seconds=6.0, paused_s=0.4
                )

    def _router(self, step: int) -> ev.RouterEvent:
        load = loads(step)
        with self.folder.router.open("ab") as file:
            record = file.tell() // (load.size * 2)
            file.write((load / load.shape[1]).astype("<f2").tobytes())
        return router_event(step, record, load)

    def begin(self, **changes: Any) -> None:
        """Everything up to the first step."""
        self.folder.plan.write_text(make_plan(self.run_id, **changes).to_json())
        self.supervisor(
            ev.PhaseEvent(phase="checking"), ev.PhaseEvent(phase="launching"),
            ev.LaunchEvent(pids=tuple(range(4000, 4008)), command=("python", "-m", "nmoe.train")),
            seconds=1.0,
        )  # fmt: skip
        self.train(
            *(ev.RankEvent(rank=rank, pid=4000 + rank, is_ready=True) for rank in range(8)),
            ev.PhaseEvent(phase="compiling"),
            ev.CompileEvent(what="warm-up", seconds=21.0),
            ev.PhaseEvent(phase="training"),
            seconds=0.5,
        )

    def samples(self) -> None:
        """One sample of every GPU: one at its cap, one too hot, one that tells nothing."""
        at_work = ev.GpuEvent(
            index=0, util=97, memory_used_bytes=151 << 30, memory_total_bytes=180 << 30,
            power_w=951.0, power_limit_w=1000.0, energy_j=4.2e6, temperature_c=68, sm_mhz=1920,
            memory_mhz=3996, throttle=0,
        )  # fmt: skip
        every = [replace(at_work, index=index, temperature_c=64 + index) for index in range(8)]
        every[5] = replace(every[5], power_w=999.0, throttle=0x04)
        every[6] = replace(every[6], temperature_c=91, sm_mhz=1410, throttle=0x20)
        every[7] = ev.GpuEvent(index=7)
        self.gpus(*every)
        self.supervisor(
            ev.AlertEvent(
                code="gpu-hot", level="warning",
                message="GPU 6 is held back by heat: 1410 of 1965 MHz, tok/s down 6 %",
            )
        )  # fmt: skip

    def core(self, count: int | None = None, *, shift: float = 0.0) -> None:
        """Scored tasks, `count` of them or all with the score, every other one by `shift` lower."""
        for index, (name, baseline, centered) in enumerate(TASKS[:count], start=1):
            centered += shift if index % 2 else -shift
            acc = max(0.0, baseline + (1 - baseline) * centered)
            centered = (acc - baseline) / (1 - baseline)
            half = 1.96 * math.sqrt(max(acc * (1 - acc), 0.01) / 1000)
            self.train(
                ev.CoreTaskEvent(
                    name=name, index=index, count=len(TASKS), items=1000, acc=acc,
                    centered=centered, seconds=3.0 + index, baseline=baseline,
                    ci95=(max(0.0, acc - half), acc + half), cropped=index, empty_regions=0,
                ),
                seconds=3.0,
            )  # fmt: skip
        if count is None:
            score = sum(centered for _, _, centered in TASKS) / len(TASKS)
            self.train(
                ev.CoreEvent(
                    score=score, tasks=len(TASKS), items=22_000, bundle="b" * 64, seconds=180.0,
                    ci95=(score - 0.006, score + 0.006), without_boolq=score + 0.012, cropped=253,
                    empty_regions=0,
                )
            )  # fmt: skip


def healthy(root: DataRoot, run_id: str = RUN_ID, *, stop: int = 2400, time: float = START) -> Race:
    """In the middle of training."""
    race = Race(root, run_id, time=time)
    race.begin()
    race.train(*race.steps(stop), seconds=0.01)
    race.samples()
    return race


def done(
    root: DataRoot, run_id: str = "super-20251231-000000-b201", *, slower: float = 1.1
) -> Race:
    """Reached its target and was scored."""
    race = Race(root, run_id)
    race.begin()
    race.train(*race.steps(4860, slower=slower), seconds=0.01)
    train_s = 4864 * STEP_S * slower
    race.train(
        ev.ValEvent(
            step=4864, loss=3.274, bpb=1.02, tokens=10_485_760, train_s=train_s, seconds=4.1
        ),
        ev.PhaseEvent(phase="core-eval"),
    )
    race.samples()
    race.core()
    race.train(_outcome("done", 4864, train_s=train_s))
    race.supervisor(ev.PhaseEvent(phase="scoring"), ev.ExitEvent(status="done", rc=0))
    return race


def ranked(root: DataRoot, run_id: str = RUN_ID) -> Race:
    """In the middle of scoring, with a run of its cohort on the board."""
    folder = done(root).folder
    leaderboard.append(root.board, leaderboard.make_entry(score.compute(folder, root)))
    race = healthy(root, run_id)
    race.train(*race.steps(4860, start=2400), ev.PhaseEvent(phase="core-eval"))
    race.core(17, shift=0.05)
    return race


def diverged(root: DataRoot, run_id: str = RUN_ID) -> Race:
    """The loss became NaN, at twice the learning rate."""
    race = Race(root, run_id)
    optim = make_plan().optim
    race.begin(optim=replace(optim, lr_dense=2 * optim.lr_dense))
    race.train(*race.steps(1220, nan_from=1200, slower=0.9), seconds=0.01)
    race.samples()
    race.train(
        ev.AlertEvent(code="non-finite", level="error", message="loss is nan at step 1200"),
        _outcome("diverged", 1220, message="the loss is nan since step 1200"),
    )
    race.supervisor(ev.ExitEvent(status="diverged", rc=5))
    return race


def resumed(root: DataRoot, run_id: str = RUN_ID) -> Race:
    """Interrupted after step 1700, resumed from step 1000, now beyond."""
    race = Race(root, run_id)
    race.begin()
    race.train(*race.steps(1700), seconds=0.01)
    race.attempt = 1
    race.train(ev.PhaseEvent(phase="training", resume_step=1000))
    race.train(*race.steps(2200, start=1000), seconds=0.01)
    race.samples()
    race.core(3)
    return race


def failed(root: DataRoot, run_id: str = RUN_ID) -> Race:
    """A rank ran out of memory; its log is there."""
    race = Race(root, run_id)
    race.begin()
    race.train(*race.steps(600), seconds=0.01)
    race.samples()
    tail = (
        "Traceback (most recent call last):",
        "torch.OutOfMemoryError: CUDA out of [/bold] memory",
    )
    race.supervisor(
        ev.ExitEvent(
            status="failed", rc=5, rank=3, tail=tail,
            hint="out of memory: lower train.micro_batch, the global batch stays the same",
        )
    )  # fmt: skip
    race.folder.logs.mkdir()
    for rank in range(8):
        lines = [f"step {step}: loss {loss_at(step):.4f}" for step in range(10, 610, 10)]
        lines.insert(20, "UserWarning: \x1b[31mthis is [/red] text\x1b[0m \u202e" + "x" * 300)
        lines += tail if rank == 3 else ("peer: rank 3 is gone",)
        race.folder.log(f"rank{rank}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    race.folder.log("supervisor").write_text("supervisor of " + run_id + "\n")
    return race


def _outcome(
    status: ev.Status, step: int, *, train_s: float | None = None, message: str = ""
) -> ev.OutcomeEvent:
    return ev.OutcomeEvent(
        status=status, step=step, tokens=step * BATCH, loss=3.274,
        train_s=step * STEP_S if train_s is None else train_s, wall_s=step * 0.6, compile_s=21.0,
        eval_s=160.0, checkpoint_s=2.0, peak_memory_bytes=151 << 30, params_total=2_700_000_000,
        params_active=160_000_000, message=message,
    )  # fmt: skip


__all__ = ["START", "Race", "diverged", "done", "failed", "healthy", "resumed"]
