"""Two scored models, item by item: who answered what rightly, and what luck alone would explain."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harness.errors import RunError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What must agree between two scorings of an item, and whether it was answered rightly."""

    gold: int | None
    num_options: int
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
class Comparison:
    """Two item files, task by task and in total over all items."""

    a: str
    b: str
    tasks: tuple[Pair, ...]
    total: Pair


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
    return Comparison(
        a=str(a),
        b=str(b),
        tasks=tuple(_pair(task, pairs) for task, pairs in by_task.items()),
        total=_pair("total", [pair for pairs in by_task.values() for pair in pairs]),
    )


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


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of a split at least this uneven when each side is as likely: exact binomial."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    term = tail = 1
    for k in range(1, fewer + 1):
        term = term * (n - k + 1) // k
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def _parse(line: str, *, where: str) -> tuple[str, int, Item]:
    try:
        raw: Any = json.loads(line)
        gold, losses = raw["gold"], cast(Sequence[Any], raw["losses"])
        item = Item(gold=gold, num_options=len(losses), is_correct=raw["correct"] is True)
        return str(raw["task"]), int(raw["index"]), item
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{where} is not a scored item: {error!r}", "Score the run again.") from None


def _check(a: Suite, b: Suite) -> None:
    """UsageError unless both hold the same items: a paired comparison means nothing otherwise."""
    fix = "Score both on the same bundle with the same cap and tasks: n eval core"
    if a.keys() != b.keys():
        raise UsageError(
            f"the tasks differ: only in the first {_names(a.keys() - b.keys())},"
            f" only in the second {_names(b.keys() - a.keys())}",
            fix,
        )
    for task, items in a.items():
        if items.keys() != b[task].keys():
            raise UsageError(
                f"the items of {task!r} differ: got {len(items)} and {len(b[task])},"
                " expected the same ones",
                fix,
            )
        for index, item in items.items():
            other = b[task][index]
            if (item.gold, item.num_options) != (other.gold, other.num_options):
                raise UsageError(
                    f"item {index} of {task!r} is another question:"
                    f" got answer {item.gold} of {item.num_options}"
                    f" and {other.gold} of {other.num_options}",
                    fix,
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
