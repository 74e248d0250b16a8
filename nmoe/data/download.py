"""Files from the network: resumed where they were cut, whole and of the right hash or not there.

The project's only way out. Proxies come from the environment, as urllib reads them.
"""

import hashlib
import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin, urlsplit

from nmoe.data.manifest import DataError

TIMEOUT_S = 20.0
# Attempts in a row that bring nothing new.
MAX_ATTEMPTS = 3
MAX_PAUSE_S = 60.0
CHUNK_BYTES = 1 << 18
MAX_ANSWER_BYTES = 64 << 20
SHA256_DIGITS = 64

Steps = Generator[tuple[int, int]]


class DownloadError(DataError):
    """What could not be fetched and why, without the way out, which is the caller's to tell."""


class _Interrupted(Exception):
    """A connection that may be tried again."""


class _Unreachable(_Interrupted):
    """No connection at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The body of an answer, and the address of the page after it."""

    body: bytes
    next_url: str | None


def check_base_url(url: str) -> str:
    """The base URL without its last slash; DataError when it is none."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise DataError(f"got {url!r} as a mirror, expected http://… or https://….")
    return url.rstrip("/")


def get(url: str, *, pause_s: float = 1.0) -> Page:
    """A short answer; without a connection DownloadError at once, a busy server is asked again."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        try:
            with _open(url) as response:
                body = response.read(MAX_ANSWER_BYTES)
                links = re.findall(r'<([^>]+)>;\s*rel="next"', response.headers.get("Link", ""))
            return Page(body=body, next_url=urljoin(url, links[0]) if links else None)
        except _Unreachable as error:
            raise DownloadError(f"cannot reach {url}: {error}") from None
        except (_Interrupted, OSError, http.client.HTTPException) as error:
            if attempt == MAX_ATTEMPTS:
                raise DownloadError(f"cannot read {url}: {error}") from None
            time.sleep(pause_s * attempt)
    raise AssertionError("the last attempt returns or raises")


def download(
    url: str,
    path: Path,
    *,
    digest: str,
    max_bytes: int,
    is_patient: bool = False,
    pause_s: float = 1.0,
    pause: Callable[[float], object] = time.sleep,
) -> Steps:
    """Bring `url` to `path`, as (bytes done, in total); a .part file beside it waits for the rest.

    `digest` is a sha256, or what git calls a blob; `max_bytes` bounds what a server may send.
    Raises DownloadError that names the URL when there is no such file or another one, and when
    there is no connection: at once, or, for one file of a long preparation that `is_patient`, after
    some minutes. OSError when the disk refuses.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    max_attempts = 3 * MAX_ATTEMPTS if is_patient else MAX_ATTEMPTS
    attempts = 0
    has_begun = is_patient
    while True:
        before = _size(part)
        try:
            yield from _fetch(url, part, max_bytes=max_bytes)
            break
        except _Interrupted as error:
            has_begun = has_begun or not isinstance(error, _Unreachable)
            attempts = 1 if _size(part) > before else attempts + 1
            if attempts >= max_attempts or not has_begun:
                raise DownloadError(f"cannot download {url}: {error}") from None
            pause(min(pause_s * 2 ** (attempts - 1), MAX_PAUSE_S))
    found = content_digest(part, like=digest)
    if found != digest:
        part.unlink()
        kind = "sha256" if len(digest) == SHA256_DIGITS else "git blob"
        raise DownloadError(
            f"{url} is another file: got {kind} {found[:12]}…, expected {digest[:12]}…"
        )
    part.replace(path)


def content_digest(path: Path, *, like: str) -> str:
    """Digest of a file, of the kind of `like`: sha256, or the shorter name of a git blob."""
    with path.open("rb") as file:
        if len(like) == SHA256_DIGITS:
            return hashlib.file_digest(file, "sha256").hexdigest()
        blob = hashlib.sha1(b"blob %d\0" % _size(path), usedforsecurity=False)
        while chunk := file.read(CHUNK_BYTES):
            blob.update(chunk)
        return blob.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _open(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """The answer to a GET; DownloadError when asking again is of no use."""
    try:
        request = urllib.request.Request(url, headers=headers or {})
        # Not urlopen: it keeps the proxies of its first call.
        return urllib.request.build_opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        is_busy = error.code in (http.HTTPStatus.TOO_MANY_REQUESTS, http.HTTPStatus.REQUEST_TIMEOUT)
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR and not is_busy:
            reason = f"HTTP {error.code} {error.reason}"
            raise DownloadError(f"cannot download {url}: {reason}") from None
        raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Unreachable(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({error})") from None


def _fetch(url: str, part: Path, *, max_bytes: int) -> Steps:
    """One connection: the rest of the file, or all of it from a server that knows no ranges."""
    offset = _size(part)
    try:
        response = _open(url, {"Range": f"bytes={offset}-"} if offset else None)
    except urllib.error.HTTPError as error:
        if error.headers.get("Content-Range", "") == f"bytes */{offset}":
            yield offset, offset
            return  # the part is the whole file
        part.unlink(missing_ok=True)
        raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-"):
            part.unlink()
            raise _Interrupted("the server sent another range than asked for")
        rest = response.headers.get("Content-Length", "")
        total = offset + int(rest) if rest.isdigit() else None
        if total is not None and total > max_bytes:
            raise DownloadError(
                f"{url} is another file: got {total} bytes, expected at most {max_bytes}"
            )
        with part.open("ab" if offset else "wb") as file:
            yield from _copy(
                response, file, offset=offset, total=total, max_bytes=max_bytes, url=url
            )


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    *,
    offset: int,
    total: int | None,
    max_bytes: int,
    url: str,
) -> Steps:
    done = offset
    while True:
        try:
            chunk = response.read1(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the connection broke after {done} bytes ({error})") from None
        if not chunk:
            break
        file.write(chunk)
        done += len(chunk)
        if done > max_bytes:
            raise DownloadError(f"{url} is another file: got more than {max_bytes} bytes")
        if total is None or done < total:
            yield done, total or max_bytes
    if total is not None and done < total:
        raise _Interrupted(f"the connection broke after {done} of {total} bytes")
    yield done, done
