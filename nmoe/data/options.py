"""The options of the data commands, and the values they take."""

import argparse
import re
from decimal import Decimal
from pathlib import Path

from nmoe.data.manifest import DataError
from nmoe.data.overlap import MAX_OVERLAP
from nmoe.data.tokenizer import check_name

COUNT = re.compile(r"(\d+(?:\.\d+)?)([KMB]?)", re.IGNORECASE)
COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def count(text: str) -> int:
    """`10B`, `1.5M`, `64`: a whole number above zero, with K, M or B for powers of a thousand."""
    match = COUNT.fullmatch(text.replace("_", "").replace(",", ""))
    value = Decimal(match[1]) * COUNT_UNITS[match[2].upper()] if match else Decimal(0)
    if value <= 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number such as 64, 1.5M or 10B")
    return int(value)


def tokenizer(name: str) -> str:
    """The name of a tokenizer, checked without reading anything."""
    try:
        check_name(name)
    except DataError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def add_remote_options(prep: argparse.ArgumentParser) -> None:
    """What only the sources on a hub take."""
    remote = prep.add_argument_group("of hub_parquet and hf")
    remote.add_argument("--revision", help="branch, tag or commit (default: main, at the start)")
    remote.add_argument(
        "--files", nargs="+", metavar="PATTERN", help="hub_parquet: which (default: *.parquet)"
    )
    remote.add_argument("--exclude", nargs="+", metavar="PATTERN", help="hub_parquet: which not")
    remote.add_argument(
        *("--keep",),
        type=Path,
        metavar="DIR",
        help="hub_parquet: keep the files there (default: each is removed once it is read)",
    )
    remote.add_argument("--config", metavar="NAME", help="hf: a part of the dataset")
    remote.add_argument("--split", metavar="NAME", help="hf: default train")


def add_speedrun_options(speedrun: argparse.ArgumentParser) -> None:
    """What the speedrun's data is made of, and where."""
    speedrun.add_argument(
        "--output", type=Path, metavar="DIR", help="default: speedrun in the data root"
    )
    speedrun.add_argument(
        *("--from",),
        dest="inputs",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="files or folders of .parquet, .jsonl or .txt instead of the hub's",
    )
    speedrun.add_argument(
        *("--val",),
        type=Path,
        nargs="+",
        metavar="FILE",
        help="for validation (default: the last file in the order of names)",
    )
    speedrun.add_argument("--text-key", help="column or field that holds the text (default: text)")


def add_mixture_options(mixture: argparse.ArgumentParser) -> None:
    """The mixture, and where."""
    mixture.add_argument("mixture", type=Path, help="a TOML file such as configs/mixtures/…")
    mixture.add_argument(
        "--output", type=Path, metavar="DIR", help="default: mixtures/NAME below DATA_DIR"
    )


def add_verify_options(check: argparse.ArgumentParser) -> None:
    """The dataset, and what it must not share."""
    check.add_argument("folder", type=Path)
    check.add_argument("--against", type=Path, metavar="VAL_DIR", help="find shared text, too")
    check.add_argument("--window", type=count, metavar="N", help="tokens (default: 200 bytes)")
    more = "of the validation tokens that may be shared (default: %(default)s)"
    check.add_argument("--max-overlap", type=float, default=MAX_OVERLAP, metavar="S", help=more)
