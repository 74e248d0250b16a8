"""`n viz`: a real server, HTTP, server-sent events, the websocket of the page, a real browser."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest

from harness import publish, runs
from harness.launch import free_port
from harness.publish import EventStream
from nmoe.events import GpuEvent, encode
from tests.browser import Browser
from tests.conftest import REPO_ROOT
from tests.tui import recordings as rec
from tests.tui.screen import held
from tui import web

PATIENCE_S = 30.0


class Viz:
    """`n viz` as a process of its own."""

    def __init__(self, data_dir, *args):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.cli", "viz", *args, "--port", str(self.port)],
            cwd=REPO_ROOT,
            env=os.environ | {"DATA_DIR": str(data_dir)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def ready(self, session):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                async with session.get(f"{self.url}/state.json"):
                    return
            except aiohttp.ClientConnectionError:
                assert self.process.poll() is None, self.process.stderr.read()
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)

    def apps(self):
        """Process ids of the apps that the server has started."""
        pid = self.process.pid
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def viz(data_dir):
    opened = []

    def start(*args):
        opened.append(Viz(data_dir, *args))
        return opened[-1]

    yield start
    for each in opened:
        each.end()


def talk(server, steps):
    """Run `steps(session)` against a server that answers."""

    async def go():
        timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await server.ready(session)
            return await steps(session)

    return asyncio.run(go())


async def events(response, until):
    """Server-sent events as (id, event, data) until one has that name."""
    seen, entry = [], {}
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line:
            name, _, value = line.partition(": ")
            entry[name] = value
            continue
        if "event" in entry:
            seen.append((entry.get("id"), entry["event"], entry.get("data")))
            if entry["event"] == until:
                return seen
        entry = {}
    return seen


@pytest.fixture
def run(data_dir):
    return rec.done(rec.data_root(data_dir))


def until_gone(pid):
    deadline = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.1)


async def open_screen(server, session, *, wanted, keys=""):
    """The websocket of the page, once the app has drawn what is wanted."""
    socket = await session.ws_connect(f"{server.url}/ws?width=80&height=24")
    output = b""
    while wanted.encode() not in output:
        message = await socket.receive()
        assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), output[-2000:]
        if message.type == aiohttp.WSMsgType.BINARY:
            output += message.data
    for key in keys:
        await socket.send_json(["stdin", key])
    return socket, output


def test_state_is_that_of_the_files(viz, run):
    async def steps(session):
        async with session.get(f"{server.url}/state.json") as response:
            assert response.content_type == "application/json"
            return await response.json()

    server = viz(run.run_id)
    seen, state = talk(server, steps), runs.load(run)
    assert (seen["run_id"], seen["status"], seen["is_alive"]) == (run.run_id, "done", False)
    assert (seen["step"], seen["best_val"]) == (state.step, state.best_val)
    assert seen["result"]["core"] == state.result.core
    assert seen["losses"]["loss"] == list(state.losses.values)
    assert seen["plan"]["preset"] == "pocket"


def test_events_are_the_lines_of_the_files_and_go_on_after_a_mark(viz, run):
    async def steps(session):
        async with session.get(f"{server.url}/events") as response:
            assert response.content_type == "text/event-stream"
            whole = await events(response, "over")
        middle = whole[300][0]
        headers = {"Last-Event-ID": middle}
        async with session.get(f"{server.url}/events", headers=headers) as response:
            return whole, await events(response, "over")

    server = viz()
    whole, rest = talk(server, steps)
    lines = {line for path in (run.train, run.supervisor) for line in path.open()}
    assert {data + "\n" for _, name, data in whole if name != "over"} == lines
    assert len(whole) == len(lines) + 1
    assert rest == whole[301:]


def test_events_of_a_living_run_arrive_as_they_are_written(viz, data_dir):
    recording = rec.training(rec.data_root(data_dir), stop=100)
    recording.gpus(GpuEvent(index=0, util=50))

    async def steps(session):
        async with session.get(f"{server.url}/events?gpu=1") as response:
            first = await events(response, "gpu")
            recording.train(rec.val_event(200))
            return first, await events(response, "val")

    with held(recording.folder):
        server = viz()
        first, then = talk(server, steps)
    assert json.loads(first[-1][2])["util"] == 50
    assert [name for _, name, _ in then] == ["val"]


def test_screens_are_those_of_the_terminal_and_can_stop_nothing(viz, data_dir):
    folder = rec.training(rec.data_root(data_dir)).folder

    async def steps(session):
        socket, output = await open_screen(server, session, wanted="1,500", keys="S")
        await socket.send_json(["stdin", "0"])
        while b"only looks" not in output:
            await socket.send_json(["stdin", "\r"])
            message = await socket.receive(timeout=PATIENCE_S)
            output += message.data if message.type == aiohttp.WSMsgType.BINARY else b""
        await socket.close()

    with held(folder):
        before = sorted(path.name for path in folder.root.parent.iterdir())
        server = viz(folder.run_id)
        talk(server, steps)
        assert not folder.stop_request.exists()
    assert sorted(path.name for path in folder.root.parent.iterdir()) == before
    server.end()


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "127.0.0.1.evil.example:80"},
    ],
)
def test_pages_of_other_sites_are_refused(viz, run, headers):
    async def steps(session):
        codes = []
        for path in ("/", "/ws", "/state.json", "/events"):
            async with session.get(server.url + path, headers=headers) as response:
                codes.append(response.status)
        return codes

    server = viz()
    assert talk(server, steps) == [403] * 4
    assert server.apps() == []


def test_page_names_the_address_it_was_asked_at_and_loads_nothing_from_elsewhere(viz, run):
    async def steps(session):
        headers = {"Host": "localhost:9999"}  # as behind `ssh -L 9999:127.0.0.1:8000`
        async with session.get(f"{server.url}/", headers=headers) as response:
            return await response.text(), response.headers["Content-Security-Policy"]

    server = viz()
    page, policy = talk(server, steps)
    assert "ws://localhost:9999/ws" in page
    assert f":{server.port}" not in page
    assert policy.startswith("default-src 'self' data: 'unsafe-inline';")
    assert "https:" not in policy


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_apps_end_with_the_server(viz, run, number):
    async def steps(session):
        await open_screen(server, session, wanted="DONE")
        (app,) = server.apps()
        server.process.send_signal(number)
        return app

    server = viz()
    app = talk(server, steps)
    server.process.wait(PATIENCE_S)
    until_gone(app)


def test_app_ends_with_its_page(viz, run):
    async def steps(session):
        socket, _ = await open_screen(server, session, wanted="DONE")
        (app,) = server.apps()
        await socket.close()
        await asyncio.to_thread(until_gone, app)

    server = viz()
    talk(server, steps)


def test_server_ends_at_once_while_somebody_listens(viz, run):
    async def steps(session):
        async with session.get(f"{server.url}/events") as response:
            await events(response, "over")
            server.process.send_signal(signal.SIGINT)
            await asyncio.to_thread(server.process.wait, PATIENCE_S)

    server = viz()
    talk(server, steps)
    assert server.process.returncode == 0
    assert "Traceback" not in server.process.stderr.read()


def test_other_addresses_are_warned_of(viz, run):
    server = viz("--host", "0.0.0.0")
    talk(server, lambda session: asyncio.sleep(0))
    server.process.send_signal(signal.SIGINT)
    said = server.process.communicate(timeout=PATIENCE_S)[1]
    assert f"warning: whoever reaches 0.0.0.0:{server.port} sees this run" in said


def test_own_address_is_not_warned_of_and_the_way_from_elsewhere_is_said(viz, run):
    server = viz()
    talk(server, lambda session: asyncio.sleep(0))
    server.process.send_signal(signal.SIGINT)
    said = server.process.communicate(timeout=PATIENCE_S)[1]
    assert "warning" not in said
    assert f"ssh -L {server.port}:127.0.0.1:{server.port}" in said


def test_port_in_use_is_refused_with_another(viz, run):
    first = viz()
    talk(first, lambda session: asyncio.sleep(0))
    second = subprocess.run(
        [sys.executable, "-P", "-m", "harness.cli", "viz", "--port", str(first.port)],
        cwd=REPO_ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert second.returncode == 3
    assert f"Try: n viz --port {first.port + 1}" in second.stderr


def test_no_runs_is_refused(data_dir, capsys):
    assert web.main([]) != 0
    assert "no runs in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("10.0.0.7", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_local_addresses_are_those_of_this_machine_alone(host, expected):
    assert web.is_local(host) is expected


def test_state_is_strict_json_when_losses_are_not_finite(data_dir):
    state = runs.load(rec.diverged(rec.data_root(data_dir)))
    text = publish.state_json(state, status="diverged", is_alive=False, now=1.0)
    seen = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert seen["loss"] is None
    assert seen["losses"]["loss"][-1] is None


def test_curves_are_thinned_and_keep_their_last_point(data_dir, monkeypatch):
    monkeypatch.setattr(publish, "MAX_POINTS", 50)
    state = runs.load(rec.training(rec.data_root(data_dir)).folder)
    seen = json.loads(publish.state_json(state, status="training", is_alive=True, now=1.0))
    steps = seen["losses"]["step"]
    assert len(steps) <= 51
    assert (steps[0], steps[-1]) == (10, 1500)


def test_stream_repeats_and_loses_nothing_wherever_it_is_cut(run):
    whole = EventStream(run).read()
    for cut in range(0, len(whole), 37):
        mark = whole[cut][0]
        rest = EventStream(run, after=mark).read()
        assert [encode(record) for _, record in rest] == [
            encode(record) for _, record in whole[cut + 1 :]
        ]
    for odd in ("", "x", "1.2", "1.2.x", "1.2.3.4"):
        assert EventStream(run, after=odd).read() == whole


# ------------------------------------------------------------------------------ a real browser


@pytest.fixture
def browser(tmp_path):
    opened = Browser(tmp_path / "browser")
    yield opened
    opened.close()


def test_browser_shows_the_run(viz, run, browser):
    async def steps(session):
        await browser.open(session, f"{server.url}/")
        deadline = time.monotonic() + PATIENCE_S
        drawn = "document.body?.classList.contains('-first-byte')"
        canvases = "document.querySelectorAll('canvas').length"
        while not (
            await browser.value(drawn)
            and await browser.value(canvases)
            and all(each in browser.received() for each in (b"DONE", b"0.3020"))
        ):
            assert time.monotonic() < deadline, browser.received()[-500:]
            await asyncio.sleep(0.1)
        await browser.value("document.querySelector('textarea').focus()")
        for kind in ("keyDown", "keyUp"):
            await browser.call("Input.dispatchKeyEvent", type=kind, text="?", key="?")
        while b"leave; the run goes on" not in browser.received():
            assert time.monotonic() < deadline, browser.received()[-500:]
            await browser.value("1")
            await asyncio.sleep(0.1)

    server = viz()
    talk(server, steps)
    failed = [each for each in browser.events if each["method"] == "Runtime.exceptionThrown"]
    assert failed == []
    asked = [url for url in browser.requested() if not url.startswith((server.url, "data:"))]
    assert all(re.match(r"https://fonts\.googleapis\.com/", url) for url in asked)
    blocked = [
        each["params"].get("blockedReason")
        for each in browser.events
        if each["method"] == "Network.loadingFailed"
    ]
    assert blocked == ["csp"] * len(asked)
