"""The folder of a dataset while it is being made: what is whole in it, and who may write it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nmoe.data.documents import START, Place
from nmoe.data.encode import Encoded
from nmoe.data.index import read_index
from nmoe.data.manifest import (
    MANIFEST_NAME,
    DataError,
    Manifest,
    Shard,
    read_manifest,
    verify,
    verify_sizes,
)
from nmoe.data.shards import ShardWriter, shard_name
from nmoe.paths import file_digest, write_atomic

# Stands in the folder while shards are being written: what was ordered and which are whole.
MARKER_NAME = "unfinished.json"
# Files of the input that wait there to be read.
DOWNLOADS_NAME = "downloads"
# A dataset up to this size is checked by hash when it is found already prepared: about a second.
HASHED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """How far the input has been turned into tokens."""

    num_docs: int = 0
    tokens: int = 0
    text_bytes: int = 0
    place: Place = START

    def plus(self, item: Encoded) -> "Done":
        return Done(
            num_docs=self.num_docs + (len(item.tokens) > 0),
            tokens=self.tokens + len(item.tokens),
            text_bytes=self.text_bytes + item.text_bytes,
            place=item.place,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A whole shard, and how far the input was done at its end."""

    shard: Shard
    done: Done


class Folder:
    """The shards being made, one open at a time; the marker follows each that is whole."""

    def __init__(self, *, output: Path, order: dict, made: list[Made]) -> None:
        self.made, self.output = made, output
        self._order = order
        self._writer: ShardWriter | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the open shard."""
        return self._writer.tokens if self._writer else 0

    def append(self, item: Encoded) -> None:
        if self._writer is None:
            self._writer = ShardWriter(self.output, len(self.made), dtype=item.tokens.dtype)
        self._writer.append(item.tokens)

    def end_shard(self, done: Done) -> None:
        """Close the open shard, if there is one, and note it."""
        if self._writer is None:
            return
        self.made.append(Made(shard=self._writer.close(), done=done))
        self._writer = None
        _mark(self.output, self._order, self.made)

    def close(self) -> None:
        """Drop what is not whole."""
        if self._writer:
            self._writer.discard()


def known_revision(output: Path, source: str) -> str | None:
    """The revision of the source called so, in a dataset or an unfinished one in `output`."""
    for name in (MANIFEST_NAME, MARKER_NAME):
        try:
            content = json.loads((output / name).read_text(encoding="utf-8"))
            order = content if name == MANIFEST_NAME else content["order"]
            if order["source"] == source:
                return str(order["revision"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return None


def find_whole(output: Path, order: dict) -> Manifest | None:
    """The dataset in `output` when it is the one ordered and whole, None when it must be made."""
    if not (output / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(output)
    for key, wanted in order.items():
        if getattr(manifest, key) != wanted:
            raise DataError(
                f"{output} holds another dataset: got {key} {getattr(manifest, key)!r}, expected"
                f" {wanted!r}. Delete the folder or choose another --output."
            )
    try:
        return verify(output) if manifest.total_bytes <= HASHED_BYTES else verify_sizes(output)
    except DataError:
        return None


def keep_whole(output: Path, order: dict) -> list[Made]:
    """The shards of an interrupted preparation that are whole; everything else of it is removed.

    DataError for files of others.
    """
    leftovers = [path for path in output.glob("shard_*") if path.suffix in (".npy", ".idx")]
    is_ours = (output / MANIFEST_NAME).exists() or (output / MARKER_NAME).exists()
    if leftovers and not is_ours:
        raise DataError(
            f"{output} holds shards without a manifest, such as {leftovers[0].name}."
            " Delete them or choose another --output."
        )
    made = _kept(output, order)
    _mark(output, order, made)
    (output / MANIFEST_NAME).unlink(missing_ok=True)
    half_written = [
        path
        for name in ("shard_", MANIFEST_NAME, MARKER_NAME)
        for path in output.glob(f".{name}*.tmp")
    ]
    kept = {Path(each.shard.name).stem for each in made}
    for path in (*leftovers, *half_written):
        if path.stem not in kept:
            path.unlink()
    return made


def _mark(output: Path, order: dict, made: Sequence[Made]) -> None:
    content = {"order": order, "shards": [asdict(each) for each in made]}
    write_atomic(output / MARKER_NAME, json.dumps(content) + "\n")


def _kept(output: Path, order: dict) -> list[Made]:
    """The shards that the marker names, up to the first that is not as it says."""
    made: list[Made] = []
    try:
        content = json.loads((output / MARKER_NAME).read_text(encoding="utf-8"))
        if content["order"] != order:
            return made
        for number, raw in enumerate(content["shards"]):
            place = Place(**raw["done"].pop("place"))
            each = Made(shard=Shard(**raw["shard"]), done=Done(**raw["done"], place=place))
            path = output / shard_name(number)
            if each.shard.name != path.name or file_digest(path) != each.shard.sha256:
                break
            read_index(path.with_suffix(".idx"), tokens=each.shard.tokens)
            made.append(each)
    except (OSError, ValueError, KeyError, TypeError):
        return made
    return made


@contextmanager
def writing(output: Path) -> Iterator[None]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        yield
    except BrokenPipeError:
        raise  # whoever read the progress is gone: not about the output
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"cannot write to {output}: {reason}. Free space there or choose another --output."
        ) from error
