"""Compile everything in parallel before anything is timed: the compilers' caches are on disk."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal

import torch
from torch import Tensor

from bench.layers import compiled, grouped, grouped_and_gathered
from bench.problem import Source
from bench.shapes import ACTIVATION, Shape
from bench.timing import FAILURES, reason
from nmoe import ops
from nmoe.expert_layout import Rows, capacity
from nmoe.reference import sort as reference_sort

FEW_TOKENS, FEW_EXPERTS = 256, 8
MOST_PROCESSES = 14

Job = tuple[str, Shape]


def compile_all(shapes: Sequence[Shape], *, peers: Sequence[Shape]) -> list[str]:
    """Run every job in processes of its own; what failed, in words.

    peers: the shapes for which torch.compile works ahead, each at its full size.
    """
    todo = {
        f"{name} {shape.name}": partial(run, (name, shape))
        for name, shape in jobs(shapes, peers=peers)
    }
    return in_processes(todo)


def in_processes(
    todo: Mapping[str, Callable[[], str]], *, on_done: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Run everything in processes of its own, in this order; what failed, in words.

    Each says why it failed, or nothing; `on_done` gets the name of what has ended.
    """
    workers = min(MOST_PROCESSES, os.cpu_count() or 1, len(todo))
    failures = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work): name for name, work in todo.items()}
        for done in as_completed(running):
            try:
                problem = done.result()
            except BrokenExecutor as error:  # its process died
                problem = reason(error)
            if problem:
                failures.append(f"{running[done]}: {problem}")
            on_done(running[done])
    return failures


def experts_of(shape: Shape) -> dict[str, Callable[[], str]]:
    """The jobs for the experts of a whole step, whose weights have fp32 gradients."""
    found = {
        f"{name} {shape.name}": partial(run, (name, shape)) for name, _ in jobs([shape], peers=())
    }
    for name in _FP32_OPS:
        found[f"{name} {shape.name}"] = partial(run, (name, shape))
    return found


def jobs(shapes: Sequence[Shape], *, peers: Sequence[Shape]) -> list[Job]:
    """What must be compiled, the longest first; a kernel once for the sizes it depends on."""
    found: dict[tuple[Any, ...], Job] = {}
    for shape in peers:
        found["compiled", shape.name] = ("compiled", shape)
    for shape in shapes:
        size = (shape.dim, shape.hidden, shape.top_k)
        found["sort", shape.num_experts, shape.top_k] = ("sort", shape)
        for name in _OPS:
            found[name, size] = (name, shape)
    return list(found.values())


def run(job: Job) -> str:
    """One job; why it failed, or nothing."""
    name, shape = job
    try:
        if name == "compiled":
            source = Source(shape, device="cuda")
            for function in (grouped, grouped_and_gathered):
                layer = compiled(source.weights(), function)
                layer.load(source.draw())
                layer.forward()
                layer.backward()
        elif name == "sort":
            few = replace(shape, tokens=FEW_TOKENS)
            inputs = Source(few, device="cuda").draw()
            ops.sort_rows(inputs.ids_TK, inputs.gates_TK, range(shape.num_experts), impl="triton")
        else:
            few = replace(shape, tokens=FEW_TOKENS, num_experts=max(FEW_EXPERTS, shape.top_k))
            (_OPS | _FP32_OPS)[name](_Few(few))
        torch.cuda.synchronize()
    except FAILURES as error:
        return reason(error)
    return ""


class _Few:
    """Tensors of a layer that is too small to take time; what they hold does not matter."""

    def __init__(self, shape: Shape) -> None:
        source = Source(shape, device="cuda")
        self.inputs, self.weights = source.draw(), source.weights()
        self.rows = reference_sort.sort_rows(
            self.inputs.ids_TK,
            self.inputs.gates_TK,
            first_expert=0,
            num_experts=shape.num_experts,
            tile=ops.ROW_TILE,
            num_rows=capacity(shape.choices, shape.num_experts, tile=ops.ROW_TILE),
        )
        self.h, self.a, self.y = (
            self.rows_of(width) for width in (2 * shape.hidden, shape.hidden, shape.dim)
        )

    def rows_of(self, width: int) -> Tensor:
        shape = (len(self.rows.slot_R), width)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _down_grad(few: _Few) -> None:
    w2, dy = few.weights.w2_EFD, few.inputs.dy_TD
    _, dgate = ops.down_grad(dy, w2, few.h, few.rows, activation=ACTIVATION, impl="triton")
    ops.gate_grads(dgate, few.rows.row_NK, impl="triton")


def _dw2(few: _Few, dtype: torch.dtype, *, adds: bool = False) -> None:
    out = torch.zeros_like(few.weights.w2_EFD, dtype=dtype)
    _weight_grad(few.a, few.inputs.dy_TD, few.rows, out, gathered="right", adds=adds)


def _dw13(few: _Few, dtype: torch.dtype, *, adds: bool = False) -> None:
    out = torch.zeros_like(few.weights.w13_EDG, dtype=dtype)
    _weight_grad(few.inputs.x_TD, few.h, few.rows, out, gathered="left", adds=adds)


def _weight_grad(
    left: Tensor,
    right: Tensor,
    rows: Rows,
    out: Tensor,
    *,
    gathered: Literal["left", "right"],
    adds: bool,
) -> None:
    add = torch.ones(1, dtype=torch.int32, device=out.device) if adds else None
    ops.weight_grad(left, right, rows, out, gathered=gathered, accumulate=add, impl="triton")


_OPS: dict[str, Callable[[_Few], Any]] = {
    "up": lambda few: ops.up(
        few.inputs.x_TD, few.weights.w13_EDG, few.rows, activation=ACTIVATION, impl="triton"
    ),
    "down": lambda few: ops.down(few.a, few.weights.w2_EFD, few.rows, impl="triton"),
    "down_grad": _down_grad,
    "up_grad": lambda few: ops.up_grad(few.h, few.weights.w13_EDG, few.rows, impl="triton"),
    "dw2": lambda few: _dw2(few, torch.bfloat16),
    "dw13": lambda few: _dw13(few, torch.bfloat16),
    "combine": lambda few: ops.combine(few.y, few.rows.row_NK, impl="triton"),
}
_FP32_OPS: dict[str, Callable[[_Few], Any]] = {
    "dw2 in fp32": lambda few: _dw2(few, torch.float32),
    "dw13 in fp32": lambda few: _dw13(few, torch.float32),
    "dw2 added in fp32": lambda few: _dw2(few, torch.float32, adds=True),
    "dw13 added in fp32": lambda few: _dw13(few, torch.float32, adds=True),
}
