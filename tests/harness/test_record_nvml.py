"""Recording a machine: what was answered is answered again, value by value, error by error."""

import json
from pathlib import Path

import pynvml
import pytest

from harness import record_nvml
from harness.doctor import gpus
from harness.fake_nvml import FakeNvml
from harness.hardware import detect
from harness.record_nvml import Recorder, record
from harness.sampler import Sampler

SCENARIOS = Path(__file__).parent.parent / "data" / "hardware"
RECORDED = sorted(SCENARIOS.glob("*_recorded.json")) or [
    pytest.param(None, marks=pytest.mark.skip(reason="no recording of a real machine is kept yet"))
]


def fake(scenario):
    return FakeNvml(json.loads(json.dumps(scenario)), real=pynvml)


def said_by(nvml, *, samples):
    """All that a machine says: what it is, how it is joined, and its samples."""
    found = detect(nvml, environ={})
    sampler = Sampler([gpu.index for gpu in found.gpus], nvml=nvml)
    topology = sampler.topology()
    return found, topology, [sampler.sample() for _ in range(samples)]


def described(name):
    scenario = json.loads((SCENARIOS / f"{name}.json").read_text())
    if name == "b200x8_busy":
        scenario["gpus"][0] |= {
            "count": 2,
            "nvmlDeviceGetTemperature": {"each": [60, {"error": "Timeout"}, 61, 62]},
            "nvmlDeviceGetRemappedRows": {"error": "NoPermission"},
        }
    return scenario


@pytest.mark.parametrize("name", ["b200x8_busy", "h200x2", "not_available", "mig", "lost_later"])
def test_recorded_machine_says_what_the_machine_said(name):
    scenario = described(name)
    recorded = record(fake(scenario), num_samples=12, every_s=0.0)
    expected = said_by(fake(scenario), samples=12)
    assert said_by(fake(recorded), samples=12) == expected


@pytest.mark.parametrize("name", ["b200x8_healthy", "h100x8_troubled"])
def test_recorded_machine_is_examined_as_the_machine_was(name):
    scenario = described(name)
    for gpu in scenario["gpus"]:
        gpu.pop("nvmlDeviceGetComputeRunningProcesses", None)  # of whom nothing is kept
    recorded = record(fake(scenario), num_samples=3, every_s=0.0)
    found = [
        list(gpus.examine(detect(nvml, environ={}), nvml))
        for nvml in (fake(scenario), fake(recorded))
    ]

    assert found[0] == found[1]
    assert len(found[0]) > 8


def test_programs_of_others_are_not_recorded():
    kept = json.dumps(record(fake(described("h100x8_troubled")), num_samples=1, every_s=0.0))

    assert "python3" not in kept
    assert "4242" not in kept


def test_uuids_are_not_recorded():
    scenario = described("h200x2")
    scenario["gpus"][0]["nvmlDeviceGetUUID"] = "GPU-secret"
    assert "secret" not in json.dumps(record(fake(scenario), num_samples=1, every_s=0.0))


def test_recorder_passes_answers_and_errors_on():
    recorder = Recorder(fake(described("mig")))
    handle = recorder.nvmlDeviceGetHandleByIndex(0)
    assert recorder.nvmlDeviceGetTemperature(handle, 0) == 34
    with pytest.raises(recorder.NVMLError_NotSupported):
        recorder.nvmlDeviceGetUtilizationRates(handle)


def test_machine_without_gpus_is_not_recorded(tmp_path, monkeypatch, capsys):
    none = fake({"system": {"nvmlInit": {"error": "LibraryNotFound"}}})
    monkeypatch.setattr(record_nvml.hardware, "library", lambda: none)
    assert record_nvml.main([str(tmp_path / "machine.json")]) != 0
    assert "no GPU to record" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_file_describes_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(record_nvml.hardware, "library", lambda: fake(described("h200x2")))
    monkeypatch.setattr(record_nvml.record, "__kwdefaults__", {"num_samples": 2, "every_s": 0.0})
    path = tmp_path / "machine.json"
    assert record_nvml.main([str(path)]) == 0
    assert detect(fake=path).hardware.num_gpus == 2


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path and path.stem)
def test_recordings_of_real_machines_are_sampled(path):
    found, topology, samples = said_by(fake(json.loads(path.read_text())), samples=10)
    assert found.gpus
    assert topology is not None
    energies = [[gpu.energy_j for gpu in sample] for sample in samples]
    for before, after in zip(energies, energies[1:], strict=False):
        assert all(a is None or b is None or b >= a for a, b in zip(before, after, strict=True))
    assert all(gpu.power_w and gpu.temperature_c for sample in samples for gpu in sample)
