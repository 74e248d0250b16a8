"""The rules of MLPerf's log checker (training 6.1, open division) for the keys of our logs.

Written from what its documents and rule files ask for, as a table of our own: how often a key
comes, what its value and metadata hold, and where in the run it may stand.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = ":::MLLOG "
FIELDS = {"namespace", "time_ms", "event_type", "key", "value", "metadata"}
PRECISIONS = {
    *("fp64", "fp32", "tf32", "fp16", "bfloat16", "fp8", "mxfp6", "nvfp4", "mxfp4"),
    *("int8", "uint8", "int4", "uint4"),
}
MAX_INIT_MS = 240 * 60 * 1000
# Opened by the first, closed by the second.
INTERVALS = {f"{name}_start": f"{name}_stop" for name in ("init", "run", "block", "eval")}
# Keys of a submission that a run has not, and one for which there must be more than one rank.
NOT_OURS = ("submission_org", "submission_benchmark", "cache_clear")
MAY_LACK = (*NOT_OURS, "lowest_numerical_precision_in_comm")


@dataclass(frozen=True)
class Rule:
    times: str = "once"
    value: Callable[[Any], bool] = lambda _: True
    needs: tuple[str, ...] = ()


def is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


SAMPLES = ("samples_count",)
RULES = {
    "submission_org": Rule(),
    "submission_benchmark": Rule(),
    "submission_platform": Rule(value=bool),
    "submission_division": Rule(value=lambda value: value in ("open", "closed")),
    "cache_clear": Rule("some"),
    "init_start": Rule("some"),
    "init_stop": Rule(),
    "run_start": Rule(),
    "run_stop": Rule(needs=("status",)),
    "block_start": Rule("some", needs=SAMPLES),
    "block_stop": Rule("some", needs=SAMPLES),
    "eval_start": Rule("any", needs=SAMPLES),
    "eval_stop": Rule("any", needs=SAMPLES),
    "eval_accuracy": Rule("some", needs=SAMPLES),
    "train_samples": Rule(value=is_count),
    "eval_samples": Rule(value=is_count),
    "global_batch_size": Rule(value=is_count),
    "gradient_accumulation_steps": Rule(value=is_count),
    "micro_batch_size": Rule(value=is_count),
    "config_filename": Rule(value=bool),
    **{
        f"lowest_numerical_precision_in_{part}": Rule(value=PRECISIONS.__contains__)
        for part in ("linear", "attn", "comm")
    },
    **{
        f"{kind}_parallelism": Rule(value=is_count)
        for kind in ("tensor", "pipeline", "context", "expert")
    },
}


def parse(text: str) -> list[dict[str, Any]]:
    """The lines of a log; ValueError for one that is not in the format."""
    found: list[dict[str, Any]] = []
    for line in text.splitlines():
        if not line.startswith(PREFIX):
            raise ValueError(f"no prefix: {line!r}")
        entry = json.loads(line[len(PREFIX) :], parse_constant=_no_constant)
        if set(entry) != FIELDS:
            raise ValueError(f"fields: {sorted(entry)}")
        found.append(entry)
    return found


def problems(text: str) -> list[str]:
    """Every rule that a log breaks, keys that are missing included."""
    lines = parse(text)
    counts = Counter(line["key"] for line in lines)
    found = [
        f"missing: {key}" for key, rule in RULES.items() if rule.times != "any" and not counts[key]
    ]
    found += [f"{key}: {n} times" for key, n in counts.items() if n > 1 and _is_single(key)]
    for line in lines:
        found += _line_problems(line)
    return found + _order_problems(lines)


def broken(text: str) -> list[str]:
    """The rules broken by keys that the log has, and keys missing that every run has."""
    return [each for each in problems(text) if each not in {f"missing: {key}" for key in MAY_LACK}]


def _is_single(key: str) -> bool:
    return key.startswith(("opt_", "max_", "seed")) or (key in RULES and RULES[key].times == "once")


def _line_problems(line: dict[str, Any]) -> list[str]:
    key, metadata = line["key"], line["metadata"]
    rule = RULES.get(key, Rule())
    found = [f"{key}: no {name}" for name in rule.needs if name not in metadata]
    found += [] if rule.value(line["value"]) else [f"{key}: {line['value']!r}"]
    if type(line["time_ms"]) is not int:
        found.append(f"{key}: time_ms {line['time_ms']!r}")
    if not isinstance(metadata.get("file"), str) or not is_count(metadata.get("lineno")):
        found.append(f"{key}: no line named")
    if key == "run_stop" and metadata.get("status") not in ("success", "aborted"):
        found.append(f"run_stop: status {metadata.get('status')!r}")
    if metadata.get("samples_count", 0) < 0:
        found.append(f"{key}: samples_count below 0")
    kinds = {**dict.fromkeys(INTERVALS, "INTERVAL_START")}
    kinds |= dict.fromkeys(INTERVALS.values(), "INTERVAL_END")
    if line["event_type"] != kinds.get(key, "POINT_IN_TIME"):
        found.append(f"{key}: {line['event_type']}")
    return found


def _order_problems(lines: Sequence[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    is_open: dict[str, int] = {}
    seen: set[str] = set()
    before = 0
    for line in lines:
        key, at = line["key"], line["time_ms"]
        found += [f"{key}: time runs backwards"] if at < before else []
        before = at
        found += _interval_problems(key, at, is_open)
        found += _place_problems(key, is_open, seen)
        seen.add(key)
    return found + [f"{key}: never closed" for key in is_open]


def _interval_problems(key: str, at: int, is_open: dict[str, int]) -> list[str]:
    """What is wrong with a beginning or an end; `is_open` is kept up to date."""
    found: list[str] = []
    if key in INTERVALS:
        if key in is_open and key != "init_start":
            found.append(f"{key}: opened twice")
        is_open.setdefault(key, at)
    for start, stop in INTERVALS.items():
        if key != stop:
            continue
        began = is_open.pop(start, None)
        if began is None:
            found.append(f"{key}: never opened")
        elif key == "init_stop" and at - began >= MAX_INIT_MS:
            found.append("init_stop: building took more than four hours")
    return found


def _place_problems(key: str, is_open: dict[str, int], seen: set[str]) -> list[str]:
    found: list[str] = []
    if key == "init_start" and seen & {"init_stop", "run_start"}:
        found.append("init_start: behind init_stop")
    if key == "run_start" and "init_stop" not in seen:
        found.append("run_start: before init_stop")
    if key.startswith(("block_", "eval_st", "eval_acc")) and not _is_running(seen):
        found.append(f"{key}: outside of the run")
    if key == "eval_accuracy" and "eval_start" not in is_open:
        found.append("eval_accuracy: outside of an evaluation")
    return found


def _is_running(seen: set[str]) -> bool:
    return "run_start" in seen and "run_stop" not in seen


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
