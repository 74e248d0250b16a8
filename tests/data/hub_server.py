"""A hub on this machine: one dataset, its commits, files with ranges, and the GPT-2 ranks."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

PAGE_FILES = 2  # a page of the list; the hub's has a thousand


class Hub:
    """What it serves and how; `asked` collects (path, Range header) of every request."""

    def __init__(self, repo: str, files: dict[str, bytes]) -> None:
        self.repo, self.files = repo, files
        self.commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.others: dict[str, bytes] = {}  # by path
        self.small: set[str] = set()  # files without sha256, as git keeps them
        self.lost: set[str] = set()  # files that are listed, and not there
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.stalls_at = ""  # the file of which the first connection gets half, and waits
        self.is_stalled, self.may_go_on = threading.Event(), threading.Event()
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""

    @property
    def fetched(self) -> list[str]:
        """Names of the files that were asked for, in order."""
        return [path.rpartition("/")[2] for path, _ in self.asked if "/resolve/" in path]

    def answer(self, path: str, query: str) -> tuple[bytes, dict[str, str]] | None:
        api = f"/api/datasets/{self.repo}"
        if path in (f"{api}/revision/main", f"{api}/revision/{self.commit}"):
            return json.dumps({"id": self.repo, "sha": self.commit}).encode(), {}
        if path.startswith(f"{api}/tree/{self.commit}"):
            first = int(query.partition("cursor=")[2] or 0)
            inside = path.removeprefix(f"{api}/tree/{self.commit}").lstrip("/")
            rows = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": "data"}]
            rows += [self._row(name) for name in self.files]
            rows = [row for row in rows if inside in ("", str(row["path"]).rpartition("/")[0])]
            last = first + PAGE_FILES
            more = f'<{self.url}{path}?recursive=true&cursor={last}>; rel="next"'
            return json.dumps(rows[first:last]).encode(), {"Link": more} if rows[last:] else {}
        name = path.removeprefix(f"/datasets/{self.repo}/resolve/{self.commit}/")
        content = None if name in self.lost else self.files.get(name, self.others.get(path))
        return None if content is None else (content, {})

    def _row(self, name: str) -> dict[str, object]:
        content = self.files[name]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        row = {"type": "file", "path": name, "size": len(content), "oid": oid}
        if name in self.small:
            return row
        sha256 = hashlib.sha256(content).hexdigest()
        return row | {"lfs": {"oid": sha256, "size": len(content), "pointerSize": 134}}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            hub.asked.append((self.path, wanted))
            url = urlsplit(self.path)
            answer = hub.answer(unquote(url.path), url.query)
            if answer is None:
                self.send_error(404)
                return
            content, headers = answer
            first, _, last = (wanted or "").removeprefix("bytes=").partition("-")
            start, stop = int(first or 0), int(last or len(content) - 1) + 1
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.send_header("Content-Length", str(stop - start))
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            is_cut = hub.cuts and "/resolve/" in self.path
            end = start + hub.cuts.pop(0) if is_cut else stop
            with suppress(OSError):  # a client may have seen enough
                if self.path.endswith(hub.stalls_at or "\0") and not hub.is_stalled.is_set():
                    self.wfile.write(content[start : end // 2])
                    self.wfile.flush()
                    hub.is_stalled.set()
                    hub.may_go_on.wait()
                    return
                self.wfile.write(content[start:end])

        def do_HEAD(self) -> None:
            """What the hub's own library asks of a file before it reads it."""
            hub.asked.append((self.path, "HEAD"))
            answer = hub.answer(unquote(urlsplit(self.path).path), "")
            self.send_response(200 if answer else 404)
            if answer:
                self.send_header("Content-Length", str(len(answer[0])))
                self.send_header("ETag", f'"{hashlib.sha256(answer[0]).hexdigest()}"')
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", hub.commit)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.may_go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
