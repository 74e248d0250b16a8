"""Data without the harness: prep, prep-mixture, verify, info, prep-bundle.

`--json` prints one progress object a line on stdout; otherwise progress goes to stderr for people.
Exit codes: 0 done, 2 usage, 4 data that cannot be made or used (the message is the last line).
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

from nmoe.data.index import read_index
from nmoe.data.manifest import DataError, Manifest, digest, read_manifest, verify
from nmoe.data.minibundle import write_mini_bundle
from nmoe.data.mixture import prep_words, read_mixture
from nmoe.data.overlap import MAX_OVERLAP, find_overlap
from nmoe.data.prep import SHARD_TOKENS, prepare
from nmoe.data.sources import SOURCES, open_source
from nmoe.data.tokenizer import check_name, open_tokenizer
from nmoe.paths import data_root
from nmoe.schema import ConfigError

USAGE_EXIT = 2
DATA_EXIT = 4
INTERRUPTED_EXIT = 130
REPORT_EVERY_S = 0.1
ERASE_LINE = "\x1b[K"  # what a longer line left behind
COUNT = re.compile(r"(\d+(?:\.\d+)?)([KMB]?)", re.IGNORECASE)
COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


class Reporter:
    """Progress of one job, at most ten times a second and always at its end.

    On a terminal it also tells the rate and the time left, and with `disk` the space left there.
    """

    def __init__(self, job: str, *, unit: str, is_json: bool, disk: Path | None = None) -> None:
        self._job, self._unit, self._is_json, self._disk = job, unit, is_json, disk
        self._is_terminal = sys.stderr.isatty()
        self._start: tuple[float, int, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int, tokens: int = 0) -> None:
        now = time.monotonic()
        self._start = self._start or (now, done, tokens)
        if done < total and now - self._last < REPORT_EVERY_S:
            return
        self._last = now
        if self._is_json:
            line = {"job": self._job, "done": done, "total": total, "unit": self._unit}
            print(json.dumps(line), flush=True)
        elif self._is_terminal:
            text = f"{done:,} of {total:,} {self._unit}{self._speed(now, done, total, tokens)}"
            print(f"\r{self._job}: {text}{ERASE_LINE}", end="", file=sys.stderr)

    def finish(self, text: str) -> None:
        """The closing line for people."""
        if not self._is_json:
            start, end = ("\r", ERASE_LINE) if self._is_terminal else ("", "")
            print(f"{start}{self._job}: {text}{end}", file=sys.stderr)

    def _speed(self, now: float, done: int, total: int, tokens: int) -> str:
        assert self._start
        since, first_done, first_tokens = self._start
        parts = [""]
        if tokens > first_tokens:
            parts.append(f"{(tokens - first_tokens) / (now - since):,.0f} tokens/s")
        if first_done < done < total:
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
    source = open_source(args.source, args.dataset, text_key=args.text_key)
    manifest = prepare(
        source,
        open_tokenizer(args.tokenizer),
        output=output,
        name=name,
        shard_tokens=args.shard_tokens,
        num_shards=args.num_shards,
        max_tokens=args.max_tokens,
        workers=args.workers,
        progress=report,
    )
    report.finish(f"{_summary(manifest)} in {output}")


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
        prep.json, prep.workers = args.json, args.workers
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
    print(f"digest     {digest(manifest)}")


def _summary(manifest: Manifest) -> str:
    return f"{manifest.total_tokens:,} tokens of {manifest.num_docs:,} documents"


def _count(text: str) -> int:
    """`10B`, `1.5M`, `64`: a whole number above zero, with K, M or B for powers of a thousand."""
    match = COUNT.fullmatch(text.replace("_", "").replace(",", ""))
    value = Decimal(match[1]) * COUNT_UNITS[match[2].upper()] if match else Decimal(0)
    if value <= 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number such as 64, 1.5M or 10B")
    return int(value)


def _tokenizer(name: str) -> str:
    try:
        check_name(name)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nmoe.data.cli", description="Prepare data.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    prep = verbs.add_parser("prep", help="documents to a dataset folder")
    prep.add_argument("--source", required=True, choices=SOURCES)
    prep.add_argument(
        "--dataset", required=True, nargs="+", help="train or val of stdlib; else files or folders"
    )
    prep.add_argument("--output", required=True, type=Path, metavar="DIR")
    prep.add_argument("--name", help="label of the dataset (default: the folder's name)")
    prep.add_argument(
        "--tokenizer", default="byte", type=_tokenizer, help="byte, gpt2 or gpt2:RANKS_FILE"
    )
    prep.add_argument("--text-key", default="text", help="column or field that holds the text")
    prep.add_argument(
        "--max-tokens", type=_count, metavar="N", help="end behind the document that reaches N"
    )
    shards = prep.add_mutually_exclusive_group()
    shards.add_argument("--num-shards", type=_count, metavar="N", help="shares of the input")
    shards.add_argument("--shard-tokens", type=_count, default=SHARD_TOKENS, metavar="N")
    prep.set_defaults(run=_prep)

    mixture = verbs.add_parser("prep-mixture", help="every source of a mixture, by prep")
    _add_mixture_options(mixture)
    mixture.set_defaults(run=_prep_mixture)
    for verb in (prep, mixture):
        verb.add_argument(
            "--workers",
            type=_count,
            default=len(os.sched_getaffinity(0)),
            metavar="N",
            help="threads that encode (default: the cores, here %(default)s)",
        )

    bundle = verbs.add_parser("prep-bundle", help="write the mini eval bundle")
    bundle.add_argument("--output", required=True, type=Path, metavar="DIR")
    bundle.set_defaults(run=_prep_bundle)

    check = verbs.add_parser("verify", help="check every hash and index of a dataset")
    _add_verify_options(check)
    check.set_defaults(run=_verify)

    info = verbs.add_parser("info", help="what a dataset holds")
    info.add_argument("folder", type=Path)
    info.set_defaults(run=_info)

    for verb in (prep, mixture, bundle, check, info):
        verb.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    return parser


def _add_mixture_options(mixture: argparse.ArgumentParser) -> None:
    mixture.add_argument("mixture", type=Path, help="a TOML file such as configs/mixtures/…")
    mixture.add_argument(
        "--output", type=Path, metavar="DIR", help="default: mixtures/NAME below DATA_DIR"
    )


def _add_verify_options(check: argparse.ArgumentParser) -> None:
    check.add_argument("folder", type=Path)
    check.add_argument("--against", type=Path, metavar="VAL_DIR", help="find shared text, too")
    check.add_argument("--window", type=_count, metavar="N", help="tokens (default: 200 bytes)")
    more = "of the validation tokens that may be shared (default: %(default)s)"
    check.add_argument("--max-overlap", type=float, default=MAX_OVERLAP, metavar="S", help=more)


if __name__ == "__main__":
    sys.exit(main())
