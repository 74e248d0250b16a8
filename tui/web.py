"""`python -m tui.web`: a run in a browser, to look at: the same screens, its state, its events.

Every browser gets a read-only app process of its own. The server listens on this machine alone
unless told otherwise; it reads the run's files and owns nothing.
"""

import argparse
import asyncio
import errno
import ipaddress
import shlex
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from harness import publish, runs
from harness.errors import HarnessError, MachineError
from harness.publish import EventStream
from harness.terminal import say
from nmoe.events import GpuEvent, encode
from nmoe.paths import DataRoot, RunFolder, data_root

HOST, PORT = "127.0.0.1", 8000
POLL_S = 0.5
COMMENT_S = 15.0  # between signs of life of a silent stream, so that nobody on the way hangs up
SHUTDOWN_S = 2.0
# Nothing of the page comes from elsewhere, and nothing of it goes elsewhere.
POLICY = (
    "default-src 'self' data: 'unsafe-inline'; connect-src 'self' ws://{0} wss://{0};"
    " frame-ancestors 'none'"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class VizServer(Server):
    """Serves one run: `/` its screens, `/state.json`, and `/events` as server-sent events."""

    def __init__(self, folder: RunFolder, *, host: str = HOST, port: int = PORT) -> None:
        app = [sys.executable, "-P", "-m", "tui", "attach", folder.run_id, "--readonly", "--web"]
        command = f"exec {shlex.join(app)}"
        super().__init__(  # pyright: ignore[reportUnknownMemberType]
            command, host=host, port=port, title=folder.run_id
        )
        self.folder = folder
        self._reader = runs.RunReader(folder)
        self._reading = asyncio.Lock()
        self._closing = asyncio.Event()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM; MachineError when the address cannot be had."""
        try:
            web.run_app(  # pyright: ignore[reportUnknownMemberType]
                self._make_app(),
                host=self.host,
                port=self.port,
                print=lambda *_: None,
                shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            raise _no_address(self.host, self.port, error) from None

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self._guard)
        app.add_routes(
            [
                web.get("/state.json", self.handle_state),
                web.get("/events", self.handle_events),
            ]
        )
        app.on_response_prepare.append(_add_headers)
        return app

    async def on_startup(self, app: web.Application) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        url = f"http://{host}:{self.port}"
        say(
            f"{self.folder.run_id} on {url}, to look at; ctrl-C ends it and no run",
            f"from elsewhere: ssh -L {self.port}:127.0.0.1:{self.port} this machine",
            f"for programs: {url}/state.json, {url}/events",
        )

    async def on_shutdown(self, app: web.Application) -> None:
        self._closing.set()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse pages of other sites that reach for this one through a reader's browser."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="this page may be read by itself alone\n")
        if is_local(self.host) and not is_local(urlsplit(f"//{request.host}").hostname or ""):
            raise web.HTTPForbidden(text="name this server 127.0.0.1 or localhost\n")
        return await handler(request)

    async def handle_index(self, request: web.Request) -> Any:
        # Behind a forwarded port the page is at another address than the one bound here.
        self.public_url = f"{request.scheme}://{request.host}"
        return await super().handle_index(request)

    async def handle_state(self, request: web.Request) -> web.Response:
        """What is known about the run now."""
        async with self._reading:
            try:
                text = await asyncio.to_thread(self._read_state)
            except HarnessError as error:
                raise web.HTTPServiceUnavailable(text=f"{error}\n") from None
        return web.Response(text=text, content_type="application/json")

    def _read_state(self) -> str:
        is_alive = runs.is_alive(self.folder)
        while self._reader.read():
            pass
        state, now = self._reader.state, time.time()
        status = runs.status(state, is_alive, now)
        return publish.state_json(state, status=status, is_alive=is_alive, now=now)

    async def handle_events(self, request: web.Request) -> web.StreamResponse:
        """Event lines as they stand in the files, from the start or after the last one received.

        GPU samples only with `?gpu=1`. The event `over` says that the run is not alive.
        """
        after = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        stream = EventStream(self.folder, after=after)
        with_gpus = request.query.get("gpu", "") not in ("", "0")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        was_alive, spoken = True, time.monotonic()
        while not self._closing.is_set():
            is_alive = runs.is_alive(self.folder)  # asked first: a dead run writes nothing more
            marked = await asyncio.to_thread(stream.read)
            lines = [
                f"id: {mark}\nevent: {record.event.kind}\ndata: {encode(record)}\n\n"
                for mark, record in marked
                if with_gpus or not isinstance(record.event, GpuEvent)
            ]
            if not marked and was_alive != is_alive:
                was_alive = is_alive
                lines += [] if is_alive else ["event: over\ndata: {}\n\n"]
            if not lines and time.monotonic() - spoken > COMMENT_S:
                lines.append(":\n\n")
            if lines:
                await response.write("".join(lines).encode())
                spoken = time.monotonic()
            if not marked:
                await self._pause()
        return response

    async def _pause(self) -> None:
        """Wait for more, but not through the end of the server."""
        try:
            await asyncio.wait_for(self._closing.wait(), POLL_S)
        except TimeoutError:
            return


def is_local(host: str) -> bool:
    """Whether a host name means this machine and nobody else can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until it is ended; the exit code."""
    parser = argparse.ArgumentParser(prog="n viz", description=__doc__)
    parser.add_argument("run", nargs="?", help="run id, or the beginning of it; default: newest")
    parser.add_argument("--host", default=HOST, help="address to listen on")
    parser.add_argument("--port", type=int, default=PORT)
    args = parser.parse_args(argv)
    try:
        folder = _choose(data_root(), args.run)
        if not is_local(args.host):
            say(
                f"warning: whoever reaches {args.host}:{args.port} sees this run:"
                " there is no password and no encryption"
            )
        VizServer(folder, host=args.host, port=args.port).run()
    except HarnessError as error:
        say(f"error: {error}")
        return error.exit_code
    return 0


def _choose(root: DataRoot, name: str | None) -> RunFolder:
    """The run that is named, else the newest that is alive, else the newest."""
    if name is None:
        alive = [row.run_id for row in runs.list_runs(root) if row.is_alive]
        name = alive[0] if alive else "last"
    return runs.find(root, name)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers["Content-Security-Policy"] = POLICY.format(request.host)


def _no_address(host: str, port: int, error: OSError) -> MachineError:
    what = f"cannot listen on {host}:{port}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        return MachineError(f"port {port} of {host} is in use", f"Try: n viz --port {port + 1}")
    return MachineError(what, "Name an address of this machine, and a port above 1023.")


if __name__ == "__main__":
    sys.exit(main())
