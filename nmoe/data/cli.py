"""Data without the harness: prep, prep-speedrun, prep-mixture, verify, info, prep-bundle.

`--json` prints one progress object a line on stdout; otherwise progress goes to stderr for people.
Exit codes: 0 done, 2 usage, 4 data that cannot be made or used (the message is the last line).
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from nmoe.data.download import DownloadError
from nmoe.data.folder import DOWNLOADS_NAME, known_revision
from nmoe.data.index import read_index
from nmoe.data.manifest import MANIFEST_NAME, DataError, Manifest, digest, read_manifest, verify
from nmoe.data.minibundle import write_mini_bundle
from nmoe.data.mixture import prep_words, read_mixture
from nmoe.data.options import (
    add_mixture_options,
    add_remote_options,
    add_speedrun_options,
    add_verify_options,
    count,
    tokenizer,
)
from nmoe.data.overlap import find_overlap
from nmoe.data.prep import SHARD_TOKENS, prepare
from nmoe.data.sources import REMOTE_SOURCES, SOURCES, Remote, Source, open_source
from nmoe.data.speedrun import TRAIN_TOKENS, VAL_TOKENS, Inputs, prepare_speedrun
from nmoe.data.tokenizer import open_tokenizer
from nmoe.paths import data_root, existing
from nmoe.schema import ConfigError

USAGE_EXIT = 2
DATA_EXIT = 4
INTERRUPTED_EXIT = 130
REPORT_EVERY_S = 0.1
LINE_EVERY_S = 60.0  # into a file
ERASE_LINE = "\x1b[K"  # what a longer line left behind
REMOTE_OPTIONS = {
    "hub_parquet": ("revision", "files", "exclude", "keep"),
    "hf": ("revision", "config", "split"),
}


class Reporter:
    """Progress of one job, at most ten times a second and always at its end; for people who read it
    in a file, once a minute.

    People are also told the rate and the time left, and with `disk` the space left there.
    """

    def __init__(self, job: str, *, unit: str, is_json: bool, disk: Path | None = None) -> None:
        self._job, self._unit, self._is_json, self._disk = job, unit, is_json, disk
        self._is_terminal = sys.stderr.isatty()
        self._start: tuple[float, int, int] | None = None
        self._last = time.monotonic() if not (is_json or self._is_terminal) else 0.0

    def __call__(self, done: int, total: int | None, tokens: int = 0) -> None:
        now = time.monotonic()
        self._start = self._start or (now, done, tokens)
        is_file = not (self._is_json or self._is_terminal)
        pause = LINE_EVERY_S if is_file else REPORT_EVERY_S
        if (is_file or done != total) and now - self._last < pause:
            return
        self._last = now
        if self._is_json:
            line = {"job": self._job, "done": done, "total": total, "unit": self._unit}
            print(json.dumps(line), flush=True)
            return
        whole = "" if total is None else f" of {total:,}"
        text = f"{done:,}{whole} {self._unit}{self._speed(now, done, total, tokens)}"
        start, end = ("\r", ERASE_LINE) if self._is_terminal else ("", "\n")
        print(f"{start}{self._job}: {text}{end}", end="", file=sys.stderr, flush=True)

    def finish(self, text: str) -> None:
        """The closing line for people."""
        if not self._is_json:
            start, end = ("\r", ERASE_LINE) if self._is_terminal else ("", "")
            print(f"{start}{self._job}: {text}{end}", file=sys.stderr)

    def _speed(self, now: float, done: int, total: int | None, tokens: int) -> str:
        assert self._start
        since, first_done, first_tokens = self._start
        parts = [""]
        if tokens > first_tokens:
            parts.append(f"{(tokens - first_tokens) / (now - since):,.0f} tokens/s")
        if total is not None and first_done < done < total:
            seconds = round((now - since) * (total - done) / (done - first_done))
            parts.append(f"{timedelta(seconds=seconds)} left")
        if self._disk and self._disk.exists():
            parts.append(f"{shutil.disk_usage(self._disk).free / 1e9:,.1f} GB of disk left")
        return ", ".join(parts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is returned."""
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], None] = args.run
    try:
        run(args)
    except (DataError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second complaint
        print(f"error: {error}", file=sys.stderr)
        return DATA_EXIT
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_EXIT
    except KeyboardInterrupt:
        print("interrupted: run the same command again to finish", file=sys.stderr)
        return INTERRUPTED_EXIT
    return 0


def _prep(args: argparse.Namespace) -> None:
    output: Path = args.output
    name = args.name or output.name
    report = Reporter(name, unit="bytes", is_json=args.json, disk=output)
    try:
        manifest = prepare(
            _source(args),
            open_tokenizer(args.tokenizer, mirror=args.mirror),
            output=output,
            name=name,
            shard_tokens=args.shard_tokens,
            num_shards=args.num_shards,
            max_tokens=args.max_tokens,
            workers=args.workers,
            progress=report,
        )
    except DownloadError as error:
        raise DataError(
            f"{error}. Fetch the files elsewhere and read them with --source files"
            " --dataset FOLDER, or name a mirror with --mirror URL."
        ) from None
    report.finish(f"{_summary(manifest)} in {output}")


def _source(args: argparse.Namespace) -> Source:
    """The source that was named; an unfinished or whole dataset of it tells its revision."""
    for name in dict.fromkeys(name for names in REMOTE_OPTIONS.values() for name in names):
        fitting = [source for source, names in REMOTE_OPTIONS.items() if name in names]
        if getattr(args, name) is not None and args.source not in fitting:
            args.refuse(f"--{name}: only for --source {' or '.join(fitting)}")
    if args.source not in REMOTE_SOURCES:
        return open_source(args.source, args.dataset, text_key=args.text_key)
    known = known_revision(args.output, f"{args.source}:{args.dataset[0]}")
    remote = Remote(
        folder=args.keep or args.output / DOWNLOADS_NAME,
        keeps_files=args.keep is not None,
        mirror=args.mirror,
        revision=args.revision or known,
        files=tuple(args.files or ()),
        exclude=tuple(args.exclude or ()),
        config=args.config,
        split=args.split or "train",
    )
    return open_source(args.source, args.dataset, text_key=args.text_key, remote=remote)


def _prep_speedrun(args: argparse.Namespace) -> None:
    output: Path = args.output or data_root().dataset("speedrun")
    if args.inputs is None and (args.val or args.text_key):
        args.refuse("--val and --text-key: only with --from")
    inputs = None
    if args.inputs is not None:
        text_key = args.text_key or "text"
        inputs = Inputs(paths=tuple(args.inputs), val=tuple(args.val or ()), text_key=text_key)
    reporters: list[Reporter] = []

    def reporter(job: str) -> Reporter:
        reporters.append(Reporter(job, unit="bytes", is_json=args.json, disk=output))
        return reporters[-1]

    is_there = (output / "train" / MANIFEST_NAME).exists()
    if inputs is None and not (is_there or args.json):
        free = shutil.disk_usage(existing(output)).free
        print(
            f"speedrun: {TRAIN_TOKENS:,} tokens to train on and {VAL_TOKENS:,} to validate on take"
            f" {2 * (TRAIN_TOKENS + VAL_TOKENS) / 1e9:.1f} GB in {output}, where"
            f" {free / 1e9:,.1f} GB are free; interrupted, the same command goes on",
            file=sys.stderr,
        )
    made = prepare_speedrun(
        output, inputs=inputs, mirror=args.mirror, workers=args.workers, reporter=reporter
    )
    for report, (split, manifest) in zip(reporters, made.items(), strict=True):
        names = ", ".join([Path(name).name for name in manifest.inputs][:3])
        more = len(manifest.inputs) - 3
        read = f"{names} and {more} more" if more > 0 else names
        report.finish(f"{_summary(manifest)} of {read} in {output / split}")
    if made["val"].total_tokens < VAL_TOKENS and not args.json:
        print(
            f"validation is short: {made['val'].total_tokens:,} tokens, the speedrun has"
            f" {VAL_TOKENS:,}; losses are not comparable with its",
            file=sys.stderr,
        )


def _prep_mixture(args: argparse.Namespace) -> None:
    file, root = args.mixture, data_root()
    output: Path = args.output or root.below(f"mixtures/{file.stem}")
    preps: list[argparse.Namespace] = []
    for name, words in prep_words(read_mixture(file), output, root).items():
        try:
            preps.append(_parser().parse_args(["prep", *words]))
        except SystemExit:
            raise ConfigError(f"{file.name}: {name} is not what prep takes, see above") from None
    for prep in preps:
        prep.json, prep.workers, prep.mirror = args.json, args.workers, args.mirror
        prep.run(prep)


def _prep_bundle(args: argparse.Namespace) -> None:
    output: Path = args.output
    report = Reporter(output.name, unit="bundle", is_json=args.json)
    report(0, 1)
    write_mini_bundle(output)
    report(1, 1)
    report.finish(f"whole in {output}")


def _verify(args: argparse.Namespace) -> None:
    folder: Path = args.folder
    report = Reporter(folder.name, unit="bytes", is_json=args.json)
    manifest = verify(folder, progress=report)
    num_docs = 0
    for shard in manifest.shards:
        path = (folder / shard.name).with_suffix(".idx")
        num_docs += len(read_index(path, tokens=shard.tokens))
    if num_docs != manifest.num_docs:
        raise DataError(
            f"indexes of {folder}: got {num_docs} documents, expected {manifest.num_docs}."
            " Prepare the dataset again."
        )
    report.finish(f"whole: {_summary(manifest)}")
    if args.against:
        _compare(args)


def _compare(args: argparse.Namespace) -> None:
    """Tell the overlap of a training set with a validation set; DataError when it is too much."""
    verify(args.against)
    report = Reporter(args.folder.name, unit="tokens", is_json=args.json)
    found = find_overlap(args.folder, args.against, window=args.window, progress=report)
    report.finish(f"compared with {args.against}")
    if args.json:
        print(json.dumps({"overlap": {"share": found.share, **asdict(found)}}))
    else:
        print(*found.lines(), sep="\n")
    found.check(at_most=args.max_overlap)


def _info(args: argparse.Namespace) -> None:
    manifest = read_manifest(args.folder)
    if args.json:
        print(json.dumps({**asdict(manifest), "digest": digest(manifest)}, ensure_ascii=False))
        return
    print(f"{manifest.name}: {_summary(manifest)}")
    print(f"source     {manifest.source} {manifest.revision}")
    print(f"tokenizer  {manifest.tokenizer}, {manifest.vocab_size} ids, EOS {manifest.eos_id}")
    print(f"shards     {len(manifest.shards)}, {manifest.total_bytes:,} bytes")
    for key, value in manifest.facts.items():
        print(f"{key:<10} {value}")
    if manifest.inputs:
        print(f"inputs     {len(manifest.inputs)} files, their digests in manifest.json")
    print(f"digest     {digest(manifest)}")


def _summary(manifest: Manifest) -> str:
    return f"{manifest.total_tokens:,} tokens of {manifest.num_docs:,} documents"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nmoe.data.cli", description="Prepare data.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    prep = verbs.add_parser("prep", help="documents to a dataset folder")
    prep.add_argument("--source", required=True, choices=SOURCES)
    prep.add_argument(
        *("--dataset",),
        required=True,
        nargs="+",
        help="train or val of stdlib; OWNER/NAME on a hub; else files or folders",
    )
    prep.add_argument("--output", required=True, type=Path, metavar="DIR")
    prep.add_argument("--name", help="label of the dataset (default: the folder's name)")
    prep.add_argument(
        *("--tokenizer",),
        default="byte",
        type=tokenizer,
        help="byte, gpt2 or another encoding of tiktoken, ENCODING:RANKS_FILE, FILE.json[:EOS]",
    )
    prep.add_argument("--text-key", default="text", help="column or field that holds the text")
    prep.add_argument(
        "--max-tokens", type=count, metavar="N", help="end behind the document that reaches N"
    )
    shards = prep.add_mutually_exclusive_group()
    shards.add_argument("--num-shards", type=count, metavar="N", help="shares of the input")
    shards.add_argument("--shard-tokens", type=count, default=SHARD_TOKENS, metavar="N")
    add_remote_options(prep)
    prep.set_defaults(run=_prep, refuse=prep.error)

    speedrun = verbs.add_parser("prep-speedrun", help="the data of the speedrun, or one's own")
    add_speedrun_options(speedrun)
    speedrun.set_defaults(run=_prep_speedrun, refuse=speedrun.error)

    mixture = verbs.add_parser("prep-mixture", help="every source of a mixture, by prep")
    add_mixture_options(mixture)
    mixture.set_defaults(run=_prep_mixture)
    for verb in (prep, speedrun, mixture):
        verb.add_argument("--mirror", metavar="URL", help="base URL in place of the hub's")
        verb.add_argument(
            "--workers",
            type=count,
            default=len(os.sched_getaffinity(0)),
            metavar="N",
            help="threads that encode (default: the cores, here %(default)s)",
        )

    bundle = verbs.add_parser("prep-bundle", help="write the mini eval bundle")
    bundle.add_argument("--output", required=True, type=Path, metavar="DIR")
    bundle.set_defaults(run=_prep_bundle)

    check = verbs.add_parser("verify", help="check every hash and index of a dataset")
    add_verify_options(check)
    check.set_defaults(run=_verify)

    info = verbs.add_parser("info", help="what a dataset holds")
    info.add_argument("folder", type=Path)
    info.set_defaults(run=_info)

    for verb in (prep, speedrun, mixture, bundle, check, info):
        verb.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
