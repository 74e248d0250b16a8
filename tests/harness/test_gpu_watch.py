"""Alerts of GPUs and their cost in tokens a second; energy a token."""

from dataclasses import replace

import pytest

from harness import gpu_watch
from harness.gpu_watch import TROUBLES, EnergyMeter, GpuWatch, Pace, topology_alerts
from harness.run_state import SLOWED
from nmoe.events import GpuEvent, TopologyEvent

POWER_CAP, HW_HEAT, BRAKE, IDLE = 0x04, 0x40, 0x80, 0x01
FINE = GpuEvent(index=0, util=99, sm_mhz=1900, sm_max_mhz=1965, power_w=900.0, power_limit_w=1000.0)


def gpus(count=8, *, among=(), **changes):
    """A sample of healthy GPUs, those in `among` changed."""
    return tuple(
        replace(FINE, index=index, **(changes if index in among else {})) for index in range(count)
    )


class Run:
    """A training run of one step event every five seconds, watched once a second."""

    def __init__(self):
        self.watch = GpuWatch()
        self.now = 0.0
        self.alerts = []

    def go(self, seconds, sample, *, tok_s=1_000_000.0):
        for _ in range(seconds):
            self.now += 1
            pace = Pace(step=10 * int(self.now // 5), tokens=int(self.now // 5), tok_s=tok_s)
            self.alerts += self.watch.see(sample, now=self.now, pace=pace)
        return [(alert.code, alert.message) for alert in self.alerts]


@pytest.fixture
def run():
    return Run()


def test_healthy_gpus_raise_nothing(run):
    assert run.go(300, gpus(among=(0,), throttle=IDLE)) == []


def test_power_cap_names_gpu_watts_clock_and_what_it_costs(run):
    run.go(60, gpus())
    capped = gpus(among=(6,), throttle=POWER_CAP, sm_mhz=1750, power_w=998.0)
    told = run.go(60, capped, tok_s=989_000.0)
    assert told == [
        (
            "gpu-power-cap",
            "GPU 6 is power-capped (998 of 1000 W, 1750 of 1965 MHz):"
            " 989K tok/s, 1.1 % below 1M tok/s without it",
        )
    ]
    assert run.alerts[0].level == "warning"
    told = run.go(40, gpus())
    assert told[1:] == [
        (
            "gpu-power-cap",
            "GPU 6 is no longer power-capped after 59 s:"
            " 989K tok/s, 1.1 % below 1M tok/s without it",
        )
    ]


def test_cost_is_not_made_up_when_there_was_no_time_without_the_trouble(run):
    told = run.go(100, gpus(among=range(8), throttle=POWER_CAP), tok_s=989_000.0)
    assert [message for _, message in told] == [
        "GPUs 0, 1, 2, 3, 4, 5, 6, 7 are power-capped (900 of 1000 W, 1900 of 1965 MHz)"
    ]


def test_trouble_that_costs_nothing_says_so(run):
    run.go(60, gpus())
    told = run.go(60, gpus(among=(1,), throttle=POWER_CAP))
    assert told[0][1].endswith("1M tok/s, no slower than before")


@pytest.mark.parametrize(("bits", "code"), [(HW_HEAT, "gpu-hot"), (BRAKE, "gpu-slowdown")])
def test_heat_and_power_brake_are_errors(run, bits, code):
    run.go(60, gpus())
    run.go(60, gpus(among=(3,), throttle=bits, temperature_c=92), tok_s=900_000.0)
    (alert,) = run.alerts
    assert (alert.code, alert.level) == (code, "error")
    assert "92 °C" in alert.message
    assert "10.0 % below" in alert.message


def test_straggler_is_the_gpu_whose_clock_is_far_below_the_others(run):
    run.go(60, gpus())
    told = run.go(60, gpus(among=(5,), sm_mhz=1300), tok_s=700_000.0)
    assert [code for code, _ in told] == ["gpu-straggler"]
    assert "GPU 5 is slower than the others (900 of 1000 W, 1300 of 1965 MHz)" in told[0][1]
    assert "30.0 % below 1M tok/s" in told[0][1]


def test_gpu_that_says_why_it_is_slow_is_no_straggler_beside(run):
    run.go(60, gpus())
    told = run.go(60, gpus(among=(5,), sm_mhz=1300, throttle=HW_HEAT), tok_s=700_000.0)
    assert [code for code, _ in told] == ["gpu-hot"]


def test_cost_at_the_end_is_that_of_the_trouble_and_not_of_the_time_after_it(run):
    run.go(60, gpus())
    run.go(20, gpus(among=(5,), throttle=POWER_CAP), tok_s=900_000.0)
    told = run.go(60, gpus())
    assert len(told) == 2
    assert told[1][1].endswith("after 19 s: 900K tok/s, 10.0 % below 1M tok/s without it")


def test_lone_gpu_is_no_straggler(run):
    assert run.go(90, gpus(1, among=(0,), sm_mhz=300)) == []


def test_flicker_is_one_episode_and_a_rare_or_short_one_none(run):
    run.go(60, gpus())
    for _ in range(10):
        run.go(3, gpus(among=(2,), throttle=POWER_CAP))
        run.go(3, gpus())
    assert len(run.alerts) == 1
    rare = Run()
    rare.go(60, gpus())
    for _ in range(20):
        rare.go(1, gpus(among=(2,), throttle=POWER_CAP))
        rare.go(9, gpus())
    assert rare.alerts == []
    other = Run()
    assert other.go(10, gpus(among=(2,), throttle=POWER_CAP)) == []
    assert other.go(100, gpus()) == []


def test_run_that_does_not_train_is_not_slowed_down(run):
    assert run.go(100, gpus(among=(0,), throttle=HW_HEAT, sm_mhz=200), tok_s=None) == []


def test_validation_is_no_end_of_a_trouble(run):
    run.go(60, gpus())
    capped = gpus(among=(6,), throttle=POWER_CAP)
    run.go(60, capped, tok_s=900_000.0)
    run.go(120, gpus(), tok_s=None)
    run.go(60, capped, tok_s=900_000.0)
    assert [alert.level for alert in run.alerts] == ["warning"]


def test_lost_gpu_is_told_once_and_others_go_on(run):
    told = run.go(5, (GpuEvent(index=0, is_lost=True), GpuEvent(index=1)))
    assert [code for code, _ in told] == ["gpu-lost"]


def test_memory_errors_count_from_the_start_of_the_run(run):
    assert run.go(3, gpus(among=(4,), ecc_uncorrected=7)) == []
    told = run.go(3, gpus(among=(4,), ecc_uncorrected=9, is_remap_pending=True))
    assert [message for _, message in told] == [
        "GPU 4 has memory rows to remap: reset it after the run",
        "GPU 4 had 2 uncorrected memory errors: do not trust it",
    ]


def test_silent_gpus_raise_nothing(run):
    assert run.go(120, tuple(GpuEvent(index=index) for index in range(8))) == []


def test_topology_warns_of_missing_links_and_narrow_slots():
    topology = TopologyEvent(
        indices=(0, 1), nvlinks=(18, 17), paths=(None,) * 4, pcie_gens=(5, None),
        pcie_widths=(8, None), pcie_max_widths=(16, 16),
    )  # fmt: skip
    assert [alert.message for alert in topology_alerts(topology)] == [
        "GPU 0 runs PCIe x8 of x16: reseat it, or see the slot",
        "GPU 1 has 17 NVLinks, others 18",
    ]


# --------------------------------------------------------------------------------------- energy


def energy(*joules):
    return tuple(GpuEvent(index=index, energy_j=value) for index, value in enumerate(joules))


def metered(*seconds):
    """What a meter says of (joules of two GPUs, tokens, tok_s), a second each."""
    meter = EnergyMeter()
    said = []
    for now, (joules, tokens, tok_s) in enumerate(seconds):
        pace = Pace(step=tokens // 100, tokens=tokens, tok_s=tok_s)
        said.append(meter.see(energy(joules, joules), now=float(now), pace=pace))
    return [event for event in said if event is not None]


def test_energy_is_that_between_step_events_over_their_tokens(monkeypatch):
    monkeypatch.setattr(gpu_watch, "ENERGY_EVERY_S", 0.0)
    said = metered((0, 0, 1.0), (50, 100, 1.0), (60, 100, 1.0), (70, 200, 1.0), (90, 300, 1.0))
    assert [(event.tokens, event.joules) for event in said] == [(100, 40.0), (200, 80.0)]


def test_energy_of_validations_and_of_a_reloaded_driver_is_left_out(monkeypatch):
    monkeypatch.setattr(gpu_watch, "ENERGY_EVERY_S", 0.0)
    said = metered(
        (0, 100, 1.0), (10, 200, 1.0), (500, 200, None), (510, 300, 1.0), (3, 400, 1.0),
        (13, 500, 1.0),
    )  # fmt: skip
    assert [event.joules for event in said] == [20.0, 40.0, 40.0, 60.0]


def test_energy_is_unknown_when_one_gpu_does_not_tell():
    meter = EnergyMeter()
    for now in range(30):
        sample = (GpuEvent(index=0, energy_j=float(now)), GpuEvent(index=1))
        assert meter.see(sample, now=float(now), pace=Pace(tokens=now, tok_s=1.0)) is None


def test_what_slows_a_gpu_is_what_marks_the_throughput():
    assert set(SLOWED) == {trouble.code for trouble in TROUBLES}
