"""A document, the place behind it, and what every source of documents can do."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Between two documents: input bytes read so far, and documents read of the last file."""

    position: int = 0
    row: int = 0


START = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text, and the place behind it."""

    text: str
    place: Place


class Source(Protocol):
    """An ordered set of documents; `revision` changes whenever a document does."""

    @property
    def name(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def facts(self) -> dict[str, str]: ...
    @property
    def total_bytes(self) -> int | None:
        """The position behind the last document; None when only reading can tell."""
        ...

    def documents(self, start: Place = START) -> Generator[Document]:
        """All documents behind `start`, which is the place of an earlier one."""
        ...

    def inputs(self, end: Place) -> dict[str, str]:
        """The files that were read up to `end`, each with its digest."""
        ...
