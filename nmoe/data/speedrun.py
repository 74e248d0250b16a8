"""The data of the speedrun: FineWeb-Edu as GPT-2 tokens, or those of files of one's own.

Validation is the last file in the order of names, training all the others before it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nmoe.data import hub
from nmoe.data.documents import Source
from nmoe.data.download import DownloadError
from nmoe.data.files import FILES, FileSource, find_files
from nmoe.data.folder import DOWNLOADS_NAME, known_revision
from nmoe.data.manifest import DataError, Manifest
from nmoe.data.prep import Progress, prepare
from nmoe.data.sources import HubSource, Remote
from nmoe.data.tokenizer import open_tokenizer

REPO = "karpathy/fineweb-edu-100b-shuffle"
VAL_FILE = "shard_01822.parquet"
TOKENIZER = "gpt2"
TRAIN_TOKENS = 10_000_000_000
VAL_TOKENS = 10_490_880  # 5,120 windows of 2,049 tokens
MAX_TOKENS = {"val": VAL_TOKENS, "train": TRAIN_TOKENS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files of one's own instead of the hub's; `val` may be among `paths`."""

    paths: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    text_key: str = "text"


def prepare_speedrun(
    output: Path,
    *,
    inputs: Inputs | None = None,
    mirror: str | None = None,
    workers: int = 1,
    reporter: Callable[[str], Progress],
) -> dict[str, Manifest]:
    """Both splits below `output`, validation first; what is whole is left as it is.

    `reporter` makes what is told the progress of a job. Raises DataError.
    """
    sources = hub_sources(output, mirror=mirror) if inputs is None else local_sources(inputs)
    tokenizer = open_tokenizer(TOKENIZER, mirror=mirror)
    manifests: dict[str, Manifest] = {}
    for split, source in sources.items():
        job = f"speedrun/{split}"
        try:
            manifests[split] = prepare(
                source,
                tokenizer,
                output=output / split,
                name=job,
                max_tokens=MAX_TOKENS[split],
                workers=workers,
                progress=reporter(job),
            )
        except DownloadError as error:
            raise _unreachable(error) from None
    return manifests


def hub_sources(output: Path, *, mirror: str | None) -> dict[str, Source]:
    """The canonical splits of one revision: that of what lies in `output`, else the newest."""
    repo = hub.Repo.open(REPO, mirror=mirror)
    name = f"hub_parquet:{REPO}"
    known = [known_revision(output / split, name) for split in MAX_TOKENS]
    try:
        revision = next(filter(None, known), None) or repo.commit(None)
    except DownloadError as error:
        raise _unreachable(error) from None
    folders = {split: output / split / DOWNLOADS_NAME for split in MAX_TOKENS}
    val = Remote(folder=folders["val"], mirror=mirror, revision=revision, files=(VAL_FILE,))
    train = Remote(folder=folders["train"], mirror=mirror, revision=revision, exclude=(VAL_FILE,))
    return {
        "val": HubSource.open(REPO, text_key="text", remote=val),
        "train": HubSource.open(REPO, text_key="text", remote=train),
    }


def local_sources(inputs: Inputs) -> dict[str, Source]:
    """The last file in the order of names, or what was named, is validation; the rest training."""
    files = sorted(set(find_files(FILES, inputs.paths)), key=lambda path: (path.name, path))
    val = find_files(FILES, inputs.val) if inputs.val else files[-1:]
    train = [path for path in files if not any(os.path.samefile(path, each) for each in val)]
    if not train:
        raise DataError(
            f"nothing is left to train on: got {len(files)} file(s), expected one for validation"
            " and others for training. Add files, or name the file for validation with --val."
        )
    return {
        "val": FileSource.open(FILES, val, text_key=inputs.text_key),
        "train": FileSource.open(FILES, train, text_key=inputs.text_key),
    }


def _unreachable(error: DownloadError) -> DataError:
    return DataError(
        f"{error}. Without a network, fetch the files of {hub.OFFICIAL_URL}/datasets/{REPO}"
        f" elsewhere ({VAL_FILE} and, for {TRAIN_TOKENS:,} tokens, some 200 others), put them into"
        " a folder and run: n prep data --from FOLDER. Or name a mirror: --mirror URL."
    )
