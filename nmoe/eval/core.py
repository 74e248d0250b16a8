"""The CORE score of a model that is seen only through `encode` and `logits_at`.

Per task: mean accuracy, centered on the accuracy of guessing; CORE is the mean of the centered
accuracies. Item i is scored by rank i mod world; batches hold items of similar length, all options
of an item adjacent in one batch; only the positions that are scored reach the model's head.
Options are compared by the mean cross-entropy of their region; free answers must be the argmax at
every position. Specification: DCLM's 22 tasks as nanochat computes them.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from nmoe.eval.cache import PromptCache, PromptSource
from nmoe.eval.prompts import Encode
from nmoe.eval.scoring import Gather, ItemScore, LogitsAt, Scorer, score_task
from nmoe.eval.tasks import CoreError, Task, TaskType, read_tasks
from nmoe.paths import file_digest

__all__ = ["CoreError", "CoreResult", "PromptCache", "TaskScore", "centered", "evaluate"]

# The bundle whose score may be called CORE: sha256 of core.yaml and eval_meta_data.csv (v1
# baselines), equal in all public copies.
CORE_VERSION = "dclm-v1-22"
_CORE_PINS = (
    "463f6ae0aa127fbd41fa655f8919e136858f4849eef176922a3be96e102ce7e7",
    "84e279cdc0d836c9ea3a6e55a99102f8ee18f72809fe7aa6ac5a1fe630aa492f",
)

_NUM_RESAMPLES = 10_000
_Z95 = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Score of one task over its `n` items; `seconds` is the time of scoring on this rank.

    `ci95` is the Wilson interval of `acc`; `cropped` and `empty_regions` count items with at least
    one option that was cut to the context, or that had no token of its own to score.
    """

    label: str
    task_type: TaskType
    num_shots: int
    n: int
    acc: float
    baseline: float
    centered: float
    ci95: tuple[float, float]
    cropped: int
    empty_regions: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreResult:
    """The score of a suite: `core` is the mean of the centered accuracies of `tasks`.

    `core_version` is "dclm-v1-22" for the 22 tasks with their v1 baselines, else "custom";
    `core_without_boolq` (ours, not part of CORE) leaves out the noisiest task, None where it is
    not in the suite; `ci95` is a bootstrap interval of `core` over the items within each task.
    `prompt_seconds` is what rendering, encoding or reading the prompts took on this rank.
    """

    core: float
    ci95: tuple[float, float]
    core_without_boolq: float | None
    core_version: str
    csv_sha256: str
    cap: int | None
    max_tokens: int | None
    prompt_seconds: float
    tasks: tuple[TaskScore, ...]

    @property
    def seconds(self) -> float:
        """Time of all tasks and their prompts on this rank."""
        return math.fsum((self.prompt_seconds, *(task.seconds for task in self.tasks)))

    @property
    def num_items(self) -> int:
        """Items of all tasks."""
        return sum(task.n for task in self.tasks)

    @property
    def cropped(self) -> int:
        """Items of all tasks with an option that was cut to the context."""
        return sum(task.cropped for task in self.tasks)

    @property
    def empty_regions(self) -> int:
        """Items of all tasks with an option that had no token of its own to score."""
        return sum(task.empty_regions for task in self.tasks)


def evaluate(
    bundle_dir: Path,
    encode: Encode,
    bos_id: int,
    logits_at: LogitsAt,
    *,
    cap: int | None = None,
    tasks: Sequence[str] | None = None,
    records: Path | None = None,
    rank: int = 0,
    world: int = 1,
    max_tokens: int | None = None,
    batch_tokens: int = 16384,
    batch_positions: int = 2048,
    gather: Gather | None = None,
    cache: PromptCache | None = None,
    on_task: Callable[[int, int, TaskScore], None] | None = None,
) -> CoreResult:
    """Score a model, seen through `encode` and `logits_at`, on a bundle; all ranks return the same.

    cap: score the first `cap` items after the shuffle; None or 0 scores all.
    tasks: labels to score; None scores all. max_tokens: keep the last tokens of longer rows.
    records: JSONL file that rank 0 writes, a line an item: task, index, gold, chosen, correct,
    losses (null: gold and chosen of language modeling, the loss of an empty region), prompt (hash
    of the rendered texts, before any crop).
    batch_tokens: B * S of a batch, batch_positions: those of them that are scored, unless a single
    item is larger; a position has V logits in fp32.
    gather: returns the objects of all ranks in rank order; needed when world > 1.
    cache: where rendered prompts are kept for the next evaluation; None renders them anew.
    on_task: called on each rank with the task's number from 1, the number of tasks, the score.

    Raises CoreError, on all ranks, for what cannot be scored: a failure is never a wrong answer.
    """
    bundle = Path(bundle_dir)
    scorer = Scorer(
        bos_id=bos_id,
        logits_at=logits_at,
        rank=rank,
        world=world,
        max_tokens=max_tokens,
        batch_tokens=batch_tokens,
        batch_positions=batch_positions,
        gather=gather,
    )
    suite = read_tasks(bundle, cap=cap, labels=tasks)
    source = PromptSource(encode, bos_id, cache=cache)
    with _record_file(records if rank == 0 else None) as stream:
        scores, prompt_seconds = _score_suite(scorer, source, suite, stream, on_task)
    pins = tuple(file_digest(bundle / name) for name in ("core.yaml", "eval_meta_data.csv"))
    return CoreResult(
        core=_mean([score.centered for score in scores]),
        ci95=_bootstrap(scores),
        core_without_boolq=_without_boolq(scores),
        core_version=CORE_VERSION if pins == _CORE_PINS and tasks is None else "custom",
        csv_sha256=pins[1],
        cap=cap or None,
        max_tokens=max_tokens,
        prompt_seconds=prompt_seconds,
        tasks=tuple(scores),
    )


def _score_suite(
    scorer: Scorer,
    source: PromptSource,
    suite: Sequence[Task],
    stream: TextIO | None,
    on_task: Callable[[int, int, TaskScore], None] | None,
) -> tuple[list[TaskScore], float]:
    """The scores of all tasks in turn, and the seconds that their prompts took."""
    began = time.perf_counter()
    _share_rendering(scorer, source, suite)
    scores: list[TaskScore] = []
    prompt_seconds = time.perf_counter() - began
    for number, task in enumerate(suite, start=1):
        began = time.perf_counter()
        columns = source.columns(task)
        rendered = time.perf_counter()
        items = score_task(scorer, task, columns)
        _write_records(stream, task, items)
        scores.append(_summarise(task, items, time.perf_counter() - rendered))
        prompt_seconds += rendered - began
        if on_task:
            on_task(number, len(suite), scores[-1])
    return scores, prompt_seconds


def centered(acc: float, baseline: float) -> float:
    """Accuracy on a scale where guessing (`baseline`, a fraction) is 0 and perfect is 1."""
    return (acc - baseline) / (1 - baseline)


def _share_rendering(scorer: Scorer, source: PromptSource, suite: Sequence[Task]) -> None:
    """Each rank puts its share of the tasks into the cache, where all find them afterwards."""
    if scorer.gather is None or scorer.world == 1 or not source.has_cache:
        return
    # What cannot be rendered is raised when its turn comes, on all ranks at the same place.
    with suppress(CoreError):
        for task in suite[scorer.rank :: scorer.world]:
            source.columns(task)
    scorer.gather(None)


def _summarise(task: Task, items: Sequence[ItemScore], seconds: float) -> TaskScore:
    acc = sum(item.correct for item in items) / len(items)
    return TaskScore(
        label=task.label,
        task_type=task.task_type,
        num_shots=task.num_shots,
        n=len(items),
        acc=acc,
        baseline=task.baseline,
        centered=centered(acc, task.baseline),
        ci95=_wilson(acc, len(items)),
        cropped=sum(item.is_cropped for item in items),
        empty_regions=sum(any(map(math.isnan, item.losses)) for item in items),
        seconds=seconds,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _without_boolq(scores: Sequence[TaskScore]) -> float | None:
    others = [score.centered for score in scores if score.label != "boolq"]
    return _mean(others) if 0 < len(others) < len(scores) else None


def _wilson(acc: float, n: int) -> tuple[float, float]:
    """95 % interval of an accuracy over n items (Wilson 1927)."""
    z2 = _Z95**2 / n
    middle = (acc + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * (acc * (1 - acc) + z2 / 4)) / (1 + z2)
    return middle - half, middle + half


def _bootstrap(scores: Sequence[TaskScore]) -> tuple[float, float]:
    """95 % interval of CORE when the items of each task are drawn again; the same every time.

    Drawing n outcomes of 0 or 1 with replacement is one draw from Binomial(n, acc).
    """
    rng = np.random.default_rng(0)
    cores = np.zeros(_NUM_RESAMPLES)
    for score in scores:
        accs = rng.binomial(score.n, score.acc, size=_NUM_RESAMPLES) / score.n
        cores += (accs - score.baseline) / (1 - score.baseline) / len(scores)
    low, high = np.quantile(cores, (0.025, 0.975))
    return float(low), float(high)


@contextmanager
def _record_file(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    with Path(path).open("w", encoding="utf-8") as stream:
        yield stream


def _write_records(stream: TextIO | None, task: Task, items: Sequence[ItemScore]) -> None:
    if stream is None:
        return
    for item in items:
        line = {
            "task": task.label,
            "index": item.index,
            "gold": item.gold,
            "chosen": item.chosen,
            "correct": item.correct,
            "losses": [None if math.isnan(loss) else loss for loss in item.losses],
            "prompt": f"{item.text_hash:016x}",
        }
        stream.write(json.dumps(line, allow_nan=False) + "\n")
    stream.flush()
