"""Driving the app without a terminal, and its screen as plain text."""

import asyncio
import fcntl
import io
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from textual.pilot import Pilot

from nmoe.paths import DataRoot, RunFolder
from tests.tui import recordings
from tui.app import NmoeApp
from tui.screens.request import Request

NOW = recordings.START + 45
Drive = Callable[[NmoeApp, Pilot[None]], Awaitable[None]]


def screen_text(app: NmoeApp) -> str:
    """The visible screen, a line a row, without colours and trailing blanks."""
    console = Console(
        width=app.size.width,
        height=app.size.height,
        file=io.StringIO(),
        force_terminal=True,
        record=True,
        legacy_windows=False,
    )
    console.print(app.screen._compositor.render_update(full=True))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


def drive(
    root: DataRoot,
    steps: Drive,
    *,
    run: RunFolder | None = None,
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> NmoeApp:
    """Run the app at `size`, do `steps` with it, and leave; the clock stands still at NOW."""

    async def go() -> NmoeApp:
        board = root.path / "official.json"
        app = NmoeApp(root, run=run, repo_board=board, clock=lambda: NOW, **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await steps(app, pilot)
        return app

    return asyncio.run(go())


async def until(pilot: Pilot[None], condition: Callable[[], bool], what: str) -> None:
    """Let the app work until the condition holds; AssertionError after ten seconds."""
    for _ in range(500):
        await pilot.pause()
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"waited in vain for {what}:\n{screen_text(pilot.app)}")


def look(
    root: DataRoot, *, run: RunFolder, size: tuple[int, int] = (80, 24), keys: tuple[str, ...] = ()
) -> str:
    """The run screen as text once the whole recording was read."""
    seen: list[str] = []

    async def steps(app: NmoeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.view is not None, "the run")
        await pilot.pause()
        for key in keys:
            await pilot.press(key)
        await pilot.pause()
        seen.append(screen_text(app))

    drive(root, steps, run=run, size=size)
    return seen[0]


def see(
    root: DataRoot,
    run: RunFolder,
    *keys: str,
    until_text: str = "",
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> str:
    """The screen after the keys, once it shows a text; the key "wait" is for what threads read."""
    seen: list[str] = []

    async def steps(app: NmoeApp, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: app.view is not None, "the run")
        for key in keys:
            if key == "wait":  # for what a thread reads
                await app.workers.wait_for_complete()
                await pilot.pause()
            else:
                await pilot.press(key)
        await until(pilot, lambda: until_text in screen_text(app), repr(until_text))
        seen.append(screen_text(app))

    drive(root, steps, run=run, size=size, **options)
    return seen[0]


def look_at_setup(root: DataRoot, request: Request, *, size: tuple[int, int] = (80, 24)) -> str:
    """The start screen as text once the plan was made or refused."""
    seen: list[str] = []

    async def steps(app: NmoeApp, pilot: Pilot[None]) -> None:
        def is_offered() -> bool:
            text = screen_text(app)
            return "✔ ready" in text or "✖" in text

        await until(pilot, is_offered, "an offer")
        seen.append(screen_text(app))

    drive(root, steps, size=size, request=request)
    return seen[0]


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """The run's lock, as a living supervisor holds it."""
    fd = os.open(folder.lock, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


HARDWARE = Path(__file__).resolve().parent.parent / "data" / "hardware"
