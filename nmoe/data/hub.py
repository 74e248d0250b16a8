"""A dataset repository of the Hugging Face hub by plain HTTP: its revision, files and downloads.

Three addresses below one base URL, which mirrors offer too: `/api/datasets/REPO/revision/NAME`,
`/api/datasets/REPO/tree/COMMIT?recursive=true` and `/datasets/REPO/resolve/COMMIT/FILE`.
"""

import fnmatch
import json
import os
import queue
import re
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nmoe.data.download import (
    DownloadError,
    check_base_url,
    content_digest,
    download,
    get,
)
from nmoe.data.manifest import DataError

OFFICIAL_URL = "https://huggingface.co"
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# How long a download may take to notice that nobody waits for it; a dead connection takes longer.
END_S = 1.0
PAUSE_S = 1.0  # doubled with every attempt that brings nothing
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """One file of a commit; `digest` is its sha256, or git's name of it when it is small."""

    path: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Repo:
    """A dataset repository below a base URL."""

    name: str
    base_url: str

    @classmethod
    def open(cls, name: str, *, mirror: str | None = None) -> "Repo":
        """`mirror`, else the variable HF_ENDPOINT, stands in for the hub; nothing is asked yet."""
        if not REPO_NAME.fullmatch(name):
            raise DataError(f"bad name of a hub dataset: got {name!r}, expected OWNER/NAME.")
        named = os.environ.get("HF_ENDPOINT") or OFFICIAL_URL if mirror is None else mirror
        return cls(name=name, base_url=check_base_url(named))

    @property
    def page(self) -> str:
        """Where people find the files."""
        return f"{OFFICIAL_URL}/datasets/{self.name}"

    def commit(self, revision: str | None) -> str:
        """The commit that a branch, tag or commit means (None: the branch `main`)."""
        answer = self._ask(f"{self._api}/revision/{quote(revision or 'main', safe='')}")
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise DataError(f"{self._api}: got no commit, expected a dataset of the hub.")
        return commit

    def files(self, commit: str) -> tuple[HubFile, ...]:
        """All files of a commit by path."""
        url: str | None = f"{self._api}/tree/{commit}?recursive=true&expand=false"
        rows: list[Any] = []
        while url:
            page = get(url)
            rows += _json(page.body, url)
            url = page.next_url
        try:
            files = [_file(row) for row in rows if row["type"] == "file"]
        except (LookupError, TypeError, ValueError):
            raise DataError(f"{self._api}/tree/{commit}: got no list of files.") from None
        return tuple(sorted(files, key=lambda file: file.path))

    def url(self, commit: str, path: str) -> str:
        """The address of one file."""
        return f"{self.base_url}/datasets/{self.name}/resolve/{commit}/{quote(path)}"

    @property
    def _api(self) -> str:
        return f"{self.base_url}/api/datasets/{self.name}"

    def _ask(self, url: str) -> Any:
        return _json(get(url).body, url)


def use_mirror(url: str | None) -> None:
    """Let libraries of the hub, which read HF_ENDPOINT when they are imported, use this mirror."""
    if url is not None:
        os.environ["HF_ENDPOINT"] = check_base_url(url)


def chosen(
    files: Sequence[HubFile], *, include: Sequence[str], exclude: Sequence[str]
) -> tuple[HubFile, ...]:
    """The files whose path fits a pattern of `include` and none of `exclude`, in order."""
    return tuple(
        file
        for file in files
        if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in include)
        and not any(fnmatch.fnmatchcase(file.path, pattern) for pattern in exclude)
    )


def fetch_ahead(
    repo: Repo, commit: str, files: Sequence[HubFile], *, folder: Path, keeps: bool
) -> Generator[tuple[HubFile, Path]]:
    """Each file in turn in `folder`, while the one after it is on its way.

    What has been read is removed unless `keeps`: two files lie there at most. What is there
    already, whole or in part, is not fetched again. Raises DataError.
    """
    ready: queue.Queue[Path | DataError | OSError] = queue.Queue(maxsize=1)
    may_go_on, is_over = threading.Semaphore(2), threading.Event()

    def fetch() -> None:
        for file in files:
            may_go_on.acquire()
            try:
                found = _fetch(repo, commit, file, folder=folder, is_over=is_over)
            except (DataError, OSError) as error:
                found = error
            if is_over.is_set():
                return
            ready.put(found)

    # A daemon: the parts it leaves are gone on with, whenever it ends.
    thread = threading.Thread(target=fetch, name="fetch", daemon=True)
    thread.start()
    try:
        for file in files:
            found = ready.get()
            if not isinstance(found, Path):
                raise found
            yield file, found
            if not keeps:
                found.unlink(missing_ok=True)
            may_go_on.release()
    finally:
        is_over.set()
        may_go_on.release(2)
        with suppress(queue.Empty):
            ready.get_nowait()
        thread.join(END_S)


def _fetch(
    repo: Repo, commit: str, file: HubFile, *, folder: Path, is_over: threading.Event
) -> Path:
    path = folder / file.path
    is_there = path.is_file() and path.stat().st_size == file.size
    if is_there and content_digest(path, like=file.digest) == file.digest:
        return path
    url = repo.url(commit, file.path)
    steps = download(
        url,
        path,
        digest=file.digest,
        max_bytes=file.size,
        is_patient=True,
        pause_s=PAUSE_S,
        pause=is_over.wait,
    )
    with closing(steps):
        for _ in steps:
            if is_over.is_set():
                return path
    return path


def _file(row: dict[str, Any]) -> HubFile:
    path = str(row["path"])
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(path)
    large: dict[str, Any] | None = row.get("lfs")
    digest = str(large["oid"] if large else row["oid"])
    return HubFile(path=path, size=int(row["size"]), digest=digest)


def _json(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise DownloadError(f"{url}: got no JSON ({error}), expected a hub's answer") from None
