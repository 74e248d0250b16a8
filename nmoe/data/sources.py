"""Where documents come from: each source lists its input once and yields texts in a fixed order."""

import hashlib
import platform
import sysconfig
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nmoe.data import hub
from nmoe.data.documents import START, Document, Place, Source
from nmoe.data.files import FILES, READERS, FileSource, InputFile, files_from, files_until
from nmoe.data.manifest import DataError
from nmoe.data.stdlib import stdlib_files
from nmoe.paths import file_digest

REMOTE_SOURCES = ("hub_parquet", "hf")
SOURCES = ("stdlib", *READERS, FILES, *REMOTE_SOURCES)
ANY_PARQUET = "*.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class StdlibSource:
    """The `.py` files of the running Python's standard library, one document a file."""

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

    def documents(self, start: Place = START) -> Generator[Document]:
        position = 0
        for text in self.texts:
            position += len(text.encode())
            if position > start.position:
                yield Document(text=text, place=Place(position=position, row=1))

    def inputs(self, end: Place) -> dict[str, str]:
        return {}  # the facts name them all by one digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """What is asked of a source on a hub; `folder` is where its files wait to be read."""

    folder: Path
    mirror: str | None = None
    revision: str | None = None
    files: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    keeps_files: bool = False
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """The Parquet files of one commit of a hub dataset; asks the hub when its files are wanted."""

    name: str
    repo: hub.Repo
    revision: str
    remote: Remote
    text_key: str
    facts: dict[str, str]

    @classmethod
    def open(cls, name: str, *, text_key: str, remote: Remote) -> "HubSource":
        """A commit is taken as it is; another revision is looked up on the hub."""
        repo = hub.Repo.open(name, mirror=remote.mirror)
        is_commit = remote.revision and hub.COMMIT.fullmatch(remote.revision)
        facts = {"text_key": text_key, "files": " ".join(remote.files or (ANY_PARQUET,))}
        if remote.exclude:
            facts["exclude"] = " ".join(remote.exclude)
        return cls(
            name=f"hub_parquet:{name}",
            repo=repo,
            revision=str(remote.revision) if is_commit else repo.commit(remote.revision),
            remote=remote,
            text_key=text_key,
            facts=facts,
        )

    @cached_property
    def files(self) -> tuple[hub.HubFile, ...]:
        """The files in reading order, by path."""
        include = self.remote.files or (ANY_PARQUET,)
        listed = self.repo.files(self.revision)
        files = hub.chosen(listed, include=include, exclude=self.remote.exclude)
        if not files:
            raise DataError(
                f"no such files in {self.repo.page} at {self.revision[:12]}: got {len(listed)}"
                f" files, expected {' or '.join(include)}. Name others with --files."
            )
        return files

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)

    def documents(self, start: Place = START) -> Generator[Document]:
        left = files_from(self.files, start)
        before_of = {file.path: before for before, file in left}
        fetched = hub.fetch_ahead(
            self.repo,
            self.revision,
            [file for _, file in left],
            folder=self.remote.folder,
            keeps=self.remote.keeps_files,
        )
        with closing(fetched):
            for file, path in fetched:
                local = InputFile(path=path, kind="parquet", size=file.size, digest=file.digest)
                before = before_of[file.path]
                yield from local.documents(self.text_key, before=before, start=start)

    def inputs(self, end: Place) -> dict[str, str]:
        return {file.path: file.digest for file in files_until(self.files, end)}


@dataclass(frozen=True, kw_only=True)
class HfSource:
    """A dataset that Hugging Face `datasets` streams: of the hub, or a folder of files.

    Positions are bytes of text; how many there are only reading tells.
    """

    name: str
    revision: str
    facts: dict[str, str]
    path: str
    remote: Remote
    text_key: str
    total_bytes: None = None

    @classmethod
    def open(cls, path: str, *, text_key: str, remote: Remote) -> "HfSource":
        """Look up the revision: a commit of the hub, or the hash of a folder's files."""
        if Path(path).exists():
            name = Path(path).name
            inside = Path(path).rglob("*") if Path(path).is_dir() else [Path(path)]
            files = sorted(each for each in inside if each.is_file())
            listing = "".join(f"{each.relative_to(path)}\0{file_digest(each)}\n" for each in files)
            revision = f"sha256-{hashlib.sha256(listing.encode()).hexdigest()}"
        else:
            name = path
            is_commit = remote.revision and hub.COMMIT.fullmatch(remote.revision)
            repo = hub.Repo.open(path, mirror=remote.mirror)
            revision = str(remote.revision) if is_commit else repo.commit(remote.revision)
        facts = {"text_key": text_key, "split": remote.split}
        if remote.config:
            facts["config"] = remote.config
        return cls(
            name=f"hf:{name}",
            revision=revision,
            facts=facts,
            path=path,
            remote=remote,
            text_key=text_key,
        )

    def documents(self, start: Place = START) -> Generator[Document]:
        position, row = start.position, start.row
        for example in self._stream(start.row):
            text = example.get(self.text_key) or ""
            if not isinstance(text, str):
                raise DataError(
                    f"{self.name} has no text in {self.text_key!r}: got {type(text).__name__},"
                    " expected a string. Name the text's column with --text-key."
                )
            position += len(text.encode("utf-8", "replace"))
            row += 1
            yield Document(text=text, place=Place(position=position, row=row))

    def inputs(self, end: Place) -> dict[str, str]:
        return {}  # the library does not tell; the revision names them all

    def _stream(self, skipped: int) -> Iterator[dict[str, Any]]:
        is_local = Path(self.path).exists()
        hub.use_mirror(self.remote.mirror)
        import datasets  # noqa: PLC0415  0.7 s, with pandas
        from datasets.exceptions import DatasetsError  # noqa: PLC0415

        try:
            stream = datasets.load_dataset(
                self.path,
                name=self.remote.config,
                split=self.remote.split,
                revision=None if is_local else self.revision,
                streaming=True,
                cache_dir=str(self.remote.folder),
            )
            columns = stream.column_names
            if columns is not None and self.text_key not in columns:
                raise DataError(
                    f"{self.name} has no column {self.text_key!r}: got {', '.join(columns)}."
                    " Name the text's column with --text-key."
                )
            yield from stream.skip(skipped)
        except (OSError, ValueError, LookupError, DatasetsError) as error:
            if isinstance(error, DataError):
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(f"datasets cannot read {self.path}: {reason}.") from error


def open_source(
    kind: str, dataset: Sequence[str], *, text_key: str = "text", remote: Remote | None = None
) -> Source:
    """The source `kind` over `dataset`: `train` or `val` for stdlib, a name for hub_parquet and hf,
    which also need `remote`, paths for the others.
    """
    if kind in READERS or kind == FILES:
        return FileSource.open(kind, dataset, text_key=text_key)
    if kind not in SOURCES:
        raise DataError(f"unknown source: got {kind!r}, expected one of: {', '.join(SOURCES)}.")
    if len(dataset) != 1:
        expected = "one: train or val" if kind == "stdlib" else "one name"
        raise DataError(f"{kind}: got {len(dataset)} parts, expected {expected}.")
    if kind == "stdlib":
        return StdlibSource.open(dataset[0])
    if remote is None:
        raise DataError(f"{kind}: got no place for its files, expected a folder.")
    if kind == "hf":
        return HfSource.open(dataset[0], text_key=text_key, remote=remote)
    return HubSource.open(dataset[0], text_key=text_key, remote=remote)
