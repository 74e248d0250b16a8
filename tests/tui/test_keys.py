"""Keys, bar, help, palette and mouse come from the same declarations; copying and exporting."""

import re
import time

import pytest
from textual.binding import Binding

from harness.sheet import save
from tests.conftest import REPO_ROOT
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import drive, held, screen_text, see, until
from tui.app import NmoeApp
from tui.catalog import SCREENS
from tui.screens.named import NamedScreen
from tui.screens.sheet import MAX_CLIPBOARD_BYTES, fits_clipboard
from tui.screens.watch import WatchScreen
from tui.widgets.keybar import Key, draw_keys, key_at
from tui.widgets.rows import plain, row_width

ALL = [
    Key(key=key, display=key, word=word, rank=rank, is_current=word == "core")
    for key, word, rank in (
        ("1", "run", 2), ("4", "core", 2), ("0", "start", 2), ("space", "freeze", 1),
        ("q", "detach", 0),
    )
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def test_bar_loses_words_by_rank_and_keeps_the_current_one():
    seen = [plain(draw_keys(ALL, width)).strip() for width in range(60, 5, -1)]

    assert seen[0] == "1 run  4 core  0 start  space freeze  q detach"
    assert "1 run  4 core  0  space freeze  q detach" in seen
    assert "1  4 core  0  space  q detach" in seen
    assert "1  4 core  0  space  q" in seen
    for width, text in zip(range(60, 5, -1), seen, strict=True):
        assert len(text) < width


@pytest.mark.parametrize("width", [80, 40, 30, 12, 3, 1])
def test_click_finds_the_key_under_it(width):
    text = plain(draw_keys(ALL, width))
    assert row_width(draw_keys(ALL, width)) <= width
    found = {key_at(ALL, width, x) for x, char in enumerate(text) if char.strip()}

    assert found - {None} <= {key.key for key in ALL}
    if width >= 30:
        assert key_at(ALL, width, text.index("core")) == "4"
        assert key_at(ALL, width, 0) is None


def test_every_screen_is_one_digit_of_the_app(root):
    app = NmoeApp(root)
    assert "".join(listed.key for listed in SCREENS) == "123456780"
    for listed in SCREENS:
        screen = app.screens.screen(listed.name)
        assert listed.word == screen.NAME
        assert isinstance(screen, WatchScreen) == listed.is_of_run
        assert app.screens.screen(listed.name) is screen


def test_every_key_that_acts_says_what_it_does(root):
    app = NmoeApp(root)
    owners = [app, *(app.screens.screen(listed.name) for listed in SCREENS)]
    for owner in owners:
        for binding in owner.BINDINGS:
            is_our_own = isinstance(binding, Binding)
            assert is_our_own
            assert binding.tooltip or binding.key == "right_square_bracket"


def test_readme_names_every_screen():
    readme = (REPO_ROOT / "README.md").read_text()

    for key, _, word, *_ in SCREENS:
        assert f"| `{key}` {word} |" in readme


def test_help_and_palette_hold_the_keys_of_what_is_in_focus(root):
    folder = races.healthy(root, stop=100).folder
    text = see(root, folder, "2", "question_mark", until_text="Keys", size=(120, 70))
    assert "heat map: to the hottest" in text
    assert "chart: logarithmic y" not in text

    palette = see(root, folder, "ctrl+p", *"logarithmic", until_text="chart: logarithmic y",
                  size=(120, 50))  # fmt: skip
    assert "logarithmic" in palette


def test_palette_presses_the_key(root):
    folder = races.healthy(root, stop=100).folder

    see(root, folder, "ctrl+p", *"scoreboards", "wait", "enter", until_text="scoreboards ─",
        size=(120, 50))  # fmt: skip


def test_mouse_changes_screens_and_rows(root):
    folder = races.done(root).folder
    texts = []

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        bar = plain(app.screen.query_one("KeyBar").draw(120, 1)[0])
        await pilot.click("KeyBar", offset=(bar.index("core"), 0))
        await until(pilot, lambda: "95 %" in screen_text(app), "CORE")
        await pilot.click("#tasks", offset=(8, 6))
        await pilot.pause()
        texts.append(screen_text(app))

    drive(root, steps, run=folder, size=(120, 40))
    line = next(line for line in texts[0].splitlines() if "▌" in line and "%" in line)
    assert "arc_challenge" in line


def test_enlarged_panel_has_the_screen_and_gives_it_back(root):
    folder = races.healthy(root, stop=100).folder
    alone = see(root, folder, "z", until_text="loss", size=(100, 30))
    again = see(root, folder, "z", "z", until_text="numbers", size=(100, 30))

    assert "─ numbers" not in alone
    assert "─ numbers" in again


def copied(root, folder, *keys, monkeypatch, terminal="xterm-256color"):
    """What went to the clipboard, and the screen after it."""
    monkeypatch.setenv("TERM", terminal)
    texts, clipboard = [], []

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        monkeypatch.setattr(app, "copy_to_clipboard", clipboard.append)
        await pilot.press(*keys, "y")
        await pilot.pause()
        texts.append(screen_text(app))

    drive(root, steps, run=folder, size=(140, 40))
    return clipboard, texts[0]


def test_copy_sends_the_panel_in_focus_to_the_terminal(root, monkeypatch):
    folder = races.done(root).folder
    clipboard, text = copied(root, folder, "4", monkeypatch=monkeypatch)

    assert "hellaswag_zeroshot" in clipboard[0]
    assert "╭" not in clipboard[0]
    assert "sent to the clipboard (OSC 52)" in text


def test_copy_is_a_file_when_the_terminal_takes_none(root, monkeypatch):
    folder = races.done(root).folder
    clipboard, text = copied(root, folder, "4", monkeypatch=monkeypatch, terminal="linux")
    (path,) = root.exports.iterdir()

    assert clipboard == []
    assert "hellaswag_zeroshot" in path.read_text()
    assert "written to" in text


@pytest.mark.parametrize(
    ("text", "terminal", "fits"),
    [("x", "xterm", True), ("x", "dumb", False), ("x", "", False),
     ("é" * MAX_CLIPBOARD_BYTES, "xterm", False)],
)  # fmt: skip
def test_clipboard_takes_what_is_short_and_asked_of_a_terminal_that_can(text, terminal, fits):
    assert fits_clipboard(text, terminal) is fits


def test_svg_export_is_the_screen_without_the_question(root):
    folder = races.healthy(root, stop=100).folder
    see(root, folder, "3", "e", "down", "down", "enter", until_text="written to", size=(140, 40))
    (path,) = root.exports.iterdir()

    assert path.suffix == ".svg"
    assert "Export" not in path.read_text()
    assert "throttle" in path.read_text()


def test_export_never_overwrites_and_tells_what_it_cannot_do(root, tmp_path):
    paths = {save(tmp_path / "out", "x", "csv", str(i)) for i in range(3)}
    assert sorted(path.read_text() for path in paths) == ["0", "1", "2"]

    root.exports.write_text("in the way")
    folder = races.healthy(root, stop=50).folder
    text = see(root, folder, "3", "e", "enter", until_text="File exists", size=(140, 40))
    assert "written" not in text


def test_resume_asks_and_readonly_never_does(root, monkeypatch):
    resumed = []
    monkeypatch.setattr("harness.launch.resume", lambda folder: resumed.append(folder))
    folder = rec.interrupted(root)

    asked = see(root, folder, "R", until_text="Resume pocket")
    assert "Cancel" in asked
    see(root, folder, "R", "enter")
    see(root, folder, "R", "wait", is_readonly=True)
    assert resumed == []

    see(root, folder, "R", "down", "enter", until_text="resumed: it goes on")
    assert resumed == [folder]


def test_living_run_is_not_resumed(root, monkeypatch):
    monkeypatch.setattr("harness.launch.resume", lambda folder: pytest.fail("resumed"))
    folder = rec.training(root).folder
    with held(folder):
        text = see(root, folder, "R", "down", "enter")

    assert "Resume" not in text


def test_times_are_shown_in_utc_on_every_screen(root, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    race = races.healthy(root, stop=100)

    async def steps(app, pilot):
        await until(pilot, lambda: "step 100" in screen_text(app), "the run")
        for key in ("8", "1"):
            await pilot.press(key)
            await until(pilot, lambda: re.search(r"\d\d:\d\d:\d\d  ", screen_text(app)), "times")
            assert not re.search(r":\d\dZ", screen_text(app))
        here = re.findall(r"(\d\d):\d\d:\d\d  ", screen_text(app))
        await pilot.press("T")
        await until(pilot, lambda: re.search(r":\d\dZ  ", screen_text(app)), "UTC")
        there = re.findall(r"(\d\d):\d\d:\d\dZ  ", screen_text(app))
        assert (int(here[-1]) - int(there[-1])) % 24 == 9
        await pilot.press("8")
        await until(pilot, lambda: re.search(r":\d\dZ  ", screen_text(app)), "UTC in the logs")
        await pilot.press("T")
        await until(pilot, lambda: "Z  " not in screen_text(app), "the times of here")

    try:
        drive(root, steps, run=race.folder, size=(160, 48))
    finally:
        monkeypatch.undo()
        time.tzset()


def test_freeze_holds_on_every_screen_of_the_run(root):
    race = races.healthy(root, stop=100)
    text = see(root, race.folder, "space", "3", "8", "2", until_text="FROZEN", size=(100, 30))

    assert isinstance(NmoeApp(root).screens.screen("experts"), NamedScreen)
    assert "step 100  E 256" in text
