"""Keys, questions and the other screens, with the harness' acts replaced by notes."""

import json

import pytest

from harness import hardware, leaderboard, standings
from harness.alive import newest_alive
from harness.errors import RunError
from tests.tui import recordings as rec
from tests.tui.boards import write_board
from tests.tui.screen import HARDWARE, drive, held, look, look_at_setup, screen_text, until
from tui.app import NmoeApp
from tui.screens.offer import make_offer
from tui.screens.request import Request

NO_GPU = Request(fake_hardware=HARDWARE / "none.json")


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


@pytest.fixture
def stops(monkeypatch):
    """Requests to stop that were made, instead of made in earnest."""
    made = []
    monkeypatch.setattr("harness.launch.request_stop", lambda folder, by: made.append(folder))
    return made


def press_and_see(root, run, *keys, size=(80, 24), **options):
    """Whether the app was left, and its screen before that, after pressing the keys."""
    seen = {}

    async def steps(app, pilot):
        await until(pilot, lambda: app.view is not None, "the run")
        await pilot.press(*keys)
        await pilot.pause()
        seen["left"] = app._exit
        seen["text"] = "" if app._exit else screen_text(app)

    seen["app"] = drive(root, steps, run=run, size=size, **options)
    return seen


def test_q_detaches_and_touches_nothing(root, stops):
    folder = rec.training(root).folder
    with held(folder):
        before = sorted(folder.root.rglob("*"))
        seen = press_and_see(root, folder, "q")
        assert sorted(folder.root.rglob("*")) == before

    assert seen["left"]
    assert stops == []


def test_ctrl_c_asks_and_cancels_by_default(root, stops):
    folder = rec.training(root).folder
    with held(folder):
        asked = press_and_see(root, folder, "ctrl+c")
        cancelled = press_and_see(root, folder, "ctrl+c", "enter")

    for choice in ("Cancel", "Detach", "Stop and save"):
        assert choice in asked["text"]
    assert not cancelled["left"]
    assert "Detach:" not in cancelled["text"]
    assert stops == []


def test_ctrl_c_then_detach_leaves(root, stops):
    folder = rec.training(root).folder
    with held(folder):
        assert press_and_see(root, folder, "ctrl+c", "down", "enter")["left"]
    assert stops == []


def test_ctrl_c_then_stop_requests_and_leaves(root, stops):
    folder = rec.training(root).folder
    with held(folder):
        assert press_and_see(root, folder, "ctrl+c", "down", "down", "enter")["left"]
    assert stops == [folder]


def test_capital_s_stops_only_after_confirmation(root, stops):
    folder = rec.training(root).folder
    with held(folder):
        asked = press_and_see(root, folder, "S", "escape")
        assert stops == []
        press_and_see(root, folder, "S", "down", "enter")

    assert not asked["left"]
    assert stops == [folder]


@pytest.mark.parametrize("is_alive", [True, False])
def test_stop_is_not_offered_when_readonly_or_over(root, stops, is_alive):
    folder = rec.training(root).folder
    if is_alive:
        with held(folder):
            seen = press_and_see(root, folder, "S", "down", "enter", is_readonly=True)
    else:
        seen = press_and_see(root, folder, "S", "down", "enter")

    assert "Stop " not in seen["text"]
    assert stops == []


def test_refused_stop_is_told_and_nothing_breaks(root, monkeypatch):
    def refuse(folder, by):
        raise RunError("run x is not running", "Run: n runs")

    monkeypatch.setattr("harness.launch.request_stop", refuse)
    folder = rec.training(root).folder
    with held(folder):
        seen = press_and_see(root, folder, "S", "down", "enter")

    assert not seen["left"]
    assert "is not running" in seen["text"]


def test_stop_writes_the_request_that_the_trainer_reads(root):
    folder = rec.training(root).folder
    with held(folder):
        press_and_see(root, folder, "S", "down", "enter")

    assert json.loads(folder.stop_request.read_text())["mode"] == "checkpoint"


def test_help_lists_keys_and_all_states(root):
    text = press_and_see(root, rec.done(root), "question_mark", size=(100, 60))["text"]

    for word in ("space", "hold the view still", "leave; the run goes on", "● training",
                 "⚡ interrupted", "≋ diverged", "∅ no-gpu"):  # fmt: skip
        assert word in text


def test_board_shows_both_boards_and_marks_published(root):
    write_board(root)
    official = root.path / "official.json"
    official.write_bytes(leaderboard.REPO_BOARD.read_bytes())
    seen = []

    async def steps(app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: "this machine" in screen_text(app), "the boards")
        seen.append(screen_text(app))

    for size in ((80, 24), (160, 48)):
        drive(root, steps, size=size, request=NO_GPU)
    for text in seen:
        assert "published, not verified here" in text
        assert "2537.0 s" in text
        assert "pocket <= 1.7" in text
        assert "72.6 s" in text
        assert "0.3020" in text
    assert "pocket-20260101-000001-abcd" in seen[1]


def test_board_is_exported_as_the_command_does(root):
    write_board(root)

    async def steps(app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: "this machine" in screen_text(app), "the boards")
        await pilot.press("e", "enter")
        await until(pilot, lambda: list(root.exports.glob("board-*.csv")), "the file")

    drive(root, steps, size=(160, 48), request=NO_GPU)
    (path,) = root.exports.iterdir()
    assert path.read_text() == standings.sheet([leaderboard.load(root.board)]).csv()


def test_board_that_does_not_parse_is_reported_beside_the_other(root):
    write_board(root, count=1)
    (root.path / "official.json").write_text("{broken")
    seen = []

    async def steps(app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: "this machine" in screen_text(app), "the boards")
        seen.append(screen_text(app))

    drive(root, steps, size=(160, 48), request=NO_GPU)

    assert "is not JSON" in seen[0]
    assert "72.6 s" in seen[0]


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("b200x8", ("8 x B200", "fp8", "not built yet", "--dtype bf16", "super on 8 x B200")),
        ("h100x8", ("8 x H100", "bf16: the default of H100", "super")),
        ("a100x8", ("A100", "pocket")),
        ("none", ("pocket on", "fp32", "task", "target")),
        ("driver_mismatch", ("driver", "pocket on")),
    ],
)
def test_start_screen_explains_machine_plan_and_problems(root, scenario, expected):
    request = Request(fake_hardware=HARDWARE / f"{scenario}.json")
    text = look_at_setup(root, request, size=(120, 50))

    assert "described by a file" in text
    for part in expected:
        assert part in text


def test_start_screen_fits_80_by_24(root):
    text = look_at_setup(root, NO_GPU)

    for part in ("this machine", "preset", "plan", "before the start", "pocket on", "0 start"):
        assert part in text


def test_refused_preset_is_a_problem_with_its_fix(root):
    text = look_at_setup(root, Request(preset="super", fake_hardware=HARDWARE / "none.json"))

    assert "✖ super needs a supported GPU" in text
    assert "n speedrun pocket" in " ".join(text.split())


def test_offer_survives_a_broken_hardware_file(root, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{")

    offer = make_offer(
        Request(fake_hardware=broken), root, repo_board=root.board, bench_results=tmp_path
    )

    assert not offer.is_ready
    assert offer.problems


def test_marking_another_preset_plans_it(root):
    seen = []

    async def steps(app, pilot):
        await until(pilot, lambda: "✖" in screen_text(app), "an offer")
        await pilot.press("down", "down", "down", "down")
        await until(pilot, lambda: "super needs" in screen_text(app), "the plan of super")
        seen.append(screen_text(app))

    drive(root, steps, request=NO_GPU)


def launch_with(root, monkeypatch, start):
    """Start `pocket` from the start screen on this machine's CPU; the app and the last screen."""
    monkeypatch.setattr("harness.launch.start", start)
    found = hardware.Detection(hardware=hardware.Hardware(cpu="Some CPU", cores=2))
    monkeypatch.setattr("harness.hardware.detect", lambda **_: found)
    seen = []

    async def steps(app, pilot):
        await until(pilot, lambda: "✔ ready" in screen_text(app), "an offer")
        await pilot.press("enter", "enter")
        await until(pilot, lambda: app.view is not None or "no room" in screen_text(app), "launch")
        await pilot.pause(0.2)
        seen.append(screen_text(app))

    return drive(root, steps, request=Request(preset="pocket")), seen[0]


def test_enter_launches_once_and_shows_the_run(root, monkeypatch):
    started = []

    def start(plan, where):
        started.append(plan)
        return rec.preparing(where)

    app, text = launch_with(root, monkeypatch, start)

    assert [plan.preset for plan in started] == ["pocket"]
    assert app.run_folder == root.run(rec.RUN_ID)
    assert "pocket/train" in text or "INTERRUPTED" in text


def test_failed_launch_is_told_and_leaves_the_start_screen(root, monkeypatch):
    def start(plan, where):
        raise RunError("no room for another run", "Run: n stop x")

    app, text = launch_with(root, monkeypatch, start)

    assert app.run_folder is None
    assert "no room for another run" in text


def test_newest_living_run_is_found(root):
    rec.done(root, "pocket-20260101-000000-aaaa")
    folder = rec.training(root, "pocket-20260101-000001-bbbb").folder
    assert newest_alive(root) is None
    with held(folder):
        assert newest_alive(root) == folder


def test_animations_are_off_over_ssh(root, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")

    assert NmoeApp(root).animation_level == "none"


def test_run_key_is_greyed_when_there_is_no_run(root):
    async def steps(app, pilot):
        await pilot.press("1", "S", "space")
        await pilot.pause()
        assert app.check_action("go", ("run",)) is None
        assert "start" in screen_text(app)

    drive(root, steps, request=NO_GPU)


def test_digits_change_screens_and_back(root):
    text = look(root, run=rec.done(root), keys=("6", "0", "1"))

    assert "✔ DONE" in text
