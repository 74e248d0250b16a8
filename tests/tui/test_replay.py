"""Replays on the screen: the scrubber drawn, played, moved and clicked; the folder untouched."""

import asyncio

import pytest

from harness import runs
from nmoe import events as ev
from tests.tui import recordings as rec
from tests.tui.screen import screen_text, until
from tests.tui.test_feed import Box
from tui.reader import ReplayFeed
from tui.replay import ReplayApp
from tui.widgets.rows import plain, row_to_ascii
from tui.widgets.scrubber import Scrub, Scrubber, draw_scrubber, frac_at

HALF = Scrub(elapsed_s=50, duration_s=100, speed=20, is_playing=True, marks_s=(75.0,))


def drawn(scrub, width):
    (row,) = draw_scrubber(scrub, width)
    return plain(row)


def test_scrubber_shows_state_speed_place_marks_and_clock():
    assert drawn(HALF, 60) == " playing 20x ━━━━━━━━━━━━━━━━●────────┊──────── 0:50 / 1:40 "


def test_scrubber_says_in_words_when_it_stands_still():
    paused = Scrub(elapsed_s=1, duration_s=9, speed=0.5)
    assert drawn(paused, 60).startswith(" paused 0.500x ━")
    over = Scrub(elapsed_s=9, duration_s=9)
    assert drawn(over, 60).startswith(" at the end 1x ━")
    assert "●" in drawn(Scrub(), 60)


@pytest.mark.parametrize("width", range(40))
def test_scrubber_fits_any_width(width):
    rows = draw_scrubber(HALF, width)
    assert all(len(plain(row)) <= width for row in rows)


def test_scrubber_is_the_same_in_ascii():
    text = plain(row_to_ascii(draw_scrubber(HALF, 60)[0]))
    assert text == " playing 20x ================*--------:-------- 0:50 / 1:40 "


def test_scrubber_reads_its_columns_as_shares():
    shares = [frac_at(HALF, 60, x) for x in range(60)]
    known = [share for share in shares if share is not None]
    assert (known[0], known[-1]) == (0.0, 1.0)
    assert known == sorted(known)
    assert shares[0] is None
    assert frac_at(HALF, 20, 5) is None


class Player:
    """A feed that is stepped by hand, its clock in seconds."""

    def __init__(self, folder, *, speed=1.0):
        self.now = 0.0
        self.box = Box()
        self.feed = ReplayFeed(folder, self.box.messages.put, speed=speed, clock=lambda: self.now)
        self.feed._tick()

    def wait(self, seconds):
        self.now += seconds
        self.feed._tick()

    @property
    def view(self):
        view = None
        while not self.box.messages.empty():
            view = self.box.messages.get().view
        return view


@pytest.fixture
def folder(tmp_path):
    return rec.done(rec.data_root(tmp_path))


def test_feed_plays_at_its_speed_and_stops_at_the_end(folder):
    player = Player(folder, speed=10)
    first = player.view
    assert (first.position.elapsed_s, first.position.is_playing) == (0.0, True)
    assert (first.status, first.is_alive) == ("preparing", True)
    player.wait(1.0)
    assert player.view.position.elapsed_s == 10.0
    player.wait(1e6)
    last = player.view
    assert last.position.elapsed_s == last.position.duration_s
    assert not last.position.is_playing
    assert (last.status, last.is_alive) == ("done", False)
    assert last.state == runs.load(folder)


def test_feed_pauses_jumps_and_changes_speed(folder):
    player = Player(folder)
    player.feed.toggle()
    player.wait(5.0)
    assert player.view.position.elapsed_s == 0.0
    player.feed.jump(0.5)
    player.wait(0.0)
    middle = player.view
    assert middle.position.elapsed_s == pytest.approx(middle.position.duration_s / 2)
    assert 0 < middle.state.step < 3300
    player.feed.scale_speed(2)
    player.wait(0.0)
    assert player.view.position.speed == 2
    player.feed.seek(-5)
    player.wait(0.0)
    assert player.view.state.step == 0
    player.feed.jump(99)
    player.feed.toggle()  # at the end: from the start
    player.wait(0.0)
    assert (player.view or middle).position.is_playing


def test_feed_that_stands_still_posts_nothing(folder):
    player = Player(folder)
    player.feed.toggle()
    player.wait(1.0)
    assert player.view is not None
    for _ in range(50):
        player.wait(1.0)
    assert player.view is None


def test_feed_of_nothing_reports_it(tmp_path):
    box = Box()
    feed = ReplayFeed(rec.data_root(tmp_path).run("r"), box.messages.put, speed=1)
    feed.start()
    assert "no run r" in box.problem()
    feed.stop()


def watch(folder, steps, *, size=(100, 30), speed=1.0):
    async def go():
        app = ReplayApp(rec.data_root(folder.root.parent.parent), run=folder, speed=speed)
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: bool(app.screen.query(Scrubber)), "the scrubber")
            await steps(app, pilot)

    asyncio.run(go())


def test_screen_replays_to_any_place_by_keys_and_mouse(folder):
    async def steps(app, pilot):
        await pilot.press("space")
        await until(pilot, lambda: "paused" in screen_text(app), "the pause")
        await pilot.press("end")
        await until(pilot, lambda: "DONE" in screen_text(app), "the end")
        assert "0.3020" in screen_text(app)
        await pilot.press("home")
        await until(pilot, lambda: "PREPARING" in screen_text(app), "the start")
        scrubber = app.screen.query_one(Scrubber)
        width = scrubber.content_size.width
        x = next(x for x in range(width) if (frac_at(scrubber.value, width, x) or 0) > 0.5)
        await pilot.click(Scrubber, offset=(x, 0))
        await until(pilot, lambda: app.view.state.step > 500, "the middle")
        await pilot.press("greater_than_sign")
        await until(pilot, lambda: " 2x " in screen_text(app), "the speed")

    watch(folder, steps)


def test_help_lists_the_keys_of_replays_beside_the_others(folder):
    async def steps(app, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: "Keys" in screen_text(app), "the help")
        seen = screen_text(app)
        assert "( )     replay: a twentieth back" in seen
        assert "leave; the run goes on" in seen
        assert "hold the view still" not in seen

    watch(folder, steps, size=(100, 45))


def test_scrubber_is_on_every_screen(folder):
    async def steps(app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: bool(app.screen.query(Scrubber)), "the scrubber of the board")
        await pilot.press("1")
        await until(pilot, lambda: "val" in screen_text(app), "the run")
        assert len(app.screen.query(Scrubber)) == 1

    watch(folder, steps, speed=1000)


def test_replay_stops_nothing_and_writes_nothing(folder):
    before = {path: path.stat().st_mtime_ns for path in [folder.root, *folder.root.rglob("*")]}

    async def steps(app, pilot):
        await pilot.press("S")
        await pilot.press("end")
        await until(pilot, lambda: "DONE" in screen_text(app), "the end")
        assert app.check_action("stop_run", ()) is None

    watch(folder, steps)
    assert {
        path: path.stat().st_mtime_ns for path in [folder.root, *folder.root.rglob("*")]
    } == before


def test_hostile_names_are_text_in_a_replay(tmp_path):
    recording = rec.training(rec.data_root(tmp_path), stop=100)
    names = "[/bold] \x1b[31m \u202egnp " + "x" * 500
    recording.supervisor(ev.AlertEvent(code="c", level="error", message=names))

    async def steps(app, pilot):
        await pilot.press("end")
        await until(pilot, lambda: "[/bold]" in screen_text(app), "the alert")
        assert "\u202e" not in screen_text(app)

    watch(recording.folder, steps)
