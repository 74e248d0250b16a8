"""A web server on this machine that sends one file, well or badly."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """What it sends and how; `asked` collects (path, Range header) of every request."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.has_ranges = True
        self.cuts: list[int] = []  # bytes after which the next connections break
        self.extra_length = 0  # added to Content-Length
        self.status: int | None = None
        self.asked: list[tuple[str, str | None]] = []
        self.url = ""


@contextmanager
def serve(data: bytes) -> Iterator[FileServer]:
    """Serve `data` under any path until the block ends."""
    told = FileServer(data)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            told.asked.append((self.path, wanted))
            if told.status is not None:
                self.send_error(told.status)
                return
            start = int(wanted[6:-1]) if wanted and told.has_ranges else 0
            if start and start >= len(told.data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(told.data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            rest = told.data[start:]
            self.send_response(206 if start else 200)
            if start:
                last = len(told.data) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(told.data)}")
            self.send_header("Content-Length", str(len(rest) + told.extra_length))
            self.end_headers()
            with suppress(OSError):  # a client may have seen enough
                self.wfile.write(rest[: told.cuts.pop(0)] if told.cuts else rest)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
