"""Where documents come from: each source lists its input once and yields texts in a fixed order."""

import hashlib
import json
import platform
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nmoe.data.manifest import DataError
from nmoe.paths import file_digest

if TYPE_CHECKING:
    import pyarrow.parquet

# Tests and fixtures, and what distributors split off, patch or leave out; `encodings` and
# `pydoc_data` are generated tables.
STDLIB_EXCLUDED = frozenset(
    {
        "__pycache__",
        "_distutils_system_mod.py",
        "dist-packages",
        "distutils",
        "encodings",
        "ensurepip",
        "idlelib",
        "lib2to3",
        "macholib",
        "pydoc_data",
        "site-packages",
        "site.py",
        "sitecustomize.py",
        "sysconfig.py",
        "test",
        "tests",
        "tkinter",
        "turtle.py",
        "turtledemo",
        "venv",
    }
)
STDLIB_EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")  # differ from build to build
VALIDATION_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text, and how many input bytes have been read when it is done."""

    text: str
    position: int


class Source(Protocol):
    """An ordered set of documents; `revision` changes whenever a document does."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def facts(self) -> dict[str, str]: ...
    @property
    def total_bytes(self) -> int: ...

    def documents(self) -> Iterator[Document]:
        """All documents from the first on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StdlibSource:
    """The `.py` files of the running Python's standard library, one document a file.

    A file's place is the hash of its path: files below VALIDATION_SHARE are `val`, the others
    `train`. Both are read in the order of the hashes, so that the start is a fair sample.
    """

    name: str
    texts: tuple[str, ...]
    revision: str
    facts: dict[str, str]
    total_bytes: int

    @classmethod
    def open(cls, split: str, *, root: Path | None = None) -> "StdlibSource":
        """List and read the files of `split`; files that are not UTF-8, or empty, are left out."""
        if split not in ("train", "val"):
            raise DataError(f"stdlib has no part {split!r}: expected train or val.")
        root = root or Path(sysconfig.get_path("stdlib"))
        texts: list[str] = []
        listing = hashlib.sha256()
        for path in stdlib_files(root, split):
            content = (root / path).read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                continue
            if text:
                texts.append(text)
                listing.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        if not texts:
            raise DataError(
                f"no .py files in {root}: the standard library's sources are not installed."
                " Use a Python that carries them."
            )
        version = platform.python_version()
        return cls(
            name=f"stdlib:{split}",
            texts=tuple(texts),
            revision=f"python-{version}",
            facts={"python": version, "files_sha256": listing.hexdigest()},
            total_bytes=sum(len(text.encode()) for text in texts),
        )

    def documents(self) -> Iterator[Document]:
        position = 0
        for text in self.texts:
            position += len(text.encode())
            yield Document(text=text, position=position)


def stdlib_files(root: Path, split: str) -> list[str]:
    """Relative paths of the split's files, in reading order."""
    chosen: list[tuple[float, str]] = []
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        is_build_specific = relative.parts[0].startswith(STDLIB_EXCLUDED_PREFIXES)
        if is_build_specific or path.is_symlink() or STDLIB_EXCLUDED & set(relative.parts):
            continue
        name = relative.as_posix()
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        if (place < VALIDATION_SHARE) == (split == "val"):
            chosen.append((place, name))
    return [name for _, name in sorted(chosen)]


Reader = Callable[[Path, str], Iterator[tuple[str, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Local files in turn; `reader` yields (text, bytes of the file read so far)."""

    name: str
    files: tuple[Path, ...]
    reader: Reader
    text_key: str
    revision: str
    total_bytes: int
    facts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, kind: str, paths: Sequence[str], *, text_key: str) -> "FileSource":
        """Find and hash the files: each path is a file, or a folder searched for `*.<kind>`."""
        reader, suffix = READERS[kind]
        files: list[Path] = []
        for path in map(Path, paths):
            found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
            if not found or not all(file.is_file() for file in found):
                raise DataError(f"no input: got {path}, expected a file or a folder of *{suffix}.")
            files += found
        revision = hashlib.sha256()
        try:
            for file in files:
                revision.update(f"{file.name}\0{file_digest(file)}\n".encode())
            total_bytes = sum(file.stat().st_size for file in files)
        except OSError as error:
            raise DataError(f"cannot read {error.filename}: {error.strerror}.") from None
        return cls(
            name=f"{kind}:{','.join(Path(path).name for path in paths)}",
            files=tuple(files),
            reader=reader,
            text_key=text_key,
            revision=f"sha256-{revision.hexdigest()}",
            total_bytes=total_bytes,
            facts={"text_key": text_key},
        )

    def documents(self) -> Iterator[Document]:
        before = 0
        for file in self.files:
            try:
                for text, position in self.reader(file, self.text_key):
                    yield Document(text=text, position=before + position)
                before += file.stat().st_size
            except OSError as error:
                raise DataError(f"cannot read {file}: {error.strerror}.") from None


def open_source(kind: str, dataset: Sequence[str], *, text_key: str = "text") -> Source:
    """The source `kind` over `dataset`: `train` or `val` for stdlib, paths for the others."""
    if kind == "stdlib":
        if len(dataset) != 1:
            raise DataError(f"stdlib: got {len(dataset)} parts, expected one: train or val.")
        return StdlibSource.open(dataset[0])
    if kind in READERS:
        return FileSource.open(kind, dataset, text_key=text_key)
    raise DataError(f"unknown source: got {kind!r}, expected one of: {', '.join(SOURCES)}.")


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
        # Bytes of text tell better than rows how much is left: a book is a row, too.
        total = _column_bytes(table.metadata, text_key)
        rows, done = table.metadata.num_rows, 0
        for batch in table.iter_batches(batch_size=256, columns=[text_key]):
            for text in batch.column(0).to_pylist():
                done += len((text or "").encode())
                rows -= 1
                yield text or "", min(size, size * done // max(total, 1)) if rows else size
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"cannot read {path} as parquet: {error}.") from None


def _column_bytes(metadata: "pyarrow.parquet.FileMetaData", name: str) -> int:
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(each.total_uncompressed_size for each in columns if each.path_in_schema == name)


READERS: dict[str, tuple[Reader, str]] = {
    "text": (_read_text, ".txt"),
    "jsonl": (_read_jsonl, ".jsonl"),
    "parquet": (_read_parquet, ".parquet"),
}
SOURCES = ("stdlib", *READERS)
