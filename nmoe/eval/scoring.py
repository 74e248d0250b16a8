"""Scoring the items of one task: dealing them to ranks and batches, asking the model, comparing.

Shapes: B rows of a batch, S tokens of its longest row, N scored positions, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nmoe.eval.columns import Columns, Sizes
from nmoe.eval.prompts import Item
from nmoe.eval.tasks import CoreError, Task

# (tokens_BS, rows_N, cols_N) -> logits_NV in fp32 at the asked (row, position) pairs. Inputs are
# int64 on the CPU; rows are padded on the right with BOS, those of one item are adjacent; V is the
# real vocabulary. All ranks call it equally often, so it may contain collectives.
LogitsAt = Callable[[Tensor, Tensor, Tensor], Tensor]

# The objects of all ranks, in rank order.
Gather = Callable[[Any], list[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemScore:
    """Outcome of one item: mean loss per option in nats, NaN for an empty region."""

    index: int
    text_hash: int
    gold: int | None
    chosen: int | None
    correct: bool
    losses: tuple[float, ...]
    is_cropped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """The model's seam and how the work is dealt out; one for a whole evaluation."""

    bos_id: int
    logits_at: LogitsAt
    rank: int
    world: int
    max_tokens: int | None
    batch_tokens: int
    batch_positions: int
    gather: Gather | None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise CoreError(f"bad rank: got {self.rank} of {self.world}, expected one below it")
        if self.world > 1 and self.gather is None:
            raise CoreError(f"got {self.world} ranks and no gather, expected one. Pass gather.")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise CoreError(f"bad max_tokens: got {self.max_tokens}, expected at least 2")
        if min(self.batch_tokens, self.batch_positions) < 1:
            raise CoreError(
                f"bad batch_tokens or batch_positions: got {self.batch_tokens} and"
                f" {self.batch_positions}, expected at least 1"
            )


class _BadLogits(CoreError):
    """The model's answer is not a finite [N, V] tensor that covers the targets."""


def score_task(scorer: Scorer, task: Task, columns: Columns) -> list[ItemScore]:
    """All items of a task in index order, gathered from all ranks.

    Every rank knows the sizes of every item: so all know how many calls the busiest rank needs,
    and a prompt that cannot be scored stops all of them at the same place.
    """
    sizes = columns.sizes(task, max_tokens=scorer.max_tokens)
    plans = [
        _plan_batches(scorer, sizes, range(rank, len(task.rows), scorer.world))
        for rank in range(scorer.world)
    ]
    mine = plans[scorer.rank]
    scores: list[ItemScore] = []
    problem = None
    for call in range(max(len(plan) for plan in plans)):
        if call >= len(mine) or problem:
            _idle(scorer)
            continue
        batch = [columns.item(task, index, max_tokens=scorer.max_tokens) for index in mine[call]]
        try:
            scores += _score_batch(scorer, task, batch)
        except _BadLogits as error:
            # The other ranks wait in the next call: stay in step, and stop together afterwards.
            problem = f"task {task.label!r}: {error}"
    return _gather_scores(scorer, task, scores, problem)


def _plan_batches(scorer: Scorer, sizes: Sizes, items: Sequence[int]) -> list[list[int]]:
    """Deal items into batches, longest first; a batch holds one item at least."""
    batches: list[list[int]] = []
    width = rows = positions = 0
    for i in sorted(items, key=lambda i: (-sizes.num_tokens[i], i)):
        rows += sizes.num_rows[i]
        positions += sizes.num_positions[i]
        is_full = rows * width > scorer.batch_tokens or positions > scorer.batch_positions
        if not batches or is_full:
            batches.append([])
            width, rows = sizes.num_tokens[i], sizes.num_rows[i]
            positions = sizes.num_positions[i]
        batches[-1].append(i)
    return batches


def _gather_scores(
    scorer: Scorer, task: Task, scores: list[ItemScore], problem: str | None
) -> list[ItemScore]:
    parts = scorer.gather((problem, scores)) if scorer.gather else [(problem, scores)]
    problems = [problem for problem, _ in parts if problem]
    if problems:
        raise CoreError(problems[0])
    merged = sorted((score for _, part in parts for score in part), key=lambda score: score.index)
    if [score.index for score in merged] != list(range(len(task.rows))):
        raise CoreError(
            f"task {task.label!r}: got {len(merged)} scores from {len(parts)} ranks, "
            f"expected one for each of {len(task.rows)} items"
        )
    return merged


def _idle(scorer: Scorer) -> None:
    """Call the model like the busy ranks do; nobody reads the answer."""
    zero = torch.zeros(1, dtype=torch.int64)
    scorer.logits_at(torch.full((1, 2), scorer.bos_id, dtype=torch.int64), zero, zero)


def _score_batch(scorer: Scorer, task: Task, batch: Sequence[Item]) -> list[ItemScore]:
    prompts = [prompt for item in batch for prompt in item.prompts]
    tokens = np.full((len(prompts), max(len(p.tokens) for p in prompts)), scorer.bos_id, np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.tokens)] = prompt.tokens
    counts = [prompt.num_scored for prompt in prompts]
    rows = np.repeat(np.arange(len(prompts)), counts)
    spans = [np.arange(p.end - n, p.end) for p, n in zip(prompts, counts, strict=True)]
    targets_at = np.concatenate(spans).astype(np.int64)
    losses, hits = _compare(scorer, tokens, rows, targets_at)
    ends = np.cumsum(counts)
    means = [_mean_loss(losses[end - n : end]) for end, n in zip(ends, counts, strict=True)]
    is_hit = [bool(hits[end - n : end].all()) for end, n in zip(ends, counts, strict=True)]
    scores, row = [], 0
    for item in batch:
        own = slice(row, row + len(item.prompts))
        scores.append(_decide(task, item, means[own], is_hit[row]))
        row = own.stop
    return scores


def _compare(
    scorer: Scorer, tokens: np.ndarray, rows: np.ndarray, targets_at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropy [N] (fp32, widened to fp64) and argmax hits [N] at the positions to score.

    The argmax takes the lowest id among equals.
    """
    if not len(rows):
        _idle(scorer)
        return np.zeros(0), np.zeros(0, dtype=bool)
    logits_NV = scorer.logits_at(
        torch.from_numpy(tokens), torch.from_numpy(rows), torch.from_numpy(targets_at - 1)
    ).float()
    targets_N = torch.from_numpy(tokens[rows, targets_at])
    if logits_NV.ndim != 2 or len(logits_NV) != len(rows):
        raise _BadLogits(f"got logits {list(logits_NV.shape)}, expected [{len(rows)}, vocabulary]")
    if int(targets_N.max()) >= logits_NV.shape[1]:
        raise _BadLogits(
            f"got logits for {logits_NV.shape[1]} tokens, expected more than the token id "
            f"{int(targets_N.max())}. The tokenizer does not belong to this model."
        )
    if not bool(torch.isfinite(logits_NV).all()):
        raise _BadLogits("the model gave logits that are not finite, expected finite ones")
    targets_N = targets_N.to(logits_NV.device)
    losses_N = functional.cross_entropy(logits_NV, targets_N, reduction="none")
    hits_N = logits_NV.argmax(dim=-1) == targets_N
    return losses_N.double().cpu().numpy(), hits_N.cpu().numpy()


def _mean_loss(losses: np.ndarray) -> float:
    # In fp64, so that rows with equal losses have equal means whatever their lengths.
    return math.fsum(losses) / len(losses) if len(losses) else math.nan


def _decide(task: Task, item: Item, losses: list[float], is_hit: bool) -> ItemScore:
    """Choose the option of smallest mean loss, the first one among equals.

    An option without tokens has the loss NaN, which `min` keeps in the first place and passes over
    elsewhere: the suite's answer for such items.
    """
    chosen = None if task.task_type == "language_modeling" else losses.index(min(losses))
    return ItemScore(
        index=item.index,
        text_hash=item.text_hash,
        gold=item.gold,
        chosen=chosen,
        correct=is_hit if chosen is None else chosen == item.gold,
        losses=tuple(losses),
        is_cropped=item.is_cropped,
    )
