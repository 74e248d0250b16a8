"""Files from the network: resumed where they were cut, whole and of the right hash or not there.

The harness's only way out. Proxies come from the environment, as urllib reads them.
"""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from harness.errors import DataError

TIMEOUT_S = 30.0
# Attempts in a row that bring nothing new.
MAX_ATTEMPTS = 3
CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far one job is; `done` equals `total` when it is finished."""

    label: str
    done: int
    total: int
    unit: str = "bytes"


class _Interrupted(Exception):
    """A connection that may be tried again."""


def download(
    url: str, path: Path, *, sha256: str, max_bytes: int, label: str, pause_s: float = 1.0
) -> Generator[Progress]:
    """Bring `url` to `path`; what came before a cut waits in a .part file beside it.

    `max_bytes` bounds what a server may send. Raises DataError that names the URL when there is no
    network, no such file, or another file than `sha256`; OSError when the disk refuses.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    attempts = 0
    while True:
        before = _size(part)
        try:
            yield from _fetch(url, part, max_bytes=max_bytes, label=label)
            break
        except _Interrupted as error:
            attempts = 1 if _size(part) > before else attempts + 1
            if attempts >= MAX_ATTEMPTS:
                raise DataError(f"cannot download {url}: {error}", _elsewhere(path)) from None
            time.sleep(pause_s * attempts)
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise DataError(
            f"{url} is another file: got sha256 {found[:12]}…, expected {sha256[:12]}…",
            f"Try again, or another mirror. {_elsewhere(path)}",
        )
    part.replace(path)


def _elsewhere(path: Path) -> str:
    return f"Fetch it elsewhere and put it at {path}, or run: n prep eval --from FILE"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, *, max_bytes: int, label: str) -> Generator[Progress]:
    """One connection: the rest of the file, or all of it from a server that knows no ranges."""
    offset = _size(part)
    headers = {"Range": f"bytes={offset}-"} if offset else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        # Not urlopen: it keeps the proxies of its first call.
        response = urllib.request.build_opener().open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
            if error.headers.get("Content-Range", "") == f"bytes */{offset}":
                yield Progress(label=label, done=offset, total=offset)
                return  # the part is the whole file
            part.unlink()
        elif error.code < http.HTTPStatus.INTERNAL_SERVER_ERROR:
            reason = f"HTTP {error.code} {error.reason}"
            raise DataError(
                f"cannot download {url}: {reason}", _elsewhere(part.with_suffix(""))
            ) from None
        raise _Interrupted(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _Interrupted(f"no connection ({error.reason})") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({error})") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0
        elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {offset}-"):
            part.unlink()
            raise _Interrupted("the server sent another range than asked for")
        rest = response.headers.get("Content-Length", "")
        total = offset + int(rest) if rest.isdigit() else None
        if total is not None and total > max_bytes:
            raise DataError(
                f"{url} is another file: got {total} bytes, expected at most {max_bytes}",
                "Use another mirror.",
            )
        with part.open("ab" if offset else "wb") as file:
            yield from _copy(
                response,
                file,
                offset=offset,
                total=total,
                label=label,
                url=url,
                max_bytes=max_bytes,
            )


def _copy(
    response: http.client.HTTPResponse,
    file: BinaryIO,
    *,
    offset: int,
    total: int | None,
    max_bytes: int,
    label: str,
    url: str,
) -> Generator[Progress]:
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
            raise DataError(
                f"{url} is another file: got more than {max_bytes} bytes", "Use another mirror."
            )
        if total is None or done < total:
            yield Progress(label=label, done=done, total=total or max_bytes)
    if total is not None and done < total:
        raise _Interrupted(f"the connection broke after {done} of {total} bytes")
    yield Progress(label=label, done=done, total=done)
