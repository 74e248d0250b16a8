"""Every screen as text at five sizes, from recorded runs, kept in tests/data/screens.

`python -m tests.tui.pictures` draws them anew, and git shows what changed.
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from textual.pilot import Pilot

from bench import rows as suite
from harness import hardware
from harness.errors import Problem
from nmoe.paths import CodeVersion, DataRoot, RunFolder
from tests.bench.results import a_machine, a_row
from tests.conftest import REPO_ROOT
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.boards import write_board
from tests.tui.screen import HARDWARE, NOW, held, screen_text, until
from tui.app import NmoeApp
from tui.screens.request import Request

FOLDER = REPO_ROOT / "tests" / "data" / "screens"
SIZES = ((60, 16), (80, 24), (100, 30), (160, 48), (240, 67))
OF_A_RUN = {"run": "1", "experts": "2", "gpus": "3", "core": "4", "logs": "8"}
OF_ALL = {"runs": "5", "board": "6", "kernels": "7", "start": "0"}
RUNS: dict[str, Callable[[DataRoot], RunFolder]] = {
    "healthy": lambda root: races.ranked(root).folder,
    "diverged": lambda root: races.diverged(root).folder,
    "resumed": lambda root: races.resumed(root).folder,
    "failed": lambda root: races.failed(root).folder,
    "recorded": lambda root: rec.recorded(root, "two_h100"),
}
STORIES = (*RUNS, "all")


@contextmanager
def fixed_world() -> Iterator[DataRoot]:
    """A data root named `data` in a folder of its own, one time zone, one machine, one commit."""
    zone, here = os.environ.get("TZ"), Path.cwd()
    found = hardware.detect(fake=HARDWARE / "b200x8.json")
    machine = replace(found.hardware, cpu="Some CPU", cores=96, is_fake=False)
    found = replace(found, hardware=machine)
    problems = (
        Problem(what="fp8 experts are not built yet", fix="Run: n speedrun super --dtype bf16"),
        Problem(what="only 12 GB are free", fix="Free 40 GB below data.", exit_code=0),
    )
    version = CodeVersion(commit="c" * 40, is_dirty=False)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("harness.hardware.detect", lambda **_: found),
        patch("harness.preflight.problems", lambda *_: problems),
        patch("platform.python_version", lambda: "3.12.0"),
        patch("harness.plan.code_version", lambda: version),
    ):
        os.chdir(folder)
        os.environ["TZ"] = "UTC"
        time.tzset()
        try:
            yield rec.data_root(Path("data"))
        finally:
            os.chdir(here)
            os.environ.pop("TZ")
            if zone is not None:
                os.environ["TZ"] = zone
            time.tzset()


def write_results(folder: Path) -> None:
    """Rows of two commits: one slower, one faster, one that could not run."""
    folder.mkdir()
    for commit, date, times in (
        ("a" * 40, "2026-01-01T00:00:00+00:00", {"up": 100.0, "down": 200.0}),
        ("b" * 40, "2026-01-02T00:00:00+00:00", {"up": 120.0, "down": 150.0, "sort": 52.5}),
    ):
        machine = a_machine(commit=commit, date=date, gpu="NVIDIA B200")
        rows = [a_row(what=what, us=us, machine=machine) for what, us in times.items()]
        rows.append(a_row(what="up", implementation="torch", us=180.0, machine=machine))
        rows.append(a_row(what="sort", implementation="torch", us=None, rate=None, percent=None,
                          note="not installed", machine=machine))  # fmt: skip
        suite.save(folder / f"kernels-{commit[:7]}.jsonl", rows)


def draw(story: str) -> dict[str, str]:
    """The screens of a story by name, each at all sizes."""
    with fixed_world() as root:
        if story in RUNS:
            folder = RUNS[story](root)
            lock = held(folder) if story == "healthy" else nullcontext()
            with lock:
                drawn = asyncio.run(_visit(root, folder, OF_A_RUN))
        else:
            for make in (races.done, races.resumed, rec.done):
                make(root)
            races.diverged(root, "super-20260101-000001-dddd")
            races.failed(root, "super-20260101-000002-ffff")
            write_board(root)
            write_results(Path("results"))
            drawn = asyncio.run(_visit(root, None, OF_ALL))
    return {f"{name}-{story}": text for name, text in drawn.items()}


async def _visit(root: DataRoot, run: RunFolder | None, screens: dict[str, str]) -> dict[str, str]:
    app = NmoeApp(
        root,
        run=run,
        request=Request(preset="super"),
        repo_board=root.board.with_name("official.json"),
        bench_results=Path("results"),
        clock=lambda: NOW,
    )
    parts: dict[str, list[str]] = {name: [] for name in screens}
    async with app.run_test(size=SIZES[0]) as pilot:
        if run is not None:
            await until(pilot, lambda: app.view is not None, "the run")
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            for name, key in screens.items():
                await pilot.press(key)
                await _settle(app, pilot)
                if name == "experts" and not parts[name]:
                    await pilot.press("h")
                    await _settle(app, pilot)
                parts[name] += [f"{name} {width} x {height}", screen_text(app)]
    return {name: "\n".join(texts) + "\n" for name, texts in parts.items()}


async def _settle(app: NmoeApp, pilot: Pilot[None]) -> None:
    """Until nothing is read any more and everything is drawn."""
    for _ in range(3):
        await app.workers.wait_for_complete()
        await pilot.pause()


def main() -> None:
    """Draw all of them into their files, or those of the stories that are named."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for story in sys.argv[1:] or STORIES:
        for name, text in draw(story).items():
            (FOLDER / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
