"""The doctor: host, GPUs from fakes, disk, measurements by a child, what a run may be expected."""

import os
import time
from dataclasses import replace

import pynvml
import pytest

from harness import bundle, doctor, launch
from harness.doctor import ceilings, disk, gpus, host, prospects
from harness.doctor.check import Check
from harness.fake_nvml import FakeNvml
from harness.hardware import Detection, detect, library
from nmoe.config import Hardware
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
PROBE = "tests.harness.fake_probe"
HEALTHY = {
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlDeviceGetCudaComputeCapability": [9, 0],
    "nvmlDeviceGetMemoryInfo": {"total": 150_000_000_000, "used": 0, "free": 150_000_000_000},
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetClockInfo": {"by": {"1": 345, "2": 2619}},
    "nvmlDeviceGetMaxClockInfo": {"by": {"1": 1980, "2": 3201}},
    "nvmlDeviceGetCurrentClocksEventReasons": 1,
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetTotalEccErrors": 0,
    "nvmlDeviceGetRemappedRows": [0, 0, 0, 0],
    "nvmlDeviceGetComputeRunningProcesses": [],
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetNvLinkState": {"by": {str(link): 1 for link in range(18)}},
}


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path / "data", reason="a test")


def examined(*each: dict) -> list[Check]:
    """The checks of a machine with these GPUs."""
    nvml = FakeNvml({"gpus": [HEALTHY | changes for changes in each]}, real=pynvml)
    return list(gpus.examine(detect(nvml, environ={}), nvml))


def named(checks, name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


# ------------------------------------------------------------------------------------------ GPUs


def test_healthy_gpus_share_their_lines_and_want_nothing():
    checks = examined({}, {}, {})

    assert {check.verdict for check in checks} == {"ok"}
    assert not any(check.fix for check in checks)
    assert named(checks, "power 0-2").value == "limit 700 W"
    assert named(checks, "NVLink 0-2").value == "18 of 18 links are up"
    assert named(checks, "clocks 0-2").value.startswith("SM 345 of 1,980 MHz, memory 2,619 of")


WORN = [
    ({"nvmlDeviceGetEnforcedPowerLimit": 450_000}, "power 1", "note", "smi -i 1 -pl 700"),
    ({"nvmlDeviceGetCurrentClocksEventReasons": 0x40}, "throttle 1", "problem", "Cool it"),
    ({"nvmlDeviceGetCurrentClocksEventReasons": 0x04}, "throttle 1", "note", "nvidia-smi"),
    ({"nvmlDeviceGetEccMode": [0, 1]}, "ECC 1", "note", "-i 1 -e 1"),
    ({"nvmlDeviceGetTotalEccErrors": 3}, "ECC 1", "problem", "Reset the GPU"),
    ({"nvmlDeviceGetRemappedRows": [1, 1, 1, 0]}, "memory rows 1", "problem", "-i 1 --gpu-reset"),
    ({"nvmlDeviceGetRemappedRows": [1, 1, 0, 1]}, "memory rows 1", "problem", "GPU 1 replaced"),
    ({"nvmlDeviceGetCurrPcieLinkWidth": 8}, "PCIe 1", "note", "seat GPU 1"),
    ({"nvmlDeviceGetNvLinkState": {"by": {"0": 1, "1": 0}}}, "NVLink 1", "note", "fabric"),
    (
        {"nvmlDeviceGetComputeRunningProcesses": [{"pid": 4242, "usedGpuMemory": 3 << 30}]},
        "other programs 1", "note", "host's",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "name", "verdict", "fix"), WORN)
def test_gpu_that_differs_stands_alone_with_its_fix(changes, name, verdict, fix):
    nvml_process = [
        pynvml.c_nvmlProcessInfo_t(pid=each["pid"], usedGpuMemory=each["usedGpuMemory"])
        for each in changes.get("nvmlDeviceGetComputeRunningProcesses", ())
    ]
    if nvml_process:
        changes = {"nvmlDeviceGetComputeRunningProcesses": nvml_process}
    checks = examined({}, changes, {})

    found = named(checks, name)
    assert found.verdict == verdict
    assert fix in found.fix
    topic = name.removesuffix(" 1")
    assert {named(checks, f"{topic} {index}").verdict for index in (0, 2)} == {"ok"}
    assert [check.name for check in checks if check.verdict != "ok"] == [name]


def test_program_on_a_gpu_is_named_by_pid_and_memory():
    process = pynvml.c_nvmlProcessInfo_t(pid=4242, usedGpuMemory=3 << 30)
    found = named(examined({"nvmlDeviceGetComputeRunningProcesses": [process]}), "other programs 0")

    assert found.value == "1 (pid 4242), 3 GiB"


def test_what_a_gpu_cannot_tell_is_left_out():
    silent = dict.fromkeys(HEALTHY, {"error": "NotSupported"})
    checks = examined(silent | {"nvmlDeviceGetName": "NVIDIA H200"})

    assert [check.name for check in checks if check.name.endswith(" 0")] == ["gpu 0"]


def test_gpu_that_is_lost_meanwhile_is_a_problem():
    checks = examined({}, {"nvmlDeviceGetEnforcedPowerLimit": {"error": "GpuIsLost"}})

    assert ("gpu 1", "problem", "lost") in [
        (each.name, each.verdict, each.value) for each in checks
    ]
    assert named(checks, "power 0").verdict == "ok"


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.json")), ids=lambda path: path.stem)
def test_every_machine_is_examined_without_measuring_it(path, root, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a fake machine was measured")

    monkeypatch.setattr(launch, "lines_of", never)
    monkeypatch.setattr(disk, "measure", never)
    checks = list(doctor.examine(detect(fake=path), root, nvml=library(path)))

    assert named(checks, "data root").verdict == "ok"
    assert all(check.fix for check in checks if check.verdict == "problem")
    assert not root.path.exists()  # looking changes nothing


# ------------------------------------------------------------------------------------------ host


def fake_root(tmp_path, **files: str):
    """A /sys with these files; `__` stands for a slash."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "dev" / "shm").mkdir(parents=True, exist_ok=True)
    return tmp_path


CLOCK = "sys__devices__system__clocksource__clocksource0__current_clocksource"


@pytest.mark.parametrize(
    ("files", "name", "verdict", "value"),
    [
        ({CLOCK: "tsc"}, "clock", "ok", "tsc"),
        ({CLOCK: "hpet"}, "clock", "note", "hpet"),
        ({}, "clock", "ok", "N/A"),
        ({"sys__fs__cgroup__cpu.max": "50000 100000"}, "cpu quota", "note", "0.5 CPUs"),
        ({"sys__fs__cgroup__cpu.max": "max 100000"}, "cpu quota", "ok", "none"),
        (
            {
                "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "100000000",
                "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
            },
            "cpu quota", "ok", "1000 CPUs",
        ),
        ({"sys__fs__cgroup__cpu__cpu.cfs_quota_us": "-1"}, "cpu quota", "ok", "none"),
        ({"sys__fs__cgroup__cpu.max": "rubbish"}, "cpu quota", "ok", "none"),
        ({"sys__fs__cgroup__memory.max": "1073741824"}, "memory limit", "ok", "1 GiB"),
        ({"sys__fs__cgroup__memory.max": "max"}, "memory limit", "ok", "none"),
    ],
)  # fmt: skip
def test_limits_of_clock_and_container(files, name, verdict, value, tmp_path):
    detection = Detection(hardware=Hardware(cpu="Some CPU", cores=2))
    found = named(host.examine(detection, root=fake_root(tmp_path, **files)), name)

    assert (found.verdict, found.value) == (verdict, value)
    assert bool(found.fix) == (verdict == "note")


def test_version_below_the_floor_of_the_project_is_told(tmp_path, monkeypatch):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[project]\ndependencies = ["torch>=99.1", "numpy>=2.3,<9"]\n')
    monkeypatch.setattr(host, "PYPROJECT", pyproject)
    checks = list(host.examine(detect(fake=SCENARIOS / "none.json")))

    assert named(checks, "torch").verdict == "note"
    assert named(checks, "torch").expected == ">= 99.1"
    assert named(checks, "numpy").verdict == "ok"


# ------------------------------------------------------------------------------------------ disk


def test_disk_is_measured_and_left_as_it_was(tmp_path):
    speed = disk.measure(tmp_path)

    assert speed.write > 1e6
    assert speed.read > 1e6
    assert list(tmp_path.iterdir()) == []


def test_disk_slower_than_the_loader_is_told(tmp_path, monkeypatch):
    root = DataRoot(path=tmp_path, reason="a test")
    monkeypatch.setattr(disk, "measure", lambda _: disk.Speed(write=4e6, read=2e6))
    slow = list(disk.examine_speed(root, tok_s=1.2e6, checkpoint_bytes=8_000_000))
    fast = list(disk.examine_speed(root, tok_s=0.9e6, checkpoint_bytes=None))

    assert named(slow, "disk read").verdict == "note"
    assert "7.63 MiB of a checkpoint in 2.00 s" in named(slow, "disk write").value
    assert named(fast, "disk read").verdict == "ok"
    assert "checkpoint" not in named(fast, "disk write").value


def test_disk_that_takes_no_file_is_told(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(disk, "measure", full)
    root = DataRoot(path=tmp_path, reason="a test")
    (found,) = disk.examine_speed(root, tok_s=None, checkpoint_bytes=None)

    assert (found.verdict, found.value) == ("note", "not measured: No space left on device")


# -------------------------------------------------------------------------------------- measured

H100 = Detection(hardware=Hardware(cpu="Some CPU", cores=8, gpu="H100", num_gpus=2), cuda="13.0")


def measured(monkeypatch, mode: str, detection: Detection = H100, **options) -> list[Check]:
    monkeypatch.setenv("FAKE_PROBE", mode)
    return list(ceilings.examine(detection, module=PROBE, **options))


def test_measurements_stand_beside_what_such_gpus_did_before(monkeypatch, tmp_path):
    row = (
        '{"what": "ceiling %s", "shape": "", "implementation": "torch", "us": null, "rate": %s,'
        ' "unit": "%s", "gpu": "NVIDIA H100 80GB HBM3", "gpus": 1, "commit": "c", "date": "2026"}\n'
    )
    (tmp_path / "rows.jsonl").write_text(
        row % ("matmul", 800, "TFLOP/s") + row % ("copy", 3000, "GB/s")
    )
    checks = measured(monkeypatch, "gpu", results=tmp_path)

    assert named(checks, "torch's CUDA").expected == "the driver's 13.0 or older"
    matmul, copy = named(checks, "matmul 0"), named(checks, "copy 1")
    assert (matmul.verdict, matmul.value) == ("ok", "790 TFLOP/s (8192^3)")
    assert matmul.expected == "about 800 TFLOP/s, as such GPUs did before"
    assert (copy.verdict, copy.expected) == ("note", "about 3000 GB/s, as such GPUs did before")
    assert copy.fix
    peer = named(checks, "peer 0 1")
    assert (peer.verdict, peer.value) == ("problem", "GPU 0 cannot reach the memory of GPU 1")
    assert "--ipc=host" in peer.fix


def test_driver_older_than_the_cuda_of_torch_is_told(monkeypatch, tmp_path):
    old = replace(H100, cuda="12.4")
    found = named(measured(monkeypatch, "gpu", old, results=tmp_path), "torch's CUDA")

    assert (found.verdict, found.fix) == ("note", "Update the driver.")


def test_gpu_without_earlier_rows_has_nothing_expected(monkeypatch, tmp_path):
    found = named(measured(monkeypatch, "gpu", results=tmp_path), "matmul 0")

    assert (found.verdict, found.expected) == ("ok", "")


def test_rubbish_of_the_child_is_shown_and_passed_over(monkeypatch):
    checks = measured(monkeypatch, "rubbish")

    assert [check.verdict for check in checks] == ["note"] * 5 + ["ok"]
    assert checks[-1].value == "2"


@pytest.mark.parametrize(
    ("mode", "deadline_s", "words"),
    [
        ("crash", 60.0, "ended with 1: ImportError: libcudart.so.13: cannot open shared object"),
        ("hang", 2.0, "was not done in 2 s"),
    ],
)
def test_child_that_fails_is_a_problem_behind_what_it_said(mode, deadline_s, words, monkeypatch):
    began = time.monotonic()
    *before, last = measured(monkeypatch, mode, deadline_s=deadline_s)

    assert [check.name for check in before] == ["torch's threads"]
    assert last.verdict == "problem"
    assert words in last.value
    assert time.monotonic() - began < 30


def test_child_is_gone_when_nobody_listens_to_it(monkeypatch):
    monkeypatch.setenv("FAKE_PROBE", "hang")
    lines = launch.lines_of(PROBE, deadline_s=600)
    next(lines)
    began = time.monotonic()
    lines.close()
    assert time.monotonic() - began < 10


# -------------------------------------------------------------------------------- a real machine


def test_first_findings_come_before_anything_is_measured(root, monkeypatch):
    def never(*_, **__):
        raise AssertionError("measured before it was asked for")

    monkeypatch.setattr(launch, "lines_of", never)
    monkeypatch.setattr(disk, "measure", never)
    checks = doctor.examine(detect(), root)

    assert next(checks).name == "python"
    assert all(check.name != "matmul" for check in doctor.examine(detect(), root, is_quick=True))


def test_this_machine_is_measured(tmp_path):
    root = DataRoot(path=tmp_path, reason="a test")
    checks = list(doctor.examine(detect(), root))
    rates = [check for check in checks if check.name.split()[0] in ("matmul", "copy")]

    assert {check.name.split()[0] for check in rates} == {"matmul", "copy"}
    assert all(float(check.value.split()[0].replace(",", "")) > 0 for check in rates)
    assert named(checks, "disk read").value.endswith("/s")


def test_run_that_cannot_be_chosen_is_told(root, monkeypatch):
    detection = replace(detect(), num_nodes=2)
    found = prospects.choose(detection, root)

    assert isinstance(found, Check)
    assert found.verdict == "problem"
    assert "2 nodes" in found.value
    assert bundle.status(root) == "not fetched"
