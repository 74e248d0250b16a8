"""Sampling of described machines: every value, N/A, lost GPUs, MIG, counters, activity, topology.

The machines are made up: their tables have the names and units of NVML, not readings of one.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pynvml
import pytest

from harness.fake_nvml import FakeNvml
from harness.sampler import Sampler

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"


def scenario(name: str) -> dict[str, Any]:
    return json.loads((SCENARIOS / f"{name}.json").read_text())


def fake(name: str, **changes: Any) -> FakeNvml:
    """The described machine, its first GPU changed."""
    machine = copy.deepcopy(scenario(name))
    if changes:
        machine["gpus"][0] |= changes
    return FakeNvml(machine, real=pynvml)


def test_sample_reports_every_value_and_energy():
    (event,) = Sampler([0], nvml=fake("h200x1")).sample()
    assert event.energy_j == pytest.approx(123456.789)
    assert event.power_w == pytest.approx(98.0)
    assert event.util == 0
    assert event.sm_mhz == 1965
    assert not event.is_lost


def test_sample_is_none_and_never_zero_when_the_gpu_does_not_tell():
    (event,) = Sampler([0], nvml=fake("not_available")).sample()
    assert event.util is None
    assert event.memory_used_bytes is None
    assert event.power_w is None
    assert event.energy_j is None
    assert event.temperature_c is None
    assert not event.is_lost


def test_sampler_asks_once_when_a_call_is_not_supported():
    nvml = fake("not_available")
    sampler = Sampler([0], nvml=nvml)
    for _ in range(5):
        sampler.sample()
    assert nvml.calls("nvmlDeviceGetUtilizationRates") == 1
    assert nvml.calls("nvmlDeviceGetClockInfo") == 2  # two clocks


def test_sampler_gives_up_after_three_failures_in_a_row_of_an_unknown_kind():
    broken = {"nvmlDeviceGetTemperature": {"error": "Unknown"}}
    nvml = FakeNvml({"gpus": [broken]}, real=pynvml)
    sampler = Sampler([0], nvml=nvml)
    for _ in range(6):
        sampler.sample()
    assert nvml.calls("nvmlDeviceGetTemperature") == 3


def test_sampler_keeps_asking_when_a_failure_passes():
    answers = {"each": [{"error": "Timeout"}, {"error": "Timeout"}, 40, {"error": "Timeout"}, 41]}
    nvml = FakeNvml({"gpus": [{"nvmlDeviceGetTemperature": answers}]}, real=pynvml)
    sampler = Sampler([0], nvml=nvml)
    seen = [sampler.sample()[0].temperature_c for _ in range(5)]
    assert seen == [None, None, 40, None, 41]


def test_sampler_never_touches_a_gpu_again_when_it_is_lost():
    nvml = fake("lost_later")
    sampler = Sampler([0], nvml=nvml)
    seen = [sampler.sample()[0] for _ in range(5)]
    assert [event.util for event in seen] == [97, 98, None, None, None]
    assert [event.is_lost for event in seen] == [False, False, True, True, True]
    assert nvml.calls("nvmlDeviceGetUtilizationRates") == 3


def test_sampler_of_no_gpus_needs_no_driver():
    sampler = Sampler([], nvml=fake("none"))
    assert sampler.sample() == ()
    sampler.close()


BUSY = "b200x8_busy"


def test_sample_has_traffic_activity_and_health_of_a_gpu_that_tells_all():
    (event,) = Sampler([0], nvml=fake(BUSY)).sample()
    assert (event.nvlink_tx_bytes_s, event.nvlink_rx_bytes_s) == (17000 << 20, 16000 << 20)
    assert (event.pcie_tx_bytes_s, event.pcie_rx_bytes_s) == (3 << 20, 5 << 20)
    assert (event.sm_frac, event.tensor_frac, event.dram_frac) == (0.88, 0.52, 0.41)
    assert event.power_w == 953.0  # the instant one, not the average
    assert (event.temperature_c, event.memory_temperature_c) == (66, 71)
    assert (event.ecc_corrected, event.ecc_uncorrected) == (12, 0)
    assert (event.remapped_rows, event.is_remap_pending) == (3, False)
    assert (event.sm_mhz, event.sm_max_mhz, event.throttle) == (1830, 1965, 4)


def test_sample_falls_back_to_average_power_and_old_reasons_when_the_driver_is_old():
    old = {
        "fields": {},
        "nvmlDeviceGetCurrentClocksEventReasons": {"error": "FunctionNotFound"},
        "nvmlDeviceGetCurrentClocksThrottleReasons": 8,
    }
    (event,) = Sampler([0], nvml=fake(BUSY, count=1, **old)).sample()
    assert event.power_w == 940.0
    assert event.throttle == 8
    assert event.memory_temperature_c is None


def test_traffic_is_none_where_gpm_does_not_tell_it():
    gpm = {"NVML_GPM_METRIC_PCIE_TX_PER_SEC": 2.0}
    (event,) = Sampler([0], nvml=fake(BUSY, gpm=gpm)).sample()
    assert (event.pcie_tx_bytes_s, event.pcie_rx_bytes_s) == (2 << 20, None)
    assert (event.nvlink_tx_bytes_s, event.sm_frac) == (None, None)


def test_activity_that_is_no_number_is_none():
    gpm = {"NVML_GPM_METRIC_DRAM_BW_UTIL": float("nan"), "NVML_GPM_METRIC_SM_UTIL": 50.0}
    (event,) = Sampler([0], nvml=fake(BUSY, gpm=gpm)).sample()
    assert (event.dram_frac, event.sm_frac) == (None, 0.5)


def test_no_counter_of_a_link_is_asked_for():
    """Asking for them corrupts the heap of who asks."""
    nvml = fake(BUSY)
    asked = []
    real = nvml.nvmlDeviceGetFieldValues
    nvml.nvmlDeviceGetFieldValues = lambda handle, ids: asked.extend(ids) or real(handle, ids)
    sampler = Sampler([0, 1], nvml=nvml)
    sampler.sample()
    fields = {pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_MEMORY_TEMP}
    assert {field for field, _ in asked} == fields


def test_fields_that_are_not_supported_are_asked_once():
    nvml = fake("h200x1")
    sampler = Sampler([0], nvml=nvml)
    asked = []
    real = nvml.nvmlDeviceGetFieldValues
    nvml.nvmlDeviceGetFieldValues = lambda handle, ids: asked.append(len(ids)) or real(handle, ids)
    for _ in range(4):
        sampler.sample()
    assert asked == [2]


def test_links_that_are_down_are_not_counted():
    down = {"by": {str(link): int(link < 4) for link in range(18)}}
    sampler = Sampler([0], nvml=fake(BUSY, nvmlDeviceGetNvLinkState=down))
    topology = sampler.topology()
    assert topology.nvlinks == (4,)


@pytest.mark.parametrize(
    "where",
    [
        {"fields": {"NVML_FI_DEV_POWER_INSTANT": {"error": "GpuIsLost"}}},
        {"gpm": {"NVML_GPM_METRIC_SM_UTIL": {"each": [{"error": "GpuIsLost"}]}}},
        {"nvmlDeviceGetTotalEccErrors": {"error": "ResetRequired"}},
        {"nvmlDeviceGetNvLinkState": {"error": "GpuIsLost"}},
        {"nvmlDeviceGetHandleByIndex": {"error": "Unknown"}},
    ],
)
def test_gpu_is_lost_wherever_it_is_noticed(where):
    sampler = Sampler([0], nvml=fake(BUSY, **where))
    assert [sampler.sample()[0].is_lost for _ in range(2)] == [True, True]
    topology = sampler.topology()
    assert topology.pcie_gens == (None,)
    sampler.close()


def function_names() -> list[str]:
    """All that a sample asks of a GPU."""
    nvml = fake(BUSY)
    sampler = Sampler([0, 1], nvml=nvml)
    sampler.sample()
    sampler.topology()
    return sorted({name for name, gpu, _ in nvml._calls if gpu == 0 and name.startswith("nvml")})


@pytest.mark.parametrize("error", [name for name in dir(pynvml) if name.startswith("NVMLError_")])
def test_no_error_of_a_call_reaches_the_caller(error):
    failing = {"error": error.removeprefix("NVMLError_")}
    for name in function_names():
        sampler = Sampler([0, 1], nvml=fake(BUSY, count=2, **{name: failing}))
        assert len(sampler.sample()) == len(sampler.sample()) == 2
        assert sampler.topology() is not None
        sampler.close()


def test_mig_gpu_and_silent_gpu_are_rows_of_nothing():
    for name in ("mig", "not_available"):
        sampler = Sampler([0], nvml=fake(name))
        event = sampler.sample()[0]
        assert (event.util, event.sm_frac, event.nvlink_tx_bytes_s) == (None, None, None)
        assert not event.is_lost
        assert sampler.topology().paths == ("self",)
        assert sampler.topology().nvlinks == (None,)


def test_slow_values_are_asked_every_tenth_sample_and_shown_in_between():
    nvml = fake(BUSY)
    sampler = Sampler([0], nvml=nvml)
    events = [sampler.sample()[0] for _ in range(11)]
    assert nvml.calls("nvmlDeviceGetTotalEccErrors") == 4
    assert {event.ecc_corrected for event in events} == {12}


def test_topology_names_the_way_from_each_gpu_to_each():
    nvlink = Sampler([0, 1], nvml=fake(BUSY)).topology()
    assert nvlink.paths == ("self", "nvlink", "nvlink", "self")
    assert (nvlink.nvlinks, nvlink.pcie_gens) == ((18, 18), (5, 5))
    p2p = {"by": {"0": 0, "2": 5}}
    assert Sampler([0, 1], nvml=fake(BUSY, nvmlDeviceGetP2PStatus=p2p)).topology().paths[1] == "p2p"
    none = {"by": {"0": 5, "2": 5}}
    host = fake(BUSY, nvmlDeviceGetP2PStatus=none, nvmlDeviceGetTopologyCommonAncestor=40)
    assert Sampler([0, 1], nvml=host).topology().paths[1] == "node"
    assert Sampler([0, 1], nvml=fake("not_available", count=2)).topology().paths[1] is None


@pytest.mark.gpu
def test_real_gpus_are_sampled_twice_and_tell_their_power():
    pynvml.nvmlInit()
    indices = range(pynvml.nvmlDeviceGetCount())
    sampler = Sampler(indices, nvml=pynvml)
    sampler.sample()
    events = sampler.sample()
    topology = sampler.topology()
    sampler.close()
    assert [event.index for event in events] == list(indices)
    assert all(event.power_w for event in events)
    assert topology is not None
    assert len(topology.paths) == len(indices) ** 2
