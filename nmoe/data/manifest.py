"""manifest.json of a token dataset: what the folder holds, written last, checked before use.

Standard library only, so that everything around a run can read it without numpy.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nmoe.paths import file_digest, write_atomic

MANIFEST_NAME = "manifest.json"


class DataError(ValueError):
    """A dataset that cannot be made or used; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One `.npy` file of tokens; `bytes` and `sha256` are of the whole file."""

    name: str
    tokens: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A whole dataset: `text_bytes` is UTF-8 without EOS, `facts` says more about the source, and
    `inputs` names the files that were read with their digests.
    """

    name: str
    source: str
    revision: str
    tokenizer: str
    vocab_size: int
    eos_id: int
    total_tokens: int
    num_docs: int
    text_bytes: int
    shards: tuple[Shard, ...]
    facts: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Size of all shard files."""
        return sum(shard.bytes for shard in self.shards)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a dataset folder; DataError when it is missing or does not hold one."""
    path = folder / MANIFEST_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"no dataset in {folder}: {MANIFEST_NAME} is missing."
            f" Run: python -m nmoe.data.cli prep --output {folder} …"
        ) from None
    except (OSError, ValueError) as error:
        raise _broken(path, f"cannot be read: {error}") from None
    return _manifest(raw, path)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json whole or not at all; the last act of making a dataset."""
    text = json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / MANIFEST_NAME, text)


def digest(manifest: Manifest) -> str:
    """sha256 over the tokens and what they mean; the same data under another name is equal."""
    content = {
        "tokenizer": manifest.tokenizer,
        "vocab_size": manifest.vocab_size,
        "eos_id": manifest.eos_id,
        "shards": [[shard.tokens, shard.sha256] for shard in manifest.shards],
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def verify_sizes(folder: Path) -> Manifest:
    """Check that every shard is there with its size, without reading it; raises DataError."""
    manifest = read_manifest(folder)
    for shard in manifest.shards:
        path = folder / shard.name
        try:
            size = path.stat().st_size
        except OSError:
            raise DataError(f"shard is missing: {path}. Prepare the dataset again.") from None
        if size != shard.bytes:
            raise DataError(
                f"shard has another size: got {size} bytes in {path}, expected {shard.bytes}."
                " Prepare the dataset again."
            )
    return manifest


def verify(folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Check every shard against its hash; `progress` gets (bytes done, bytes in total).

    Raises DataError for the first shard that is missing or differs.
    """
    manifest = verify_sizes(folder)
    done = 0
    for shard in manifest.shards:
        path = folder / shard.name
        try:
            found = file_digest(path)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}.") from None
        if found != shard.sha256:
            raise DataError(
                f"shard is corrupt: got sha256 {found[:12]}… for {path},"
                f" expected {shard.sha256[:12]}…. Prepare the dataset again."
            )
        done += shard.bytes
        if progress:
            progress(done, manifest.total_bytes)
    return manifest


def tokenizer_id(name: str) -> str:
    """What a manifest calls the tokenizer that was named so: a file by its digest.

    A tokenizer of tiktoken is known by its name, for its ranks are pinned, wherever they lie.
    """
    kind = name.partition(":")[0]
    if not kind.endswith(".json"):
        return kind
    path = Path(kind).expanduser()
    try:
        return f"json:sha256-{file_digest(path)}"
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror}.") from None


def _manifest(raw: object, path: Path) -> Manifest:
    values = _checked(Manifest, raw, path)
    shards = tuple(Shard(**_checked(Shard, item, path)) for item in values.pop("shards"))
    manifest = Manifest(shards=shards, **values)
    for shard in shards:
        if Path(shard.name).name != shard.name or shard.tokens <= 0:
            raise _broken(path, f"unusable shard {shard.name!r} of {shard.tokens} tokens")
    if not shards or sum(shard.tokens for shard in shards) != manifest.total_tokens:
        raise _broken(path, f"the shards do not add up to {manifest.total_tokens} tokens")
    if not 0 <= manifest.eos_id < manifest.vocab_size:
        raise _broken(path, f"EOS {manifest.eos_id} in a vocabulary of {manifest.vocab_size}")
    return manifest


def _checked(cls: type, raw: object, path: Path) -> dict[str, Any]:
    """The fields of `cls` found in `raw`, each of the JSON type that its annotation asks for."""
    kinds = {int: int, str: str, dict[str, str]: dict, tuple[Shard, ...]: list}
    if not isinstance(raw, dict):
        raise _broken(path, f"got a {type(raw).__name__}, expected an object")
    values: dict[str, Any] = {}
    for item in fields(cls):
        value = raw.get(item.name, {} if item.name == "inputs" else None)
        kind = kinds[item.type]  # pyright: ignore[reportArgumentType]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise _broken(path, f"{item.name}: got {value!r}, expected {kind.__name__}")
        values[item.name] = value
    return values


def _broken(path: Path, problem: str) -> DataError:
    return DataError(f"broken manifest {path}: {problem}. Delete the folder and prepare it again.")
