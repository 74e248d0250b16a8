"""The experts screen: thresholds that know E and K, the map, one layer and one expert of it."""

import csv
import math

import numpy as np
import pytest

from nmoe import events as ev
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import drive, look, screen_text, see, until
from tui.screens import balance
from tui.screens.balance import Router
from tui.widgets.heatmap import LOAD_BOUNDS


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def router(num_experts=256, top_k=7, *, cv=0.2, active=None, max_load=1.5, step_tokens=524_288):
    event = ev.RouterEvent(
        step=100, layers=(3,), cv=(cv,), entropy=(0.9,), max_load=(max_load,), bias_range=(0.1,),
        experts_active=(num_experts if active is None else active,), record=9,
    )  # fmt: skip
    return Router(
        event=event, num_experts=num_experts, top_k=top_k, step_tokens=step_tokens, every=10
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "even"),
        ({"cv": 3.1}, "uneven"),
        ({"max_load": 5.0}, "uneven"),
        ({"active": 255}, "dead"),
        # 3,500 rows over 4,096 experts: chance alone leaves 1,700 of them without one
        ({"num_experts": 4096, "active": 2400, "step_tokens": 500}, "even"),
        ({"num_experts": 4096, "active": 500, "step_tokens": 500}, "dead"),
        ({"cv": math.sqrt(256 / 7 - 1), "active": 7}, "collapsed"),
        # 8 experts of which 2 are chosen: nothing can be above 4 x even
        ({"num_experts": 8, "top_k": 2, "max_load": 2.4}, "even"),
        ({"num_experts": 8, "top_k": 2, "max_load": 2.6}, "uneven"),
        ({"num_experts": 8, "top_k": 2, "cv": 1.0}, "uneven"),
    ],
)
def test_word_for_a_layer_depends_on_experts_and_top_k(changes, word):
    assert router(**changes).sign(0).word == word


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (8, 7), (64, 6), (256, 7), (4096, 7)])
def test_classes_ascend_and_end_below_what_can_be(num_experts, top_k):
    limits = balance.bounds(router(num_experts, top_k))

    assert list(limits) == sorted(limits)
    assert limits[-1] < num_experts / top_k or limits == LOAD_BOUNDS
    assert len(limits) == len(LOAD_BOUNDS)


def test_drift_is_the_fraction_of_rows_that_go_elsewhere():
    """A quarter of all rows moves from the first of four experts to the last; one layer stays."""
    past = np.array([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    now = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])

    assert balance.drift(now, past).tolist() == [0.25, 0.0]


def test_drift_by_chance_is_that_of_two_draws():
    found = router(64, 4, step_tokens=4096)
    draws = np.random.default_rng(0).multinomial(4096 * 4, [1 / 64] * 64, size=(2, 200))
    now, past = draws / (4096 * 4 / 64)

    assert balance.drift(now, past).mean() == pytest.approx(found.chance_drift, rel=0.02)


def test_limits_are_those_of_chance_and_collapse():
    """4 rows each of 8 experts by chance: CV sqrt(8 / 32); 2 chosen of 8: CV sqrt(3), 4 x even."""
    found = router(8, 2, step_tokens=16)

    assert found.chance_cv == pytest.approx(0.5)
    assert found.collapse_cv == pytest.approx(math.sqrt(3))
    assert found.highest == 4.0
    assert found.chance_dead == pytest.approx(8 * math.exp(-4))


def test_facts_name_the_hottest_the_coldest_and_the_dead():
    load = np.ones((1, 8))
    load[0, [2, 5, 6]] = 3.0, 0.0, 0.25
    text = "".join(span for group in balance.facts(router(8, 2), load, None) for row in group
                   for span, _ in row)  # fmt: skip

    assert "hottest 2 3.00" in text
    assert "coldest 6 0.25" in text
    assert "dead    5" in text


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (160, 48)])
def test_cursor_starts_at_the_hottest_and_tells_its_layer(root, size):
    race = races.healthy(root, stop=200)
    text = see(root, race.folder, "2", "right", until_text="rank 1 of 256", size=size)

    assert "E 256  K 7" in text
    assert "layer 6 expert 85" in text
    assert "▲ UNEVEN" in text
    assert "hottest 85" in text


def test_wide_screen_shows_all_layers_and_the_past_of_the_expert(root):
    race = races.healthy(root, stop=200)
    text = see(root, race.folder, "2", "right", until_text="load of expert 85 in layer 6",
               size=(160, 48))  # fmt: skip

    assert "× dead" in text  # layer 1 has an expert without a row
    assert "bias range" in text
    assert "collapsed: CV 596 %, 36.6 x even" in text


def test_row_of_the_table_moves_the_cursor_of_the_map(root):
    race = races.healthy(root, stop=200)
    text = see(root, race.folder, "2", "tab", "tab", "down", "down",
               until_text="layer 2 expert 0", size=(160, 48))  # fmt: skip

    assert "─ layer 2 ─" in text


def test_export_has_every_load(root):
    race = races.healthy(root, stop=200)
    text = see(root, race.folder, "2", "right", "e", "enter", until_text="written to",
               size=(160, 48))  # fmt: skip
    (path,) = root.exports.iterdir()
    rows = list(csv.DictReader(path.open()))

    assert path.name.startswith(f"{races.RUN_ID}-experts-")
    assert "csv" in text
    assert len(rows) == 12 * 256
    loads = {(row["layer"], row["expert"]): float(row["load_over_even"]) for row in rows}
    assert max(loads, key=loads.get) == ("6", "85")


def test_run_without_experts_or_loads_says_so(root):
    dense = races.Race(root)
    plan = races.make_plan()
    dense.begin(experts=plan.experts.__class__(num_experts=0, top_k=0, num_shared=0, hidden=0))
    assert "no router event yet" in look(root, run=dense.folder, keys=("2",))

    folder = rec.training(root).folder
    assert "no loads of experts" in see(root, folder, "2", until_text="no loads", size=(160, 48))


def test_loads_follow_the_run_and_stand_still_when_frozen(root):
    race = races.healthy(root, stop=100)
    texts = []

    async def steps(app, pilot):
        await pilot.press("2")
        await until(pilot, lambda: "step 100  E" in screen_text(app), "the first loads")
        race.train(*race.steps(110, start=100))
        await until(pilot, lambda: "step 110  E" in screen_text(app), "the next loads")
        await pilot.press("space")
        race.train(*race.steps(120, start=110))
        await until(pilot, lambda: "FROZEN +" in screen_text(app), "the badge")
        texts.append(screen_text(app))

    drive(root, steps, run=race.folder, size=(100, 30))

    assert "step 110  E" in texts[0]
    assert "step 120 / 12,000" in texts[0]
