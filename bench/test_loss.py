"""The loss of the head, forward and backward, in turn with torch, eager and compiled.

Legend: T tokens, D model, V vocabulary with padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.plain_trainer import chunked_nats
from bench.problem import Distance
from bench.report import Report
from bench.rows import LIMIT, LOSS, OURS, right
from bench.timing import Contest
from nmoe import ops
from nmoe.flops import padded_vocab
from nmoe.model import LOSS_CHUNK
from nmoe.probe import TIMINGS, WARMUPS, Stopwatch

EAGER, COMPILED = "torch chunked", "torch chunked, compiled"

Given = tuple[Tensor, Tensor, Tensor]  # x_TD, weight_VD, targets_T
Grads = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # sum of nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The head of a model, and how many tokens a micro-batch has."""

    name: str
    tokens: int
    dim: int
    vocab_size: int

    @property
    def flops(self) -> int:
        """Three products, forward and backward; padding and recomputation earn nothing."""
        return 3 * 2 * self.tokens * self.dim * self.vocab_size

    def draw(self, device: str, generator: torch.Generator) -> Given:
        """Rows of unit size, an fp32 master of the weights, tokens."""
        x_TD = torch.randn(self.tokens, self.dim, device=device, generator=generator)
        rows = padded_vocab(self.vocab_size)
        weight_VD = torch.randn(rows, self.dim, device=device, generator=generator)
        targets_T = torch.randint(
            self.vocab_size, (self.tokens,), device=device, generator=generator
        )
        weight_VD = weight_VD.mul_(self.dim**-0.5).requires_grad_()
        return x_TD.bfloat16().requires_grad_(), weight_VD, targets_T


HEADS = {
    "cuda": Head(name="head", tokens=65_536, dim=768, vocab_size=50_257),
    "cpu": Head(name="tiny", tokens=96, dim=64, vocab_size=257),
}


def test_loss(benchmark, device: str, watch: Stopwatch, report: Report):
    """From rows and weights to the mean of all nats, and on to both gradients."""
    head = HEADS[device]
    generator = torch.Generator(device).manual_seed(0)
    given: list[Given] = []
    results: dict[str, Grads] = {}

    def prepare() -> None:
        results.clear()
        given[:] = [head.draw(device, generator)]

    plain = partial(chunked_nats, num_real=head.vocab_size)
    entrants: dict[str, Loss] = {OURS: partial(_ours, head, device), EAGER: plain}
    if device == "cuda":
        entrants[COMPILED] = torch.compile(plain, dynamic=False)
    contest = Contest(
        prepare=prepare,
        entrants={
            name: partial(_timed, watch, head, name, loss, given, results)
            for name, loss in entrants.items()
        },
    )
    benchmark.pedantic(contest.round, rounds=TIMINGS, warmup_rounds=WARMUPS)
    errors = _errors(head, given[0], results)
    for name in entrants:
        report.add(
            contest,
            name,
            what=LOSS,
            shape=head.name,
            work=head.flops,
            unit="TFLOP/s",
            errors=errors.get(name),
            plain=errors.get(EAGER),
        )
    assert right(errors[OURS], limit=LIMIT), f"{errors[OURS]}"


def _ours(head: Head, device: str, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    impl = "triton" if device == "cuda" else "reference"
    total, _ = ops.linear_cross_entropy(
        x_TD, weight_VD, targets_T, chunk=LOSS_CHUNK[impl], num_real=head.vocab_size, impl=impl
    )
    return total


def _timed(
    watch: Stopwatch,
    head: Head,
    name: str,
    loss: Loss,
    given: list[Given],
    results: dict[str, Grads],
) -> dict[str, float]:
    x_TD, weight_VD, targets_T = given[0]

    def work() -> None:
        mean = loss(x_TD, weight_VD, targets_T) / head.tokens
        results[name] = torch.autograd.grad(mean, (x_TD, weight_VD))

    return {LOSS: watch.time(work)[0]}


def _errors(head: Head, given: Given, results: dict[str, Grads]) -> dict[str, dict[str, float]]:
    """Relative L2 of dx and dw against fp64 of the same bf16 inputs, some tokens at a time."""
    x_TD, weight_VD, targets_T = (each.detach() for each in given)
    weight_VD = weight_VD.bfloat16().double()
    dx = {name: Distance() for name in results}
    dw_VD = torch.zeros_like(weight_VD)
    for start in range(0, head.tokens, 4096):
        part = slice(start, start + 4096)
        x_cD = x_TD[part].double()
        logits_cV = x_cD @ weight_VD.T
        logits_cV[:, head.vocab_size :] = -torch.inf
        grad_cV = logits_cV.softmax(dim=1)
        grad_cV[torch.arange(len(x_cD), device=x_cD.device), targets_T[part]] -= 1
        grad_cV /= head.tokens
        dw_VD += grad_cV.T @ x_cD
        dx_cD = grad_cV @ weight_VD
        for name, (got_TD, _) in results.items():
            dx[name].add(got_TD[part], dx_cD)
    found = {}
    for name, (_, got_VD) in results.items():
        dw = Distance()
        dw.add(got_VD, dw_VD)
        found[name] = {"dx": dx[name].value, "dw": dw.value}
    return found
