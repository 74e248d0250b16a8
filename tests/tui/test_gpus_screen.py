"""The GPUs screen: all that samples tell, what the run loses by it, and what is not known."""

import json
from dataclasses import replace

import pytest

from harness import runs
from nmoe import events as ev
from tests.tui import races
from tests.tui import recordings as rec
from tests.tui.screen import look, see
from tui.feed import RunView
from tui.screens import devices
from tui.widgets.rows import plain


@pytest.fixture
def root(tmp_path):
    return rec.data_root(tmp_path)


def facts_of(folder):
    return facts_in(runs.load(folder))


def facts_in(state):
    view = RunView(state=state, status="training", is_alive=True, now=0.0)
    return " ".join(plain(row) for group in devices.facts(view) for row in group)


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (100, 30), (160, 48)])
def test_trouble_and_silence_are_told_apart_from_work(root, size):
    text = look(root, run=races.healthy(root).folder, size=size, keys=("3",))

    for part in ("● ok", "▾ capped", "▲ slowed", "∅ n/a", "!91 °C", "999/1000 W", "6705 W of 7",
                 "P2P N/A", "-5.6 % of its median"):  # fmt: skip
        assert part in text
    line = next(line for line in text.splitlines() if "∅ n/a" in line)
    assert "0 %" not in line


def test_wide_screen_has_every_field_and_marks_what_held_the_throughput_back(root):
    text = look(root, run=races.healthy(root).folder, size=(160, 48), keys=("3",))

    for part in ("mem MHz", "3,996", "1.17 kWh", "151/180 GiB", "throughput, tok/s", "▲ throttle",
                 "▾ checkpoint", "GPU 6 is held back by heat"):  # fmt: skip
        assert part in text
    rule = next(line for line in text.splitlines() if "└" in line and "▲" in line)
    assert rule.index("▲") > rule.rindex("▾")


def test_price_of_a_token_is_power_over_throughput(root):
    """6,705 W at 524,288 tokens in 0.5512 s."""
    folder = races.healthy(root).folder

    assert f"{6705 / (524_288 / 0.5512) * 1e3:.2f} mJ/token now" in facts_of(folder)


def test_paths_between_gpus_and_the_energy_of_a_token_are_told_when_known(root):
    state = runs.load(races.healthy(root).folder)
    num = state.plan.world
    none = (None,) * num
    topology = ev.TopologyEvent(
        indices=tuple(range(num)), nvlinks=(18,) * num, paths=("nvlink",) * num * num,
        pcie_gens=none, pcie_widths=none, pcie_max_widths=none,
    )  # fmt: skip
    joined = replace(state, topology=topology)
    mixed = replace(topology, paths=("nvlink", "system", *("nvlink",) * (num * num - 2)))

    assert "P2P nvlink" in facts_in(joined)
    assert "P2P nvlink/system" in facts_in(replace(state, topology=mixed))
    assert "in all" not in facts_in(joined)
    energy = ev.EnergyEvent(step=10, tokens=1000, joules=12.5)
    assert "12.50 in all" in facts_in(replace(joined, energy=energy))


def test_gpu_with_a_lower_clock_than_the_others_is_behind_unless_it_says_why(root):
    state = runs.load(races.healthy(root).folder)
    fast = replace(state.gpus[0], throttle=0, sm_mhz=1900)
    slow = replace(fast, index=3, sm_mhz=1400)
    for last, expected in ((slow, {3}), (replace(slow, throttle=0x08), set())):
        sample = (fast, replace(fast, index=1), replace(fast, index=2), last)
        view = RunView(state=replace(state, gpus=sample), status="training", is_alive=True, now=0.0)
        assert {gpu.index for gpu in devices.gpus(view) if gpu.is_behind} == expected
        assert [gpu.rank for gpu in devices.gpus(view)] == [0, 1, 2, 3]


def test_activity_and_links_of_a_sample_reach_the_table(root):
    state = runs.load(races.healthy(root).folder)
    told = {"sm_frac": 0.5, "tensor_frac": 0.25, "nvlink_tx_bytes_s": 2e9, "nvlink_rx_bytes_s": 1e9}
    one = replace(state.gpus[0], **told)
    view = RunView(
        state=replace(state, gpus=(one, replace(one, index=1, nvlink_rx_bytes_s=None))),
        status="training", is_alive=True, now=0.0,
    )  # fmt: skip
    first, second = devices.gpus(view)

    assert (first.sm, first.tensor, first.nvlink_bytes_s) == (0.5, 0.25, 3e9)
    assert second.nvlink_bytes_s is None


def test_what_is_not_known_is_not_available(root):
    folder = rec.training(root, stop=100).folder
    text = look(root, run=folder, keys=("3",))

    assert "no GPU" in text
    assert "power N/A" in text
    assert "N/A mJ/token" in text
    assert "no alerts" in text


def test_lost_gpu_is_an_alert(root):
    text = look(root, run=rec.with_gpus(root), size=(100, 30), keys=("3",))

    assert "GPU 7 lost: fell off the bus" in text


def test_more_gpus_than_rows_keep_those_in_trouble(root):
    race = races.healthy(root, stop=100)
    sample = ev.GpuEvent(index=0, util=90, power_w=500.0)
    race.gpus(*(replace(sample, index=index) for index in range(8, 64)))
    text = look(root, run=race.folder, keys=("3",))

    assert "▲ slowed" in text
    assert "more:" in text


def test_export_is_the_newest_sample_of_every_gpu(root):
    see(root, races.healthy(root, stop=50).folder, "3", "e", "down", "enter",
        until_text="written to", size=(160, 48))  # fmt: skip
    (path,) = root.exports.iterdir()
    rows = json.loads(path.read_text())

    assert [row["index"] for row in rows] == list(range(8))
    assert rows[7]["util"] is None
    assert rows[6]["throttle"] == 0x20


def test_throughput_and_other_curves_go_back_when_resumed(root):

    state = runs.load(races.resumed(root).folder)

    assert set(state.curves) == {"tok_s", "ms", "grad_norm", "lr", "mfu"}
    for series in state.curves.values():
        assert list(series.steps) == list(state.losses.steps) == list(range(10, 2201, 10))
    assert [mark.kind for mark in state.marks] == ["checkpoint", "resume", "checkpoint", "throttle"]


@pytest.mark.parametrize("max_bytes", [700, 20_000, 1 << 20])
def test_alert_stands_at_its_step_however_much_is_read_at_a_time(root, max_bytes):
    race = races.healthy(root, stop=300)
    race.train(*race.steps(600, start=300), seconds=0.01)
    race.samples()
    reader = runs.RunReader(race.folder)
    while reader.read(max_bytes):
        pass

    assert [mark.step for mark in reader.state.marks] == [300, 600]
    assert reader.state.events == runs.load(race.folder).events
