"""The feed: what it posts while a run folder appears, grows, breaks and ends."""

import queue

import pytest

from nmoe import events as ev
from tests.tui import recordings as rec
from tests.tui.screen import held
from tui.feed import Failure, FeedFailed, RunChanged, Success, attempt
from tui.reader import Feed


class Box:
    """Takes posted messages; `view` waits for one that fits."""

    def __init__(self):
        self.messages = queue.Queue()

    def view(self, fits):
        while True:
            message = self.messages.get(timeout=10)
            if isinstance(message, RunChanged) and fits(message.view):
                return message.view

    def problem(self):
        while True:
            message = self.messages.get(timeout=10)
            if isinstance(message, FeedFailed):
                return message.problem


@pytest.fixture
def follow():
    feeds = []

    def start(folder, *, fps=50.0):
        box = Box()
        feed = Feed(folder, box.messages.put, fps=fps, clock=lambda: rec.START + 45)
        feeds.append(feed)
        feed.start()
        return box

    yield start
    for feed in feeds:
        feed.stop()


def test_feed_waits_when_nothing_exists_yet(tmp_path, follow):
    root = rec.data_root(tmp_path)
    box = follow(root.run(rec.RUN_ID))
    assert box.view(lambda view: True).status == "idle"

    rec.done(root)

    view = box.view(lambda view: view.state.result is not None and view.state.core is not None)
    assert view.status == "done"
    assert view.state.losses.length == 320


def test_feed_posts_what_is_appended_when_the_run_goes_on(tmp_path, follow):
    recording = rec.training(rec.data_root(tmp_path), stop=100)
    box = follow(recording.folder)
    box.view(lambda view: view.state.step == 100)

    recording.train(*rec.steps(200, start=100))

    assert box.view(lambda view: view.state.step == 200).state.losses.length == 20


def test_feed_starts_over_when_a_file_was_truncated(tmp_path, follow):
    root = rec.data_root(tmp_path)
    recording = rec.training(root, stop=300)
    box = follow(recording.folder)
    box.view(lambda view: view.state.step == 300)

    recording.folder.train.write_text("")
    rec.training(root, stop=50)

    assert box.view(lambda view: view.state.step == 50).state.losses.length == 5


def test_feed_counts_torn_and_broken_lines(tmp_path, follow):
    recording = rec.training(rec.data_root(tmp_path), stop=100)
    with recording.folder.train.open("ab") as file:
        file.write(b'{"v":1,"s":9\n\xff\xfe\n{"v":1,"torn')

    assert follow(recording.folder).view(lambda view: True).state.bad_lines == 2


def test_feed_reports_when_the_format_is_another_one(tmp_path, follow):
    folder = rec.training(rec.data_root(tmp_path), stop=50).folder
    lines = folder.train.read_text().replace('"v":1', '"v":9')
    folder.train.write_text(lines)

    assert "version 9" in follow(folder).problem()


def test_feed_tells_alive_from_dead_when_the_lock_is_held(tmp_path, follow):
    folder = rec.training(rec.data_root(tmp_path), stop=300).folder
    with held(folder):
        box = follow(folder)
        assert box.view(lambda view: True).status == "training"
    assert box.view(lambda view: not view.is_alive).status == "interrupted"


def test_feed_posts_rarely_when_events_are_many(tmp_path, follow):
    recording = rec.training(rec.data_root(tmp_path), stop=20_000)
    box = follow(recording.folder, fps=2.0)
    box.view(lambda view: view.state.step == 20_000)

    assert box.messages.qsize() == 0


def test_new_view_replaces_one_that_waits():
    first, second = RunChanged(view=None), RunChanged(view=None)

    assert second.can_replace(first)
    assert not second.can_replace(FeedFailed("x"))


def test_attempt_turns_any_error_into_a_failure():
    assert attempt(lambda: 5) == Success(value=5)
    assert attempt(lambda: 1 / 0) == Failure(problem="division by zero")
    assert attempt(lambda: ev.decode("{")).problem.startswith("not JSON")
