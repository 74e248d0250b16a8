"""Two things side by side, and what luck alone would explain: scored models, sets of runs.

Models are compared item by item, runs pair by pair and within one cohort only.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from harness import repeats, runs, score, significance
from harness.entry import Cohort
from harness.errors import RunError, UsageError
from harness.score import Score
from harness.significance import Interval
from nmoe.paths import DataRoot, RunFolder

ITEMS_SUFFIX = ".items.jsonl"
NUM_RESAMPLES = 10_000
# A faster time counts from this share on, however sure it is.
LEAST_SPEEDUP = 0.003
_SAME_BUNDLE = "Score both on the same bundle with the same cap and tasks: n eval core"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What must agree between two scorings of an item, and whether it was answered rightly.

    `prompt` is the hash of the rendered texts; None in files that do not tell it.
    """

    gold: int | None
    num_options: int
    prompt: str | None
    is_correct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One task, or all together: items that only one of the two has right, exact McNemar p."""

    task: str
    n: int
    acc_a: float
    acc_b: float
    only_a: int
    only_b: int
    p: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreDifference:
    """CORE of both and B - A with its 95 % interval: the items of each task drawn again, paired."""

    a: float
    b: float
    difference: float
    ci95: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two item files, task by task, in total over all items, and by CORE.

    `core` is None where nothing tells the baselines of the tasks; `notes` are for reading.
    """

    a: str
    b: str
    tasks: tuple[Pair, ...]
    total: Pair
    core: CoreDifference | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComparison:
    """Two sets of runs of one cohort in pairs: B - A of final loss and of training seconds.

    They are other than A's when luck does not explain the difference, a time also by LEAST_SPEEDUP.
    """

    a: str
    b: str
    cohort: Cohort
    loss: Interval
    train_s: Interval
    is_other_loss: bool
    is_other_time: bool
    notes: tuple[str, ...]


Suite = dict[str, dict[int, Item]]


def compare(a: Path, b: Path) -> Comparison:
    """Compare two item files (`core_items.jsonl`).

    Raises RunError for a file that cannot be read, UsageError when the items do not match.
    """
    suite_a, suite_b = read_items(a), read_items(b)
    _check(suite_a, suite_b)
    by_task = {
        task: [(items[index], suite_b[task][index]) for index in items]
        for task, items in suite_a.items()
    }
    tasks = tuple(_pair(task, pairs) for task, pairs in by_task.items())
    baselines = _agreed(read_baselines(a), read_baselines(b))
    unknown = [task.task for task in tasks if task.task not in baselines]
    notes = [
        f"{path} has no prompt hashes, so that its prompts were the same is not checked."
        " Score it again: n eval core"
        for path, suite in ((a, suite_a), (b, suite_b))
        if any(item.prompt is None for items in suite.values() for item in items.values())
    ]
    if unknown:
        notes.append(
            f"no difference of CORE: the baselines of {_names(unknown)} are not known."
            " Compare runs, or files of n eval core --out"
        )
    return Comparison(
        a=str(a),
        b=str(b),
        tasks=tasks,
        total=_pair("total", [pair for pairs in by_task.values() for pair in pairs]),
        core=None if unknown else core_difference(tasks, baselines),
        notes=tuple(notes),
    )


def compare_runs(a: str, b: str, root: DataRoot) -> RunComparison:
    """Compare two runs, or two sets of repeats, pair by pair in the order in which they ran.

    Raises RunError for what cannot be read, UsageError across cohorts or when nothing finished.
    """
    first, second = _members(a, root), _members(b, root)
    cohort = first[0].cohort
    for each in (*first, *second):
        different = cohort.differences(each.cohort)
        if different:
            raise UsageError(
                f"{first[0].result.run_id} and {each.result.run_id} are of different cohorts:"
                f" {'; '.join(different)}",
                "Times and losses can be compared within one cohort only.",
            )
    n = min(len(first), len(second))
    losses = [[_loss(each) for each in side[:n]] for side in (first, second)]
    times = [[each.result.train_s for each in side[:n]] for side in (first, second)]
    loss, train_s = paired(*losses), paired(*times)
    mean_a = sum(times[0]) / n
    return RunComparison(
        a=a,
        b=b,
        cohort=cohort,
        loss=loss,
        train_s=train_s,
        is_other_loss=loss.excludes_zero,
        is_other_time=train_s.excludes_zero and abs(train_s.mean) >= LEAST_SPEEDUP * mean_a,
        notes=tuple(_run_notes(first, second)),
    )


def _members(name: str, root: DataRoot) -> list[Score]:
    """The finished runs of a set in the order in which they started, or the one run."""
    if repeats.exists(name, root):
        found = repeats.outcomes(repeats.read(name, root), root)
        scores = [each.scored for each in found if each.is_finished and each.scored is not None]
    else:
        scored = score.compute(runs.find(root, name), root)
        scores = [scored] if scored.result.loss is not None else []
    if not scores:
        raise UsageError(f"{name} has no run with a final loss", "Run: n runs")
    return sorted(scores, key=lambda each: (each.began, each.result.run_id))


def _loss(scored: Score) -> float:
    assert scored.result.loss is not None
    return scored.result.loss


def _run_notes(first: Sequence[Score], second: Sequence[Score]) -> Iterator[str]:
    """What a reader must know before he believes the intervals."""
    if min(len(first), len(second)) == 1:
        yield "one pair has no interval. Repeat both: n speedrun --repeat N --steps S"
    elif min(len(first), len(second)) < significance.MIN_PAIRS:
        yield f"fewer than {significance.MIN_PAIRS} pairs show no difference, whatever the interval"
    if len(first) != len(second):
        yield f"{len(first)} and {len(second)} runs: what has no partner is left out"
    steps = {each.result.step for each in (*first, *second)}
    if len(steps) > 1:
        yield f"the runs ended at different steps: {', '.join(map(str, sorted(steps)))}"
    sides = [(each.began, 0) for each in first] + [(each.began, 1) for each in second]
    order = [side for _, side in sorted(sides)]
    blocks = [set(order[i : i + 2]) for i in range(0, len(order) - 1, 2)]
    if len(order) > 2 and any(len(block) < 2 for block in blocks):
        yield (
            "the runs were not interleaved: that the machine changed meanwhile is not excluded."
            " Run: n compare A B --repeat N --steps S"
        )
    if any(each.result.attempts > 1 for each in (*first, *second)):
        yield "some runs were resumed"


def read_items(path: Path) -> Suite:
    """The items of a file by task and index; RunError when they cannot be read."""
    suite: Suite = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RunError(
            f"no scored items at {path}", "Score a checkpoint: n eval core --run RUN --out FILE"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line:
            task, index, item = _parse(line, where=f"{path} line {number}")
            if index in suite.setdefault(task, {}):
                raise RunError(f"{path} line {number}: item {index} of {task!r} stands twice")
            suite[task][index] = item
    if not suite:
        raise RunError(f"{path} holds no items", "Score the run again: n eval core")
    return suite


def read_baselines(items: Path) -> dict[str, float]:
    """What guessing scores by task: told by the run of an item file, or the report beside it."""
    folder = RunFolder(root=items.absolute().parent)
    if items.absolute() == folder.core_items and folder.plan.is_file():
        told = {task.name: task.baseline for task in runs.load(folder).core_tasks}
    else:
        told = _reported(items.with_name(items.name.removesuffix(ITEMS_SUFFIX) + ".json"))
    return {task: value for task, value in told.items() if value is not None and value < 1}


def paired(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The mean of B - A over pairs, with a bootstrap interval that is the same every time."""
    differences = np.array(b) - np.array(a)
    n = len(differences)
    if n < 2:
        return Interval(n=n, mean=float(differences.mean()), low=None, high=None)
    drawn = np.random.default_rng(0).integers(0, n, size=(NUM_RESAMPLES, n))
    low, high = np.quantile(differences[drawn].mean(1), (0.025, 0.975))
    return Interval(n=n, mean=float(differences.mean()), low=float(low), high=float(high))


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of a split at least this uneven when each side is as likely: exact binomial."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = tail = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def core_difference(tasks: Sequence[Pair], baselines: Mapping[str, float]) -> CoreDifference:
    """CORE of both models over `tasks`, and a bootstrap interval of B - A; the same every time.

    Drawing the n pairs of a task with replacement is one draw from a multinomial over: only A has
    it right, only B, both or neither.
    """
    rng = np.random.default_rng(0)
    differences = np.zeros(NUM_RESAMPLES)
    core_a = core_b = 0.0
    for task in tasks:
        baseline = baselines[task.task]
        scale = 1 / (1 - baseline) / len(tasks)
        core_a += (task.acc_a - baseline) * scale
        core_b += (task.acc_b - baseline) * scale
        others = task.n - task.only_a - task.only_b
        shares = np.array((task.only_a, task.only_b, others)) / task.n
        drawn = rng.multinomial(task.n, shares, size=NUM_RESAMPLES)
        differences += (drawn[:, 1] - drawn[:, 0]) / task.n * scale
    low, high = np.quantile(differences, (0.025, 0.975))
    return CoreDifference(
        a=core_a, b=core_b, difference=core_b - core_a, ci95=(float(low), float(high))
    )


def _reported(report: Path) -> dict[str, float | None]:
    """The baselines in a report of `n eval core --out`; empty when there is none."""
    try:
        raw: Any = json.loads(report.read_text(encoding="utf-8"))
        return {str(task["label"]): float(task["baseline"]) for task in raw["tasks"]}
    except (OSError, ValueError, TypeError, LookupError):
        return {}


def _agreed(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    for task in a.keys() & b.keys():
        if a[task] != b[task]:
            raise UsageError(
                f"the baselines of {task!r} differ: got {a[task]} and {b[task]}", _SAME_BUNDLE
            )
    return a | b


def _parse(line: str, *, where: str) -> tuple[str, int, Item]:
    try:
        raw: Any = json.loads(line)
        gold, losses = raw["gold"], cast(Sequence[Any], raw["losses"])
        item = Item(
            gold=gold,
            num_options=len(losses),
            prompt=raw.get("prompt"),
            is_correct=raw["correct"] is True,
        )
        return str(raw["task"]), int(raw["index"]), item
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{where} is not a scored item: {error!r}", "Score the run again.") from None


def _check(a: Suite, b: Suite) -> None:
    """UsageError unless both hold the same items: a paired comparison means nothing otherwise."""
    if a.keys() != b.keys():
        raise UsageError(
            f"the tasks differ: only in the first {_names(a.keys() - b.keys())},"
            f" only in the second {_names(b.keys() - a.keys())}",
            _SAME_BUNDLE,
        )
    for task, items in a.items():
        if items.keys() != b[task].keys():
            raise UsageError(
                f"the items of {task!r} differ: got {len(items)} and {len(b[task])},"
                " expected the same ones",
                _SAME_BUNDLE,
            )
        for index, item in items.items():
            _check_item(f"item {index} of {task!r}", item, b[task][index])


def _check_item(name: str, a: Item, b: Item) -> None:
    if (a.gold, a.num_options) != (b.gold, b.num_options):
        raise UsageError(
            f"{name} is another question: got answer {a.gold} of {a.num_options}"
            f" and {b.gold} of {b.num_options}",
            _SAME_BUNDLE,
        )
    if None not in (a.prompt, b.prompt) and a.prompt != b.prompt:
        raise UsageError(
            f"{name} was asked in other words: got the prompts {a.prompt} and {b.prompt}",
            _SAME_BUNDLE,
        )


def _names(labels: Iterable[str]) -> str:
    return ", ".join(sorted(labels)) or "none"


def _pair(task: str, pairs: Sequence[tuple[Item, Item]]) -> Pair:
    right_a = sum(a.is_correct for a, _ in pairs)
    right_b = sum(b.is_correct for _, b in pairs)
    both = sum(a.is_correct and b.is_correct for a, b in pairs)
    return Pair(
        task=task,
        n=len(pairs),
        acc_a=right_a / len(pairs),
        acc_b=right_b / len(pairs),
        only_a=right_a - both,
        only_b=right_b - both,
        p=mcnemar(right_a - both, right_b - both),
    )
