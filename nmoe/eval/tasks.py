"""The tasks of a CORE bundle: the list in core.yaml, baselines, rows in the order of scoring.

Layout read: `core.yaml`, `eval_meta_data.csv`, `eval_data/<category>/<file>.jsonl`.
Only the structure is checked here; whoever fetched the bundle compares its hashes with the pins.
"""

import csv
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

TaskType = Literal["multiple_choice", "schema", "language_modeling"]

# The suite shuffles every task with this seed, a full run as well, so that a cap takes a sample.
SHUFFLE_SEED = 1337

# The C parser where PyYAML was built with it: same result, ten times faster.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Per task type: the text fields, and the field that lists the options (None: free continuation).
_FIELDS: dict[TaskType, tuple[tuple[str, ...], str | None]] = {
    "multiple_choice": (("query",), "choices"),
    "schema": (("continuation",), "context_options"),
    "language_modeling": (("context", "continuation"), None),
}


class CoreError(ValueError):
    """Something that cannot be scored, in bundle, prompt or logits; never a wrong answer."""


class BundleError(CoreError):
    """A bundle that is missing or broken."""


class SelectionError(CoreError):
    """A cap or a list of tasks that the bundle cannot serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One task, ready to render: `rows` are shuffled and capped, `baseline` is a fraction."""

    label: str
    task_type: TaskType
    num_shots: int
    delimiter: str
    baseline: float
    rows: tuple[dict[str, Any], ...]


def options_of(task: Task, row: dict[str, Any]) -> list[str]:
    """The answer options of a row; empty for language modeling."""
    field = _FIELDS[task.task_type][1]
    return row[field] if field else []


def read_tasks(
    bundle_dir: Path, *, cap: int | None = None, labels: Sequence[str] | None = None
) -> tuple[Task, ...]:
    """Read the tasks in the order of core.yaml, all of them or those named in `labels`.

    `cap` keeps the first `cap` rows after the shuffle; None or 0 keeps all. Few-shot examples are
    drawn from the capped rows, as the suite does. Raises SelectionError for a cap or labels
    that do not fit, BundleError for anything missing or odd.
    """
    if cap is not None and cap < 0:
        raise SelectionError(f"bad cap: got {cap}, expected a positive number or none")
    entries = _read_entries(bundle_dir)
    baselines = _read_baselines(bundle_dir)
    if labels is not None:
        known = [entry["label"] for entry in entries]
        unknown = [label for label in labels if label not in known]
        if unknown or not labels:
            raise SelectionError(
                f"unknown tasks: got {', '.join(unknown) or 'an empty list'}, "
                f"expected some of {', '.join(known)}"
            )
        entries = [entry for entry in entries if entry["label"] in labels]
    return tuple(_read_task(bundle_dir, entry, baselines, cap) for entry in entries)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"cannot read a file of the eval bundle: {path}: {error}. Prepare the bundle again."
        ) from error


def _read_entries(bundle_dir: Path) -> list[dict[str, Any]]:
    path = bundle_dir / "core.yaml"
    try:
        document = yaml.load(_read_text(path), Loader=_LOADER)
    except yaml.YAMLError as error:
        raise BundleError(f"{path} is not YAML: {error}. Prepare the bundle again.") from error
    entries = document.get("icl_tasks") if isinstance(document, dict) else None
    if not isinstance(entries, list) or not entries:
        raise BundleError(f"{path}: got no tasks, expected a list under the key icl_tasks")
    for entry in entries:
        _check_entry(path, entry)
    labels = [entry["label"] for entry in entries]
    if len(set(labels)) != len(labels):
        raise BundleError(f"{path}: a label stands twice: got {labels}, expected distinct labels")
    return entries


def _check_entry(path: Path, entry: Any) -> None:
    if not isinstance(entry, dict):
        raise BundleError(f"{path}: got the task {entry!r}, expected a mapping")
    for key in ("label", "dataset_uri", "icl_task_type", "num_fewshot"):
        if key not in entry:
            raise BundleError(f"{path}: task {entry.get('label')!r} has no key {key}")
    where = f"{path}: task {entry['label']!r}"
    if entry["icl_task_type"] not in get_args(TaskType):
        raise BundleError(
            f"{where}: got icl_task_type {entry['icl_task_type']!r}, "
            f"expected one of {', '.join(get_args(TaskType))}"
        )
    shots = entry["num_fewshot"]
    if not (isinstance(shots, list) and len(shots) == 1 and _is_count(shots[0])):
        raise BundleError(f"{where}: got num_fewshot {shots!r}, expected a list of one count")
    if not isinstance(entry.get("continuation_delimiter", " "), str):
        raise BundleError(f"{where}: continuation_delimiter is not text")


def _read_baselines(bundle_dir: Path) -> dict[str, float]:
    path = bundle_dir / "eval_meta_data.csv"
    table = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    missing = [c for c in ("Eval Task", "Random baseline") if c not in (table.fieldnames or ())]
    if missing:
        raise BundleError(f"{path}: missing column {', '.join(missing)}. Prepare the bundle again.")
    return {row["Eval Task"]: _percent(path, row) for row in table}


def _percent(path: Path, row: dict[str, str]) -> float:
    """Random baseline of a row, in percent; NaN where the cell is empty (tasks outside CORE)."""
    cell = (row["Random baseline"] or "").strip()
    try:
        return float(cell or "nan")
    except ValueError as error:
        raise BundleError(
            f"{path}: task {row['Eval Task']!r}: got the random baseline {cell!r}, "
            "expected a percentage"
        ) from error


def _read_task(
    bundle_dir: Path, entry: dict[str, Any], baselines: dict[str, float], cap: int | None
) -> Task:
    label, task_type = entry["label"], cast(TaskType, entry["icl_task_type"])
    percent = baselines.get(label)
    if percent is None or not 0 <= percent < 100:
        raise BundleError(
            f"task {label!r}: got the random baseline {percent} from eval_meta_data.csv, "
            "expected a percentage from 0 to below 100"
        )
    path = bundle_dir / "eval_data" / entry["dataset_uri"]
    rows = _read_rows(path, task_type)
    random.Random(SHUFFLE_SEED).shuffle(rows)
    rows = rows[:cap] if cap else rows
    shots = entry["num_fewshot"][0]
    if len(rows) < shots + 1:
        kind = SelectionError if cap and cap <= shots else BundleError
        raise kind(
            f"task {label!r} needs {shots} examples besides the scored item: got {len(rows)} rows, "
            f"expected at least {shots + 1}. Use a larger cap."
        )
    return Task(
        label=label,
        task_type=task_type,
        num_shots=shots,
        delimiter=entry.get("continuation_delimiter", " "),
        baseline=percent / 100,
        rows=tuple(rows),
    )


def _read_rows(path: Path, task_type: TaskType) -> list[dict[str, Any]]:
    """The rows of a JSONL file; lines end at newlines only (U+2028 and U+0085 may stand inside)."""
    rows = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                rows.append(_parse_row(f"{path} line {number}", line, task_type))
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"cannot read a file of the eval bundle: {path}: {error}. Prepare the bundle again."
        ) from error
    if not rows:
        raise BundleError(f"{path} is empty: got no rows, expected at least 1")
    return rows


def _parse_row(where: str, line: str, task_type: TaskType) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise BundleError(f"{where} is not JSON: {error}. Prepare the bundle again.") from error
    if not isinstance(row, dict):
        raise BundleError(f"{where}: got {type(row).__name__}, expected an object")
    texts, options_field = _FIELDS[task_type]
    for field in texts:
        if not isinstance(row.get(field), str):
            raise BundleError(f"{where}: got {field} {row.get(field)!r}, expected text")
    if options_field:
        _check_options(where, row, options_field)
    return row


def _check_options(where: str, row: dict[str, Any], field: str) -> None:
    options, gold = row.get(field), row.get("gold")
    if (
        not isinstance(options, list)
        or len(options) < 2
        or not all(isinstance(option, str) for option in options)
    ):
        raise BundleError(f"{where}: got {field} {options!r}, expected a list of two texts or more")
    if not _is_count(gold) or cast(int, gold) >= len(options):
        raise BundleError(f"{where}: got gold {gold!r}, expected an index below {len(options)}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
