"""CORE of a checkpoint, in a process of its own and on one rank, whatever the run's ranks were.

    python -m nmoe.evaluate --run RUN_FOLDER                 (its target, else its newest step)
    python -m nmoe.evaluate --checkpoint RUN_FOLDER/checkpoints/step_00000500 --cap 100 --json

Exit codes: 0 scored, 2 usage, 3 environment, 4 tokenizer or eval bundle, 5 checkpoint, 7 CORE
failed, 130 interrupted.
"""

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nmoe import checkpoint, dist
from nmoe.build import WIDEST_ITEM, make_model, make_transport, set_up_torch
from nmoe.checkpoint import CheckpointError, Saved
from nmoe.config import ConfigError, Device, Plan, read_plan
from nmoe.data.manifest import DataError
from nmoe.data.tokenizer import Tokenizer, open_tokenizer
from nmoe.eval.core import CoreError, CoreResult, PromptCache, TaskScore, evaluate
from nmoe.eval.tasks import BundleError, SelectionError
from nmoe.model import Transformer
from nmoe.paths import DataRoot, RunFolder, data_root, write_atomic

ALONE = dist.World(rank=0, size=1)
MAX_THREADS = 8
# Scored positions of a CORE batch: 412 MB and 1.6 GB of logits at 50,304 entries.
BATCH_POSITIONS: dict[Device, int] = {"cpu": 2048, "cuda": 8192}

# Text that tokenizers cut in different ways: case, digits, spaces, scripts, signs.
_PROBE = (
    "The 1,024 runners' times weren't 3.14159 s...\n\n\tdef f(x):\n        return x**2 != 0x7F\n"
    "ÀÉÎÕÜ ßæø  Привет, мир! 你好，世界 こんにちは 안녕하세요 مرحبا नमस्ते 🙂👩‍👩‍👧 "
    "antidisestablishmentarianism AAAAAAAA aaaa 00000000 <|endoftext|> \u2028\x85 end "
)


def score_core(
    plan: Plan,
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    root: DataRoot,
    world: dist.World,
    records: Path | None,
    cap: int | None,
    tasks: Sequence[str] | None = None,
    on_task: Callable[[int, int, TaskScore], None] | None = None,
    warn: Callable[[str], None],
) -> CoreResult:
    """CORE of a model on the plan's bundle and within its limits; raises CoreError on all ranks.

    `warn` hears why rendered prompts could not be kept or taken from the data root.
    """
    model.eval()
    cores = len(os.sched_getaffinity(0)) // world.size
    cache = PromptCache(
        folder=root.core_cache,
        tokenizer=tokenizer_digest(tokenizer),
        threads=max(1, min(cores, MAX_THREADS)),
        warn=warn,
    )
    return evaluate(
        root.bundle(plan.data.bundle),
        tokenizer.encode_array,
        tokenizer.eos_id,
        model.logits_at,
        cap=cap,
        tasks=tasks,
        records=records,
        rank=world.rank,
        world=world.size,
        max_tokens=plan.train.seq_len,
        batch_tokens=max(plan.train.micro_batch, WIDEST_ITEM) * plan.train.seq_len,
        batch_positions=BATCH_POSITIONS[plan.device],
        gather=dist.gather,
        cache=cache,
        on_task=on_task,
    )


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """sha256 over the name, the length of every token in bytes, and what becomes of a text."""
    digest = hashlib.sha256(f"{tokenizer.name}/{tokenizer.vocab_size}/{tokenizer.eos_id}".encode())
    digest.update(tokenizer.byte_lengths().tobytes())
    digest.update(repr(tokenizer.encode(_PROBE)).encode())
    return digest.hexdigest()


def load_model(plan: Plan, saved: Saved, *, vocab_size: int) -> Transformer:
    """The model of a checkpoint with all its experts on this one rank.

    Raises ConfigError for what is not built, CheckpointError for weights that do not fit the plan.
    """
    set_up_torch(plan)
    device = dist.own_device(ALONE, plan.device)
    transport = make_transport(plan, ALONE, device)
    model = make_model(plan, transport, vocab_size=vocab_size, device=device)
    weights = checkpoint.load_weights(saved)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2]  # below a heading, one line for each tensor
        raise CheckpointError(
            f"checkpoint {saved.path} does not fit its plan: {' '.join(first).strip()}"
        ) from None
    return model


def open_run(folder: Path | None, path: Path | None) -> tuple[Plan, RunFolder, Saved]:
    """What to score: the checkpoint at `path`, which lies in a run, else the newest of `folder`."""
    if path is not None:
        saved = Saved(path=path.absolute(), manifest=checkpoint.read_manifest(path))
        run = RunFolder(root=saved.path.parent.parent)
        return read_plan(run.plan), run, saved
    assert folder is not None
    run = RunFolder(root=folder.absolute())
    plan, newest = read_plan(run.plan), checkpoint.newest(run.checkpoints)
    if newest is None:
        raise CheckpointError(
            f"no whole checkpoint in {run.checkpoints}. Train on: n resume {run.run_id}"
        )
    return plan, run, newest


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the process; returns the exit code."""
    args = _parse(argv)
    try:
        _score(args)
    except (ConfigError, SelectionError) as error:
        return _fail(error, code=2)
    except (DataError, BundleError) as error:
        return _fail(error, code=4)
    except CheckpointError as error:
        return _fail(error, code=5)
    except CoreError as error:
        return _fail(error, code=7)
    except OSError as error:
        return _fail(error, code=3)
    except KeyboardInterrupt:
        return _fail("interrupted, nothing was written", code=130)
    return 0


def _score(args: argparse.Namespace) -> None:
    """Load, score, print and write; the item file appears only once it is whole."""
    plan, folder, saved = open_run(args.run, args.checkpoint)
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise OSError(f"{plan.run_id} was trained on a GPU and torch sees none. Score it on one.")
    records = _records(args, folder)
    tokenizer = open_tokenizer(plan.data.tokenizer)
    model = load_model(plan, saved, vocab_size=tokenizer.vocab_size)
    stream = sys.stderr if args.json else sys.stdout
    status = _bundle_status(data_root().bundle(plan.data.bundle))
    kind = f", {status}" if status else ""
    print(f"{plan.run_id}, {saved.path.name}, bundle {plan.data.bundle}{kind}", file=stream)

    def on_task(index: int, count: int, score: TaskScore) -> None:
        print(_task_line(index, count, score), file=stream, flush=True)

    with _appearing(records) as unfinished:
        result = score_core(
            plan,
            model,
            tokenizer,
            root=data_root(),
            world=ALONE,
            records=unfinished,
            cap=plan.eval.cap if args.cap is None else args.cap,
            tasks=args.tasks,
            on_task=on_task,
            warn=_warn,
        )
    report = {
        "run_id": plan.run_id,
        "checkpoint": saved.path.name,
        "step": saved.manifest.progress.step,
        "bundle": plan.data.bundle,
        "bundle_status": status,
        "records": str(records) if records else None,
        **asdict(result),
    }
    if args.out is not None:
        write_atomic(args.out, json.dumps(report, indent=1) + "\n")
    for line in [json.dumps(report)] if args.json else _total_lines(result, report):
        print(line)


def _bundle_status(folder: Path) -> str | None:
    """What the record of a bundle calls it: official, or custom and why; None without one."""
    try:
        return str(json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _records(args: argparse.Namespace, folder: RunFolder) -> Path | None:
    """Where the items go: the named file, else beside --out; never over those of the run itself."""
    path: Path | None = args.records
    if path is None and args.out is not None:
        path = args.out.with_suffix(".items.jsonl")
    written = [each.resolve() for each in (path, args.out) if each is not None]
    own = folder.root.resolve()
    if any(own in each.parents for each in written):
        raise ConfigError(f"got {path or args.out}, expected a file outside the run folder {own}")
    if len(set(written)) < len(written):
        raise ConfigError(f"--out and --records name the same file: {path}. Name two.")
    return None if path is None else path.absolute()


@contextmanager
def _appearing(path: Path | None) -> Iterator[Path | None]:
    """A name to write under; what was written becomes `path` when nothing went wrong."""
    if path is None:
        yield None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _task_line(index: int, count: int, score: TaskScore) -> str:
    low, high = score.ci95
    return (
        f"{index:>2}/{count}  {score.label:<32}  acc {score.acc:.4f} [{low:.4f}, {high:.4f}]"
        f"  centered {score.centered:+.4f}  n {score.n:>6,}"
        f"  cropped {score.cropped:,}  empty {score.empty_regions:,}"
    )


def _total_lines(result: CoreResult, report: dict[str, Any]) -> list[str]:
    low, high = result.ci95
    cap = f", at most {result.cap} items a task" if result.cap else ""
    lines = [
        f"CORE {result.core:.6f} [{low:.4f}, {high:.4f}]"
        f"  {len(result.tasks)} tasks, {result.num_items:,} items{cap}"
        f", {result.core_version}"
    ]
    if result.core_without_boolq is not None:
        lines.append(f"without boolq {result.core_without_boolq:.6f} (ours, not part of CORE)")
    lines.append(
        f"cropped items {result.cropped:,} (context {result.max_tokens}),"
        f" empty regions {result.empty_regions:,}"
    )
    lines.append(f"{result.seconds:.1f} s, of which prompts {result.prompt_seconds:.1f} s")
    return lines + ([f"items: {report['records']}"] if report["records"] else [])


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _fail(problem: object, *, code: int) -> int:
    print(f"error: {problem}", file=sys.stderr, flush=True)
    return code


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _labels(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (label.strip() for label in text.split(","))))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nmoe.evaluate")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--run", type=Path, help="a run folder")
    place.add_argument("--checkpoint", type=Path, help="a folder in a run's checkpoints/")
    parser.add_argument("--cap", type=_count, help="items a task; 0: all (default: the plan's)")
    parser.add_argument("--tasks", type=_labels, metavar="A,B", help="default: all of the bundle")
    parser.add_argument("--out", type=Path, help="the result as JSON; its items beside it")
    parser.add_argument("--records", type=Path, help="the items, a JSON line each")
    parser.add_argument("--json", action="store_true", help="one JSON line on stdout")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
