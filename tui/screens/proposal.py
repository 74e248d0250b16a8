"""A machine, a plan and its problems as values for the widgets. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import format as fmt
from harness.errors import Problem
from nmoe.paths import DataRoot
from tui.widgets.numbers import Number
from tui.widgets.rows import Role, Span, clean

if TYPE_CHECKING:
    from harness.hardware import Detection
    from harness.outlook import Outlook
    from nmoe.config import Plan


def machine(detection: Detection | None, root: DataRoot) -> tuple[Span, ...]:
    """What was found: GPUs with memory and driver or the reason there is none, CPU, data root."""
    if detection is None:
        return (("this machine could not be looked at", "bad"),)
    host = detection.hardware
    lines: list[Span] = []
    if host.gpu:
        memory = fmt.gib(host.memory_bytes, decimals=0, none=fmt.NOT_AVAILABLE)
        driver = host.driver or fmt.NOT_AVAILABLE
        lines.append(
            (
                f"{host.num_gpus} x {host.gpu} · compute capability"
                f" {host.capability or fmt.NOT_AVAILABLE} · {memory} each · driver {driver}",
                "strong",
            )
        )
    for problem in detection.problems:
        lines.append((f"∅ {problem.what}. {problem.fix}", "warn"))
    if not host.gpu and not detection.problems:
        lines.append(("∅ no GPU", "warn"))
    lines.append((f"CPU {host.cpu or fmt.NOT_AVAILABLE} · {fmt.count(host.cores)} cores", "text"))
    if host.is_fake:
        lines.append(("described by a file: can be planned and shown, not trained on", "warn"))
    lines.append((f"data in {root.path} ({root.reason})", "dim"))
    return tuple(lines)


def why(plan: Plan | None, time: str = "") -> tuple[Span, ...]:
    """Why this preset and this dtype, and what to expect."""
    if plan is None:
        return (("no plan: see below", "warn"),)
    return (
        (plan.choice, "strong"),
        (f"{plan.dtype}: {plan.dtype_reason}", "text"),
        *(((f"time {time}", "text"),) if time else ()),
        (" ", "text"),
    )


def values(plan: Plan | None, found: Outlook | None = None) -> tuple[Number, ...]:
    """The figures of a plan that decide how long it runs and what it makes."""
    if plan is None:
        return ()
    experts, train = plan.experts, plan.train
    routed = (
        f"{fmt.count(experts.num_experts)}, top {experts.top_k} + {experts.num_shared}"
        if experts.num_experts
        else "none"
    )
    return tuple(
        Number(label=label, text=clean(text))
        for label, text in (
            ("task", plan.data.task),
            ("target", fmt.fixed(plan.target.target_loss, decimals=3)),
            ("ranks", fmt.count(plan.world)),
            *_memory(found),
            ("layers x dim", f"{plan.model.num_layers} x {plan.model.dim}"),
            ("experts", routed),
            ("step budget", fmt.count(train.steps)),
            ("tokens/step", fmt.count(train.batch_size * train.seq_len)),
            ("batch", f"{train.batch_size} x {fmt.count(train.seq_len)}"),
            ("accumulation", fmt.count(plan.accumulation)),
            ("validate every", fmt.count(plan.validation.every)),
            ("save every", fmt.count(plan.checkpoint.every)),
            ("seed", str(train.seed)),
            ("attention", plan.attention.attn),
            ("impl", plan.model.impl),
            ("commit", _commit(plan)),
        )
    )


def _memory(found: Outlook | None) -> tuple[tuple[str, str], ...]:
    """What a step takes of a GPU; nothing on a CPU."""
    if found is None or found.memory is None:
        return ()
    has = fmt.gib(found.memory_bytes, decimals=0, none=fmt.NOT_AVAILABLE)
    return (("memory/GPU", f"{fmt.fixed(found.memory.total / 2**30)} of {has}"),)


def _commit(plan: Plan) -> str:
    if plan.digests.commit is None:
        return "none"
    return plan.digests.commit[:8] + ("+" if plan.digests.is_dirty else "")


def problems(found: Sequence[Problem], *, is_ready: bool) -> tuple[Span, ...]:
    """What stands in the way, each with its fix; the go-ahead when nothing does."""
    lines: list[Span] = []
    for problem in sorted(found, key=lambda item: not item.is_blocking):
        glyph = "✖" if problem.is_blocking else "!"
        role: Role = "bad" if problem.is_blocking else "warn"
        lines.append((f"{glyph} {problem.what}", role))
        if problem.fix:
            lines.append((f"→ {problem.fix}", "text"))
    if is_ready:
        lines.append(("✔ ready: enter launches", "good"))
    return tuple(lines)
