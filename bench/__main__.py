"""`python -m bench`: compile in parallel, run the suite, show the table; also `n bench`.

Rows of a GPU are kept under bench/results/ and enter its summary.json; those of a CPU are shown.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.layers import MOST_GROUPS
from bench.machine import device_name
from bench.recorded import rows_of
from bench.rows import CPU, Row, dump, load, regressions, save, update_summary
from bench.runs import PRESETS
from bench.shapes import Shape, shapes_for
from bench.step import STEPS, Job, check, presets_of
from bench.step_ranks import run
from bench.table import show
from bench.warm import compile_all
from nmoe.paths import REPO_ROOT

RESULTS = REPO_ROOT / "bench" / "results"
FILES = {
    "kernels": ("test_kernels.py", "test_layer.py"),
    "loss": ("test_loss.py",),
    "transport": ("test_transport.py",),
}
STEP = "step"
USAGE_EXIT = 2
TEST_TIMEOUT_S = 900


def main(arguments: Sequence[str] | None = None) -> int:
    """0, pytest's exit code when a measurement failed, or 2 for a wrong command."""
    options = _parser().parse_args(arguments)
    try:
        if options.noun == "summary":
            return _summarize(options.files)
        if options.noun == "run":
            return _show_run(options)
        old = load(options.compare) if options.compare else []
        if options.noun == "show":
            rows = load(options.file)
            show(rows, regressions(old, rows))
            return 0
        job = _job(options) if options.noun == STEP else None
        shapes = shapes_for(device_name(), options.shapes)
    except (OSError, ValueError) as error:
        return _refuse(error)
    with tempfile.TemporaryDirectory() as folder:
        # a step's rows are kept as they come, for whoever ends it early
        is_kept = job is not None and options.rows is not None
        rows_file = options.rows if is_kept else Path(folder) / "rows.jsonl"
        with _stdout_to_stderr():
            if job is None:
                code = _measure(options, shapes, rows_file)
            else:
                code = _measure_step(replace(job, rows=rows_file), gpus=options.gpus)
        rows = load(rows_file) if rows_file.exists() else []
        kept = options.rows or _kept_file(options.noun, rows)
        if rows and kept is not None and not is_kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(rows_file.read_text())
    if options.json:
        print("\n".join(map(dump, rows)))
    else:
        show(rows, regressions(old, rows))
        if rows and kept is not None:
            print(f"rows: {kept}")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="n bench", description="What the operations cost.")
    nouns = parser.add_subparsers(dest="noun", required=True, metavar="WHAT")
    helps = {
        "kernels": "each kernel and the layer, in turn with their peers",
        "loss": "the loss of the head, forward and backward, in turn with torch",
        "transport": "dispatch, return and the layer on two or more ranks",
        STEP: "the training step of each preset, by part, in turn with plain torch",
    }
    for noun, text in helps.items():
        verb = nouns.add_parser(noun, help=text, description=text)
        shown = verb.add_mutually_exclusive_group()
        shown.add_argument("--json", action="store_true", help="rows on stdout and nothing else")
        shown.add_argument(
            "--compare", type=Path, metavar="FILE", help="mark what is slower than in these rows"
        )
        verb.add_argument("--rows", type=Path, metavar="FILE", help="keep the rows there instead")
        if noun == "loss":  # one shape of its own
            verb.set_defaults(shapes="")
        elif noun == STEP:
            _add_step_options(verb)
        else:
            verb.add_argument("--shapes", default="", metavar="A,B", help="only these shapes")
        if noun == "transport":
            verb.add_argument("--gpus", type=_positive, default=2, metavar="N", help="a rank each")
        verb.add_argument("--commit", help="of the code, where git does not know it")
    verb = nouns.add_parser("show", help="the table of a file of rows")
    verb.add_argument("file", type=Path, metavar="FILE")
    verb.add_argument("--compare", type=Path, metavar="FILE", help="mark what is slower than here")
    verb = nouns.add_parser("run", help="speed and CORE of a finished run, from its own record")
    verb.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    verb.add_argument("--rows", type=Path, metavar="FILE", help="keep the rows there instead")
    verb = nouns.add_parser("summary", help="merge files of rows into results/summary.json")
    verb.add_argument("files", type=Path, nargs="+", metavar="FILE")
    return parser


def _add_step_options(verb: argparse.ArgumentParser) -> None:
    verb.set_defaults(shapes="")
    known = ",".join(PRESETS[:-1])
    verb.add_argument(
        "--presets", default=known, metavar="A,B", help=f"some of {', '.join(PRESETS)}; {known}"
    )
    verb.add_argument("--steps", type=_positive, default=STEPS, metavar="N", help="timed steps")
    verb.add_argument(
        "--micro-batch", type=_positive, metavar="N", help="sequences of a micro-batch on a GPU"
    )
    verb.add_argument("--gpus", type=_positive, default=1, metavar="N", help="a process each")
    verb.add_argument("--no-peer", action="store_true", help="leave plain torch out")
    verb.add_argument(
        "--quick", action="store_true", help="the official step and its parts, nothing else"
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text}, expected a positive number")
    return int(text)


def _job(options: argparse.Namespace) -> Job:
    """What `step` is to measure; ValueError for what it cannot. The file is named later."""
    job = Job(
        presets=presets_of(options.presets),
        device=device_name(),
        rows=Path(),
        steps=options.steps,
        micro_batch=options.micro_batch,
        has_peer=not options.no_peer,
        is_quick=options.quick,
        commit=options.commit,
    )
    check(job, gpus=options.gpus)
    return job


def _measure_step(job: Job, *, gpus: int) -> int:
    """0, or 1 when something failed; the rows are in the file."""
    job.rows.unlink(missing_ok=True)
    problems = run(job, gpus=gpus)
    for problem in problems:
        print(f"failed: {problem}")
    if job.rows.exists():
        update_summary(RESULTS / "summary.json", load(job.rows))
    return 1 if problems else 0


def _measure(options: argparse.Namespace, shapes: Sequence[Shape], rows_file: Path) -> int:
    """pytest's exit code; the rows are in the file."""
    started = time.monotonic()
    if device_name() == "cuda":
        for problem in _compile(options.noun, shapes):
            print(f"not compiled: {problem}", flush=True)
        print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
    os.chdir(REPO_ROOT)
    arguments = [
        *(f"bench/{name}" for name in FILES[options.noun]),
        *("-c", "pyproject.toml", "-o", f"timeout={TEST_TIMEOUT_S}", "-p", "no:cacheprovider"),
        *("--benchmark-enable", "--benchmark-quiet", "--durations=10", "--rows", str(rows_file)),
    ]
    if options.shapes:
        arguments += ["--shapes", options.shapes]
    if options.commit:
        arguments += ["--commit", options.commit]
    if options.noun == "transport":
        arguments += ["--gpus", str(options.gpus)]
    code = int(pytest.main(arguments))
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return code


def _compile(noun: str, shapes: Sequence[Shape]) -> list[str]:
    if noun == "loss":
        return []  # its warm-up compiles two kernels
    if noun == "transport":
        return compile_all(shapes[:1], peers=())
    peers = [shape for shape in shapes if shape.num_experts < MOST_GROUPS]
    return compile_all(shapes, peers=peers)


def _show_run(options: argparse.Namespace) -> int:
    run_id, rows = rows_of(options.folder)
    is_gpu = rows[0].machine.gpu != CPU
    kept = options.rows or (RESULTS / f"run-{run_id}.jsonl" if is_gpu else None)
    if kept is not None:
        save(kept, rows)
        update_summary(RESULTS / "summary.json", rows)
    show(rows, {})
    if kept is not None:
        print(f"rows: {kept}")
    return 0


def _summarize(files: Sequence[Path]) -> int:
    rows = [row for file in files for row in load(file)]
    summary = RESULTS / "summary.json"
    print(f"{summary}: {'updated' if update_summary(summary, rows) else 'nothing newer'}")
    return 0


def _refuse(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return USAGE_EXIT


def _kept_file(noun: str, rows: Sequence[Row]) -> Path | None:
    """Where the rows of a GPU are kept; those of a CPU are not."""
    if not rows or device_name() != "cuda":
        return None
    facts = rows[0].machine
    name = re.sub(r"[^a-z0-9]+", "-", facts.gpu.lower()).strip("-")
    return RESULTS / f"{noun}-{name}-x{facts.gpus}-{facts.commit[:12]}.jsonl"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What the suite says while it runs is a remark; rows and table are the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


if __name__ == "__main__":
    sys.exit(main())
