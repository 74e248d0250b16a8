"""Looking changes nothing: whatever key is pressed, runs are as they were and none is started."""

import asyncio
import string

import pytest

from harness import launch
from nmoe.paths import RunFolder
from tests.tui import recordings as rec
from tests.tui.screen import NOW, held, until
from tui.app import NmoeApp
from tui.replay import ReplayApp

LEAVING = "q"
KEYS = [
    *(key for key in string.ascii_letters if key != LEAVING),
    *string.digits,
    *("space", "slash", "comma", "full_stop", "left_square_bracket", "right_square_bracket"),
    *("plus", "minus", "tab", "up", "down", "left", "right", "home", "end", "pageup", "delete"),
    *("backspace", "question_mark", "less_than_sign", "greater_than_sign", "f1", "f5"),
]
ACTS = ("start", "resume", "request_stop", "write_stop", "take_run_lock")


def contents(folder: RunFolder):
    """Every file below the data root's runs, as it is."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.root.parent.rglob("*"))
    }


def viewer(root, folder):
    return NmoeApp(
        root, run=folder, is_readonly=True, repo_board=root.path / "none.json", clock=lambda: NOW
    )


def replayed(root, folder):
    return ReplayApp(root, run=folder, speed=20.0, repo_board=root.path / "none.json")


@pytest.mark.parametrize("open_app", [viewer, replayed])
@pytest.mark.parametrize("is_alive", [True, False])
def test_no_key_acts_on_a_run_when_readonly(tmp_path, monkeypatch, open_app, is_alive):
    root = rec.data_root(tmp_path)
    folder = rec.training(root).folder if is_alive else rec.done(root)
    acted = []
    for name in ACTS:
        monkeypatch.setattr(launch, name, lambda *_, name=name, **__: acted.append(name))

    async def go():
        app = open_app(root, folder)
        async with app.run_test(size=(100, 30)) as pilot:
            await until(pilot, lambda: app.view is not None, "the run")
            for key in KEYS:
                for each in (key, "enter", "escape"):
                    await pilot.press(each)
                assert app.is_running, key

    if is_alive:
        with held(folder):
            before = contents(folder)
            asyncio.run(go())
            after = contents(folder)
    else:
        before = contents(folder)
        asyncio.run(go())
        after = contents(folder)
    assert acted == []
    assert after == before
