"""Zip and tar archives of strangers, unpacked so that nothing lands outside the folder named.

Refused: names that leave the folder, links and devices, names that come twice, encrypted entries,
and more files or bytes than the limits allow, counted as they are written.
"""

import errno
import gzip
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from harness.download import Progress
from harness.errors import DataError

CHUNK_BYTES = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")
# A tar carries half a kilobyte of header and padding an entry, and blocks of zeros at its end.
_TAR_OVERHEAD = 1 << 20
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, gzip.BadGzipFile, zlib.error),
    # What zipfile and tarfile let through of a header that makes no sense.
    *(EOFError, NotImplementedError, ValueError, IndexError, OverflowError, struct.error),
)
# Names too long or used as file and folder, offsets before the start: no fault of the disk.
_FROM_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may grow to; the ratio is unpacked to packed bytes, of the whole."""

    total_bytes: int = 1 << 30
    files: int = 2000
    ratio: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One file: its name as it stands in the archive, its bytes, how much was read before it."""

    name: str
    size: int
    stream: IO[bytes]
    position: int


def unpack(
    archive: Path, folder: Path, *, label: str, limits: Limits | None = None
) -> Generator[Progress]:
    """Unpack the files of a .zip, .tar, .tar.gz or .tar.xz into the new folder `folder`.

    Raises DataError for an archive that is broken or refused, OSError when the disk refuses; the
    folder then holds what was unpacked so far.
    """
    packed = archive.stat().st_size
    folder.mkdir(parents=True)
    with _faults_told(archive):
        for path, entry in _checked_entries(archive, limits or Limits()):
            _write(entry.stream, folder / path)
            yield Progress(label=label, done=min(entry.position, packed - 1), total=packed)
    yield Progress(label=label, done=packed, total=packed)


def unpacked_bytes(archive: Path, *, limits: Limits | None = None) -> int:
    """The bytes that `unpack` would write; raises DataError for what it would refuse by then."""
    with _faults_told(archive):
        return sum(entry.size for _, entry in _checked_entries(archive, limits or Limits()))


def _checked_entries(archive: Path, limits: Limits) -> Iterator[tuple[PurePosixPath, _Entry]]:
    """The files of an archive and where they belong; DataError for the first that is refused."""
    packed = archive.stat().st_size
    most = min(limits.total_bytes, limits.ratio * packed)
    names, total = set[str](), 0
    for entry in _entries(archive, most):
        path = _inside(archive, entry.name)
        total += entry.size
        if len(names) >= limits.files:
            raise _refusal(archive, f"got more than {limits.files} files")
        if total > most:
            raise _refusal(archive, f"got more than {most} bytes from {packed}")
        if str(path).casefold() in names:
            raise _refusal(archive, f"{entry.name!r} comes twice")
        names.add(str(path).casefold())
        yield path, entry


@contextmanager
def _faults_told(archive: Path) -> Generator[None]:
    """The errors of a broken archive as DataError; those of the disk pass."""
    try:
        yield
    except _BROKEN as error:
        raise DataError(f"{archive} is no whole zip or tar: {error}", "Fetch it again.") from None
    except OSError as error:
        if error.errno not in _FROM_NAMES:
            raise
        raise _refusal(archive, f"{error.strerror}, {error.filename}") from None


def _refusal(archive: Path, what: str) -> DataError:
    return DataError(f"{archive} is refused: {what}", "Use the official archive.")


def _inside(archive: Path, name: str) -> PurePosixPath:
    """The path of an entry below the folder; DataError for a name that means another place."""
    parts = name.split("/")
    is_outside = name.startswith("/") or ".." in parts or _DRIVE.match(name) or "\\" in name
    path = PurePosixPath(name)
    if is_outside or not path.parts or not name.isprintable():
        raise _refusal(archive, f"the name {name!r} is no path inside a folder")
    return path


def _write(stream: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        while chunk := stream.read(CHUNK_BYTES):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _entries(archive: Path, most: int) -> Iterator[_Entry]:
    """The files of an archive in its order; folders are made for the files they hold."""
    with archive.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        if start.startswith(b"PK"):
            yield from _zip_entries(archive, raw)
        elif start.startswith(b"\xfd7zXZ"):
            with lzma.open(raw) as plain:
                yield from _tar_entries(archive, raw, cast(BinaryIO, plain), most)
        elif start.startswith(b"\x1f\x8b"):
            with gzip.open(raw) as plain:
                yield from _tar_entries(archive, raw, cast(BinaryIO, plain), most)
        else:
            yield from _tar_entries(archive, raw, raw, most)


def _zip_entries(archive: Path, raw: BinaryIO) -> Iterator[_Entry]:
    with zipfile.ZipFile(raw) as opened:
        position = 0
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refusal(archive, f"{info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise _refusal(archive, f"{info.filename!r} is encrypted")
            _inside(archive, info.orig_filename)
            position += info.compress_size
            if not info.is_dir():
                # Reads no more than the size that the entry states, and checks its CRC.
                with opened.open(info) as stream:
                    yield _Entry(
                        name=info.orig_filename,
                        size=info.file_size,
                        stream=stream,
                        position=position,
                    )


def _tar_entries(archive: Path, raw: BinaryIO, plain: BinaryIO, most: int) -> Iterator[_Entry]:
    bounded = _Bounded(archive, plain, most + _TAR_OVERHEAD)
    with tarfile.open(fileobj=cast(IO[bytes], bounded), mode="r|") as opened:
        for member in opened:
            # An entry of several names holes as large as it likes: the bundle has none.
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise _refusal(archive, f"{member.name!r} is a link or a device")
            if member.isdir():
                if member.name.strip("./"):
                    _inside(archive, member.name)
                continue
            stream = opened.extractfile(member)
            assert stream is not None
            yield _Entry(name=member.name, size=member.size, stream=stream, position=raw.tell())


class _Bounded:
    """A stream that refuses to become longer than it may, headers and padding included."""

    def __init__(self, archive: Path, stream: BinaryIO, most: int) -> None:
        self._archive, self._stream, self._left = archive, stream, most
        self._most = most

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; DataError beyond the bound."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _refusal(self._archive, f"got more than {self._most} bytes")
        return data
