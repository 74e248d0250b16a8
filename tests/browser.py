"""Headless Chromium for tests of pages, driven by its own protocol; they skip where it is not."""

import asyncio
import base64
import json
import shutil
import subprocess
import time

import pytest

PATIENCE_S = 30.0
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Browser:
    """Headless Chromium, driven by its own protocol."""

    def __init__(self, folder):
        name = next((each for each in BROWSERS if shutil.which(each)), None)
        if name is None:
            pytest.skip("needs Chromium, this machine has none")
        self._port_file = folder / "DevToolsActivePort"
        self._process = subprocess.Popen(
            [name, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
             f"--user-data-dir={folder}", "--window-size=1300,800", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.events = []
        self._calls = 0

    async def open(self, session, url):
        """Connect to the browser and go to a page."""
        await self.connect(session)
        await self.call("Page.navigate", url=url)

    async def show(self, url, *, width, height=800, scheme="light"):
        """Go to a page in a window of that size and theme, and wait until it is there."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)
        await self.call("Page.navigate", url=url)
        deadline = time.monotonic() + PATIENCE_S
        there = f"document.readyState === 'complete' && location.href === {json.dumps(url)}"
        while not await self.value(there):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def connect(self, session):
        deadline = time.monotonic() + PATIENCE_S
        while not (self._port_file.exists() and self._port_file.read_text().count("\n")):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        port = self._port_file.read_text().split()[0]
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            pages = [each for each in await response.json() if each["type"] == "page"]
        self._socket = await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def call(self, method, **params):
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == self._calls:
                return message["result"]
            self.events.append(message)

    async def value(self, expression):
        """What the page says to an expression; None when it raises."""
        return (await self.call("Runtime.evaluate", expression=expression))["result"].get("value")

    def complaints(self):
        """What the console was told: errors, exceptions, what a policy refused."""
        named = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [each["params"] for each in self.events if each["method"] in named]

    def received(self):
        """What the page was sent by its app."""
        frames = [
            each["params"]["response"]
            for each in self.events
            if each["method"] == "Network.webSocketFrameReceived"
        ]
        return b"".join(
            base64.b64decode(each["payloadData"]) for each in frames if each["opcode"] == 2
        )

    def requested(self):
        return [
            each["params"]["request"]["url"]
            for each in self.events
            if each["method"] == "Network.requestWillBeSent"
        ]

    def close(self):
        self._process.terminate()
        self._process.wait(PATIENCE_S)
