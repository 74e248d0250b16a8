"""Documents of local files: text, JSON lines and Parquet, read one document at a time."""

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from nmoe.data.documents import START, Document, Place
from nmoe.data.manifest import DataError
from nmoe.paths import file_digest

if TYPE_CHECKING:
    import pyarrow.parquet

NAMED_FILES = 8  # a source of more is named by its first and last
FILES = "files"  # every kind, each file by its suffix


class Sized(Protocol):
    """Anything of so many bytes."""

    @property
    def size(self) -> int: ...


File = TypeVar("File", bound=Sized)
Reader = Callable[[Path, str], Iterator[tuple[str, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file on this machine that is read as `kind`."""

    path: Path
    kind: str
    size: int
    digest: str

    def documents(self, text_key: str, *, before: int, start: Place) -> Iterator[Document]:
        """Its documents behind `start`; `before` is the size of all files before it."""
        rows = READERS[self.kind](self.path, text_key)
        skipped = start.row if start.position > before else 0
        try:
            for row, (text, position) in enumerate(islice(rows, skipped, None), skipped + 1):
                yield Document(text=text, place=Place(position=before + position, row=row))
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Local files in turn."""

    name: str
    files: tuple[InputFile, ...]
    text_key: str
    revision: str
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, kind: str, paths: Sequence[str | Path], *, text_key: str) -> "FileSource":
        """Find and hash the files: each path is a file, or a folder searched for such files.

        The kind `files` takes every kind, each file by its suffix.
        """
        try:
            files = [
                InputFile(
                    path=path,
                    kind=_kind(path) if kind == FILES else kind,
                    size=path.stat().st_size,
                    digest=file_digest(path),
                )
                for path in find_files(kind, paths)
            ]
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}.") from None
        listing = "".join(f"{file.path.name}\0{file.digest}\n" for file in files)
        names = [Path(path).name for path in paths]
        label = ",".join(names) if len(names) <= NAMED_FILES else f"{names[0]}…{names[-1]}"
        return cls(
            name=f"{kind}:{label}",
            files=tuple(files),
            text_key=text_key,
            revision=f"sha256-{hashlib.sha256(listing.encode()).hexdigest()}",
            facts={"text_key": text_key},
        )

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def documents(self, start: Place = START) -> Generator[Document]:
        for before, file in files_from(self.files, start):
            yield from file.documents(self.text_key, before=before, start=start)

    def inputs(self, end: Place) -> dict[str, str]:
        return {str(file.path): file.digest for file in files_until(self.files, end)}


def find_files(kind: str, paths: Sequence[str | Path]) -> list[Path]:
    """The files that `paths` mean, those of a folder in name order; DataError without any."""
    suffixes = tuple(SUFFIXES if kind == FILES else [READ_SUFFIX[kind]])
    files: list[Path] = []
    for path in map(Path, paths):
        is_folder = path.is_dir()
        inside = sorted(path.rglob("*")) if is_folder else [path]
        found = [each for each in inside if not is_folder or each.suffix in suffixes]
        if not found or not all(file.is_file() for file in found):
            wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
            raise DataError(f"no input: got {path}, expected a file or a folder of {wanted}.")
        files += found
    return files


def _kind(path: Path) -> str:
    kind = SUFFIXES.get(path.suffix)
    if kind is None:
        known = ", ".join(SUFFIXES)
        raise DataError(f"unknown kind of file: got {path}, expected one that ends in {known}.")
    return kind


def files_from(files: Sequence[File], start: Place) -> list[tuple[int, File]]:
    """The files that are not behind `start`, each with the size of all before it."""
    ends = list(accumulate((file.size for file in files), initial=0))
    places = zip(ends[:-1], ends[1:], files, strict=True)
    return [
        (before, file)
        for before, after, file in places
        if after > start.position or before >= start.position
    ]


def files_until(files: Sequence[File], end: Place) -> list[File]:
    """The files that begin before `end`."""
    ends = accumulate((file.size for file in files), initial=0)
    return [file for before, file in zip(ends, files, strict=False) if before < end.position]


def _read_text(path: Path, _text_key: str) -> Iterator[tuple[str, int]]:
    content = path.read_bytes()
    try:
        yield content.decode("utf-8"), len(content)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}. Convert it first.") from None


def _read_jsonl(path: Path, text_key: str) -> Iterator[tuple[str, int]]:
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            position += len(line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}:{number} is not JSON: {error}.") from None
            text = row.get(text_key) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise DataError(
                    f"{path}:{number} has no text: got {type(text).__name__} for {text_key!r},"
                    " expected a string. Name the field with --text-key."
                )
            yield text, position


def _read_parquet(path: Path, text_key: str) -> Iterator[tuple[str, int]]:
    import pyarrow  # noqa: PLC0415  only this source needs it, and it takes 0.2 s
    import pyarrow.parquet  # noqa: PLC0415

    size = path.stat().st_size
    try:
        table = pyarrow.parquet.ParquetFile(path)
        columns = table.schema_arrow.names
        if text_key not in columns:
            raise DataError(
                f"{path} has no column {text_key!r}: got {', '.join(columns)}."
                " Name the text's column with --text-key."
            )
        # Bytes of text tell better than rows how much is left: a book is a row, too. Only the
        # last row stands at the end of the file, and none before its first byte.
        total = _column_bytes(table.metadata, text_key)
        rows, done = table.metadata.num_rows, 0
        for batch in table.iter_batches(batch_size=256, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                done += len((text or "").encode())
                rows -= 1
                yield (
                    text or "",
                    max(1, min(size - 1, size * done // max(total, 1))) if rows else size,
                )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as parquet: {error}.") from None


def _column_bytes(metadata: "pyarrow.parquet.FileMetaData", name: str) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == name)


READERS: dict[str, Reader] = {"text": _read_text, "jsonl": _read_jsonl, "parquet": _read_parquet}
READ_SUFFIX = {"text": ".txt", "jsonl": ".jsonl", "parquet": ".parquet"}
SUFFIXES = {suffix: kind for kind, suffix in READ_SUFFIX.items()}
