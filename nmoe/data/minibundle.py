"""A small eval bundle about Python source code, for a byte-level model on a laptop.

It has the layout of the CORE bundle - `core.yaml`, `eval_meta_data.csv`,
`eval_data/<category>/*.jsonl` - so that the same evaluator scores it: six tasks of 80 items, all
three types. Everything follows from the tables below by counting, so every machine writes the same
bytes. Correct options stand equally often at each position and are as long as the others; a prompt
with its shots stays below 128 bytes. `bundle.json` beside them lists the files with their hashes.
"""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nmoe.data.manifest import DataError
from nmoe.paths import write_atomic

MANIFEST_NAME = "bundle.json"
NAME = "nmoe-mini-core-1"

Row = dict[str, Any]

_NAMES_4 = ("name", "path", "line", "data", "mode", "kind", "text", "code", "item", "size")
_NAMES_5 = (
    *("count", "value", "index", "label", "width"),
    *("depth", "lines", "start", "state", "total"),
)
_NAMES_6 = (
    *("height", "length", "offset", "buffer", "header"),
    *("parser", "reader", "status", "result", "source"),
)

_HEADERS = (
    "if {n} is None",
    "if not {n}",
    "if {n} is not None",
    "if isinstance({n}, str)",
    "if {n} in self.names",
    "if len({n}) > 1",
    "elif {n} == 'x'",
    "elif not {n}",
    "else",
    "try",
    "finally",
    "except ValueError",
    "except (TypeError, OSError)",
    "while True",
    "while {n} is None",
    "for i in range({n})",
    "for i, c in enumerate({n})",
    "with open({n}) as f",
    "def {n}(self)",
    "def set_{n}(self, {n})",
)

# What stands before, and how the word goes on.
_KEYWORDS = (
    ("        retu", "rn"),
    ("        rais", "e"),
    ("        contin", "ue"),
    ("        brea", "k"),
    ("        yiel", "d"),
    ("    exce", "pt"),
    ("    els", "e"),
    ("    whil", "e"),
    ("    finall", "y"),
    ("impor", "t"),
    ("clas", "s"),
    ("        sel", "f"),
    ("        if isinst", "ance("),
    ("        raise ValueErr", "or("),
    ("        raise TypeE", "rror("),
    ("        raise NotImpl", "ementedError"),
    ("        if {n} is Non", "e"),
    ("        return Fals", "e"),
    ("        return Tru", "e"),
    ("        for i in ran", "ge("),
)

_COPIES = (
    "    def __init__(self, {n}):\n        self.{n} = ",
    "    for {n} in items:\n        print(",
    "    if {n} is None:\n        raise TypeError(",
    "def get_{n}(self):\n        return self.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    label: str
    category: str
    task_type: Literal["multiple_choice", "schema", "language_modeling"]
    delimiter: str
    baseline: int
    about: str
    rows: tuple[Row, ...]
    num_shots: int = 0

    @property
    def uri(self) -> str:
        return f"{self.category}/{self.label}.jsonl"

    @property
    def jsonl(self) -> str:
        return "".join(json.dumps(row) + "\n" for row in self.rows)


def write_mini_bundle(out_dir: Path) -> str:
    """Write the bundle into the folder `out_dir` and return its digest.

    The folder appears whole or not at all; a partial or older bundle is replaced, a whole one kept.
    Raises DataError when the folder holds anything else, OSError when it cannot be written.
    """
    files = _files()
    if not is_whole(out_dir):
        _check_only_ours(out_dir)
        temporary = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.tmp")
        try:
            for name, text in files.items():
                write_atomic(temporary / name, text)
            _put_in_place(temporary, out_dir)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _digest(files)


def is_whole(folder: Path) -> bool:
    """Whether the folder holds every file that this version writes, byte for byte."""
    for name, text in _files().items():
        try:
            if (folder / name).read_bytes() != text.encode():
                return False
        except OSError:
            return False
    return True


def mini_bundle_digest() -> str:
    """sha256 over names and hashes of all files: equal digests, equal bundles."""
    return _digest(_files())


def _put_in_place(temporary: Path, out_dir: Path) -> None:
    try:
        if out_dir.exists():
            shutil.rmtree(out_dir)
        temporary.rename(out_dir)
    except OSError:
        # Another process may have put the same bundle there in between.
        if not is_whole(out_dir):
            raise


def _check_only_ours(out_dir: Path) -> None:
    """Refuse a folder whose files nobody could write again."""
    if out_dir.exists() and not out_dir.is_dir():
        raise DataError(f"{out_dir} is a file, expected a folder. Name another output.")
    marks = ("core.yaml", "eval_meta_data.csv", "eval_data", MANIFEST_NAME)
    strangers = [path.name for path in out_dir.glob("*") if path.name not in marks]
    if strangers:
        raise DataError(
            f"{out_dir} holds other files: got {strangers[0]}, expected an eval bundle or nothing."
            " Name another output."
        )


# --- files --------------------------------------------------------------------------------------


def _files() -> dict[str, str]:
    """Every file of the bundle by its path inside the folder, bundle.json last."""
    tasks = _tasks()
    files = {f"eval_data/{task.uri}": task.jsonl for task in tasks}
    files["core.yaml"] = _core_yaml(tasks)
    files["eval_meta_data.csv"] = _meta_csv(tasks)
    manifest = {
        "name": NAME,
        "digest": _digest(files),
        "num_tasks": len(tasks),
        "num_items": sum(len(task.rows) for task in tasks),
        "files": {
            name: {"bytes": len(text.encode()), "sha256": _sha256(text)}
            for name, text in files.items()
        },
    }
    return files | {MANIFEST_NAME: json.dumps(manifest, indent=1) + "\n"}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(files: dict[str, str]) -> str:
    hashes = {name: _sha256(text) for name, text in files.items() if name != MANIFEST_NAME}
    return _sha256(json.dumps(hashes, sort_keys=True))


def _core_yaml(tasks: Iterable[_Task]) -> str:
    lines = ["icl_tasks:"]
    for task in tasks:
        lines += [
            "-",
            f"  label: {task.label}",
            f"  dataset_uri: {task.uri}",
            f"  num_fewshot: [{task.num_shots}]",
            f"  icl_task_type: {task.task_type}",
            f"  continuation_delimiter: {json.dumps(task.delimiter)}",
        ]
    return "\n".join(lines) + "\n"


def _meta_csv(tasks: Iterable[_Task]) -> str:
    """The table of tasks; it names the hash of each task's rows, so its own hash covers them."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(
        ("Eval Task", "Task Category", "Task Type", "#shots", "#datapoints")
        + ("Random baseline", "Centered Metric?", "Description")
    )
    for task in tasks:
        about = f"{task.about} Rows sha256 {_sha256(task.jsonl)}."
        kind = task.task_type.replace("_", " ")
        counts = (task.num_shots, len(task.rows), task.baseline)
        table.writerow((task.label, task.category, kind, *counts, "", about))
    return out.getvalue()


# --- tasks --------------------------------------------------------------------------------------


def _tasks() -> tuple[_Task, ...]:
    return (
        _Task(
            label="closing_pair",
            category="python_syntax",
            task_type="multiple_choice",
            delimiter="",
            baseline=25,
            about="Which quote and bracket close what stands open.",
            rows=tuple(_closing_pair()),
        ),
        _Task(
            label="header_end",
            category="python_syntax",
            task_type="language_modeling",
            delimiter="",
            baseline=0,
            about="The colon and newline at the end of a block header.",
            rows=tuple(_header_end()),
        ),
        _Task(
            label="block_indent",
            category="python_syntax",
            task_type="schema",
            delimiter="\n",
            baseline=50,
            about="Which of two lines stands before a line of this indentation.",
            rows=tuple(_block_indent()),
        ),
        _Task(
            label="keyword_end",
            category="python_words",
            task_type="language_modeling",
            delimiter="",
            baseline=0,
            about="The rest of a keyword or a builtin name.",
            rows=tuple(_keyword_end()),
        ),
        _Task(
            label="same_name",
            category="python_words",
            task_type="multiple_choice",
            delimiter="",
            baseline=25,
            about="Which name is used again.",
            rows=tuple(_same_name()),
        ),
        _Task(
            label="body_start",
            category="python_words",
            task_type="multiple_choice",
            num_shots=2,
            delimiter="\n    ",
            baseline=25,
            about="Which word starts the body of a function.",
            rows=tuple(_body_start()),
        ),
    )


def _choice(query: str, options: tuple[str, ...], *, right: int, gold: int) -> Row:
    """A multiple choice row with the options turned until the right one stands at `gold`."""
    turn = right - gold
    turned = [options[(j + turn) % len(options)] for j in range(len(options))]
    return {"query": query, "choices": turned, "gold": gold}


def _closing_pair() -> Iterable[Row]:
    pairs = ("']", '"]', "')", '")')
    subjects = ("data[", "table[", "open(", "print(")
    for i, name in enumerate(_NAMES_4 + _NAMES_5[:5] + _NAMES_6[:5]):
        for right, pair in enumerate(pairs):
            subject = subjects[i % 2 + 2 * (pair[1] == ")")]
            line = f"    {_NAMES_5[(i + right) % 10]} = {subject}{pair[0]}{name}"
            yield _choice(line, pairs, right=right, gold=(i + right) % 4)


def _header_end() -> Iterable[Row]:
    for i, header in enumerate(_HEADERS):
        for j in range(4):
            name = _NAMES_4[(i + 3 * j) % 10]
            context = f"self.{name} = {name}\n    {header.format(n=name)}"
            yield {"context": context, "continuation": ":\n"}


def _block_indent() -> Iterable[Row]:
    headers = ("if {n}:", "while {n}:", "for c in {n}:", "if not {n}:", "with {n}:")
    plains = ("{n} = 1", "{n} = []", "print({n})", "{n}.close()", "{n} = None")
    bodies = ("return {n}", "self.{n} = {n}", "raise ValueError({n})", "print({n})")
    for i in range(40):
        name = (_NAMES_4 + _NAMES_5)[i % 20]
        # The first line shows the depth of the block, which a line alone leaves open.
        first = f"        self.{name} = {name}\n        "
        header = first + headers[i % 5].format(n=name)
        plain = first + plains[(i + i // 5) % 5].format(n=name)
        body = bodies[i % 4].format(n=name)
        options = [header, plain] if i % 2 else [plain, header]
        for before, indent in ((header, 12), (plain, 8)):
            yield {
                "context_options": options,
                "continuation": " " * indent + body,
                "gold": options.index(before),
            }


def _keyword_end() -> Iterable[Row]:
    for i, (start, end) in enumerate(_KEYWORDS):
        for j in range(4):
            name = _NAMES_4[(i + 3 * j) % 10]
            yield {
                "context": f"self.{name} = {name}\n{start.format(n=name)}",
                "continuation": end,
            }


def _same_name() -> Iterable[Row]:
    """Each name is right once and wrong three times in every pattern, among names of its length."""
    gold = 0
    for pattern in _COPIES:
        for names in (_NAMES_5, _NAMES_6):
            for i, name in enumerate(names):
                options = tuple(names[(i + step) % 10] for step in (0, 3, 5, 8))
                yield _choice(pattern.format(n=name), options, right=0, gold=gold)
                gold = (gold + 1) % 4


def _body_start() -> Iterable[Row]:
    words = ("return", "except", "import", "lambda")
    for i in range(80):
        argument = ("n", "x", "key", "obj", *_NAMES_4[:4])[i % 8]
        query = f"def {_NAMES_6[i // 8]}({argument}):"
        options = tuple(f"{word} {argument} + 1" for word in words)
        yield _choice(query, options, right=0, gold=(i + i // 8) % 4)
