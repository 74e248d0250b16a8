"""The runs screen: list, filter, marks, curves and plans compared, and which run is watched."""

import json

import pytest

from harness.runs import Summary
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import drive, held, screen_text, until
from tui.screens import listing

IDS = {
    "done": "super-20251231-000000-b201",
    "diverged": "super-20260101-000000-dddd",
    "failed": "super-20260102-000000-ffff",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five runs, read only by the tests of this module."""
    root = rec.data_root(tmp_path_factory.mktemp("runs"))
    races.done(root, IDS["done"])
    races.diverged(root, IDS["diverged"])
    races.failed(root, IDS["failed"])
    rec.done(root)
    rec.preparing(root, "pocket-20260104-000000-aaaa")
    return root


def visit(root, *keys, wanted="runs 5", size=(160, 48), **options):
    """The screen of runs after some keys, once it shows a text; the app, too."""
    seen = []

    async def steps(app, pilot):
        await pilot.press("5")
        await until(pilot, lambda: "╭─ runs 5" in screen_text(app), "the list")
        await pilot.press(*keys)
        await until(pilot, lambda: wanted in screen_text(app), wanted)
        seen.append(screen_text(app))

    app = drive(root, steps, size=size, **options)
    return seen[0], app


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (160, 48)])
def test_every_run_has_glyph_word_and_step(root, size):
    text, _ = visit(root, size=size)

    for part in ("✔ done", "≋ diverged", "✖ failed", "⚡ interrupted", "b201", "3.274"):
        assert part in text
    assert size[0] < 80 or "1,220/12K" in text


def test_filter_narrows_the_list_and_escape_takes_it_away(root):
    query = ("slash", *"state!=done", "space", *"val<4.0")
    narrowed, _ = visit(root, *query, wanted="runs 1 of 5")
    assert IDS["diverged"] in narrowed
    assert IDS["done"] not in narrowed

    again, _ = visit(root, "slash", *"ffff", "escape", wanted="runs 5")
    assert IDS["done"] in again


def test_filter_that_is_wrong_is_told_and_keeps_the_list(root):
    text, _ = visit(root, "slash", *"vall<3", wanted="unknown field")

    assert 'Did you mean "val"' in text
    assert IDS["done"] in text


def test_marked_runs_lie_over_one_another_and_their_plans_are_compared(root):
    keys = ["slash", *"super", "enter", "m", "down", "m", "down", "m"]
    text, _ = visit(root, *keys, wanted="a ─── dddd")

    assert "runs 3 of 5 · 3 marked" in text
    assert "loss of ffff" in text
    assert "b ── b201" in text
    line = next(line for line in text.splitlines() if "optim.lr_dense" in line)
    assert line.count("0.0018") == 2
    assert "0.0036" in line


def test_small_screen_compares_when_asked(root):
    before, _ = visit(root, "m", "down", "m", size=(80, 24), wanted="2 marked")
    after, _ = visit(root, "m", "down", "m", "v", size=(80, 24), wanted="loss of")

    assert "loss of" not in before
    assert "· 2 marked" in after


def test_marks_are_taken_away_one_by_one_or_all(root):
    assert "· 1 marked" in visit(root, "m", "down", "m", "m", wanted="marked")[0]
    assert "╭─ runs 5 ─" in visit(root, "m", "down", "m", "u")[0]


def test_enter_watches_the_run(root):
    text, app = visit(root, "enter", wanted="✖ FAILED", size=(80, 24))

    assert app.run_folder.run_id == IDS["failed"]
    assert "Rank 3 ended" in text


def test_marked_runs_lie_over_the_watched_one_until_v_hides_them(root):
    keys = ["slash", *"dddd", "enter", "m"]
    over, _ = visit(root, *keys, "slash", *["backspace"] * 4, *"b201", "enter", "enter",
                    wanted="─── dddd")  # fmt: skip
    assert "✔ DONE" in over

    async def steps(app, pilot):
        await pilot.press("5")
        await until(pilot, lambda: "╭─ runs 5" in screen_text(app), "the list")
        await pilot.press(*keys, "enter")
        await until(pilot, lambda: "─── dddd" in screen_text(app), "the overlay")
        await pilot.press("v")
        await until(pilot, lambda: "─── dddd" not in screen_text(app), "no overlay")

    drive(root, steps, size=(160, 48))


def test_living_run_grows_in_the_list(tmp_path):
    root = rec.data_root(tmp_path)
    recording = rec.training(root, stop=100)

    async def steps(app, pilot):
        await pilot.press("5")
        await until(pilot, lambda: "100/6K" in screen_text(app), "step 100")
        recording.train(*rec.steps(200, start=100))
        app.screen._read()
        await until(pilot, lambda: "200/6K" in screen_text(app), "step 200")

    with held(recording.folder):
        drive(root, steps, run=recording.folder)


def test_no_run_and_an_unreadable_one_are_told(tmp_path):
    root = rec.data_root(tmp_path)
    texts = []

    async def steps(app, pilot):
        await pilot.press("5")
        await until(pilot, lambda: "no runs yet" in screen_text(app), "the empty list")
        broken = root.run("broken-1")
        broken.root.mkdir(parents=True)
        broken.plan.write_text("{[/bold]")
        app.screen._read()
        await until(pilot, lambda: "cannot be read" in screen_text(app), "the problem")
        texts.append(screen_text(app))

    drive(root, steps, size=(100, 30))
    assert "broken-1" in texts[0]


def test_export_has_the_filtered_runs(root):
    text, _ = visit(root, "slash", *"state=failed", "enter", "e", "down", "enter",
                    wanted="written to", size=(200, 48))  # fmt: skip
    (path,) = [path for path in root.exports.iterdir() if path.name.startswith("runs-")]
    rows = json.loads(path.read_text())
    path.unlink()

    assert [row["run"] for row in rows] == [IDS["failed"]]
    assert rows[0]["state"] == "failed"


def test_short_names_tell_runs_apart():
    assert listing.short_names(["a-1-ffff", "b-2-eeee"]) == {"a-1-ffff": "ffff", "b-2-eeee": "eeee"}
    twins = ["a-1-ffff", "b-2-ffff"]
    assert listing.short_names(twins) == dict(zip(twins, twins, strict=True))


def test_hostile_names_stand_in_the_table_as_text():
    run = Summary(
        run_id="x", status="done", preset="[/bold]\x1b[2J", machine="\u202eabc" + "y" * 500
    )
    record = listing.table([run], [], 0.0, empty="").records[0]

    assert record.cells[2] == "[/bold]·[2J"
    assert record.cells[4].startswith("·abc")


@pytest.fixture
def own_root(tmp_path):
    """Two runs that a test may change."""
    root = rec.data_root(tmp_path)
    races.done(root, IDS["done"])
    races.failed(root, IDS["failed"])
    return root


def act(root, *keys, wanted, size=(240, 67), **options):
    """The runs screen after keys, once a text is there."""
    seen = []

    async def steps(app, pilot):
        await pilot.press("5")
        await until(pilot, lambda: "╭─ runs 2" in screen_text(app), "the list")
        await pilot.press(*keys)
        await until(pilot, lambda: wanted in screen_text(app), wanted)
        seen.append(screen_text(app))

    drive(root, steps, size=size, **options)
    return seen[0]


def test_note_is_written_beside_the_run_and_shown(own_root):
    text = act(own_root, "N", *"warm [x]", "enter", wanted="warm [x]")

    row = next(line for line in text.splitlines() if "warm [x]" in line)
    assert IDS["failed"] in row
    assert own_root.run(IDS["failed"]).note.read_text() == "warm [x]\n"


def test_note_stands_below_a_narrow_list(own_root):
    own_root.run(IDS["failed"]).note.write_text("warm [/bold]\n")
    text = act(own_root, wanted="warm [/bold]", size=(80, 24))

    assert text.splitlines()[-2].endswith("warm [/bold] ─╯")


def test_run_is_deleted_only_once_its_id_is_typed(own_root):
    text = act(own_root, "D", *"yes", "enter", wanted="nothing was done")
    (asked,) = (line for line in text.splitlines() if f"Delete {IDS['failed']}" in line)
    assert asked.index("Delete") > 10  # in the middle
    assert own_root.run(IDS["failed"]).plan.is_file()

    act(own_root, "D", *IDS["failed"], "enter", wanted="runs 1")
    assert not own_root.run(IDS["failed"]).root.exists()
    assert own_root.run(IDS["done"]).plan.is_file()


def test_escape_leaves_the_run_as_it_is(own_root):
    text = act(own_root, "D", *IDS["failed"], "escape", "N", *"x", "escape", wanted="runs 2")

    assert "Delete" not in text
    assert not own_root.run(IDS["failed"]).note.exists()
    assert own_root.run(IDS["failed"]).plan.is_file()


def test_viewer_that_only_looks_neither_notes_nor_deletes(own_root):
    text = act(own_root, "N", "D", wanted="runs 2", is_readonly=True)

    assert "Note beside" not in text
    assert "Delete" not in text


def test_living_run_is_not_deleted_from_the_screen(own_root):
    with held(own_root.run(IDS["failed"])):
        text = act(own_root, "D", wanted="is alive: stop it first")

    assert "Type the id" not in text
