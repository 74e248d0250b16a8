"""The doctor's quick findings: GPUs on described machines, containers and clocks in made trees."""

import errno
import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from harness import doctor, hardware, launch, plan, preflight, tables
from harness.doctor import container, disk, gpus, host, prospects
from harness.doctor.check import Check, harmless
from harness.errors import UsageError
from harness.fake_nvml import FakeNvml
from nmoe.memory import estimate
from nmoe.paths import DataRoot
from tests.conftest import REPO_ROOT

SCENARIOS = REPO_ROOT / "tests" / "data" / "hardware"
TOPICS = (
    *("power limit", "clocks now", "throttle now", "ECC", "remapped rows", "other processes"),
    *("PCIe", "NVLinks"),
)


@pytest.fixture
def root(tmp_path):
    return DataRoot(path=tmp_path, reason="test")


def gpu_checks(scenario) -> list[Check]:
    nvml = FakeNvml(scenario, real=pynvml)
    return list(gpus.examine(hardware.detect(nvml, environ={}), nvml))


def described(name: str, **changes) -> list[Check]:
    """The findings about a machine of the files, all its GPUs changed."""
    scenario = json.loads((SCENARIOS / f"{name}.json").read_text())
    scenario["gpus"] = [gpu | changes for gpu in scenario["gpus"]]
    return gpu_checks(scenario)


def of(checks: list[Check], name: str) -> Check:
    (check,) = [check for check in checks if check.name == name]
    return check


def plan_on(name: str, root: DataRoot, **options):
    detection = hardware.detect(fake=SCENARIOS / f"{name}.json")
    return plan.resolve(preset=None, detection=detection, root=root, **options)


# ---------------------------------------------------------------------------------------- GPUs


def test_healthy_gpus_have_a_line_a_topic_and_nothing_to_mend():
    checks = described("b200x8_healthy")
    assert [check.name for check in checks] == [
        *("gpu 0-7", "driver"),
        *(f"{topic} 0-7" for topic in TOPICS),
    ]
    assert {(check.verdict, check.fix) for check in checks} == {("ok", "")}
    assert of(checks, "power limit 0-7").value == "1000 W"
    assert of(checks, "clocks now 0-7").value == "SM 345 of 1965 MHz, memory 3996 of 3996 MHz"
    assert of(checks, "PCIe 0-7").value == "x16 (gen 1 now, gen 5 at most)"
    assert of(checks, "NVLinks 0-7").value == "18 of 18 up"


@pytest.mark.parametrize(
    ("name", "verdict", "value", "fix"),
    [
        ("driver", "problem", "550.54.15, CUDA 12.4", "Update the driver"),
        ("power limit 0-1", "note", "500 W", "sudo nvidia-smi -pl 700 -i 0,1"),
        ("power limit 2-7", "ok", "700 W", ""),
        ("ECC 2", "problem", "2 uncorrected since the driver was loaded, 5 ever", "gpu-reset -i 2"),
        ("ECC 7", "note", "off", "nvidia-smi -e 1 -i 7"),
        ("remapped rows 2", "problem", "3, pending until a reset", "--gpu-reset -i 2"),
        ("remapped rows 3", "problem", "8, one could not be remapped", "Have it replaced"),
        ("throttle now 4", "problem", "slowed by heat, power-capped", "-d TEMPERATURE -i 4"),
        ("PCIe 5", "note", "x8 (gen 1 now, gen 5 at most)", "another slot"),
        ("NVLinks 7", "note", "16 of 18 up", "nvlink -s -i 7"),
        ("other processes 0-5,7", "ok", "none", ""),
    ],
)  # fmt: skip
def test_trouble_is_told_of_its_gpu_alone_with_its_fix(name, verdict, value, fix):
    check = of(described("h100x8_troubled"), name)
    assert (check.verdict, check.value) == (verdict, value)
    assert fix in check.fix
    assert bool(check.fix) == (verdict != "ok")


def test_other_processes_are_named_without_their_escapes():
    check = of(described("h100x8_troubled"), "other processes 6")
    assert check.verdict == "note"
    assert check.value == "python3 (pid 4242), ?[31mminer? (pid 4243): 68 GiB"


@pytest.mark.parametrize(
    ("processes", "value"),
    [
        ([{"pid": 7, "usedGpuMemory": None}], "N/A (pid 7): N/A"),
        (
            [{"pid": pid, "usedGpuMemory": 2**30} for pid in range(5)],
            "N/A (pid 0), N/A (pid 1), N/A (pid 2), 2 more: 5 GiB",
        ),
    ],
)
def test_processes_that_cannot_be_named_are_still_counted(processes, value):
    checks = described("b200x8_healthy", nvmlDeviceGetComputeRunningProcesses=processes)
    assert of(checks, "other processes 0-7").value == value


def test_nothing_that_a_gpu_does_not_tell_is_a_number():
    checks = [check for check in described("not_available") if check.name.rpartition(" ")[2] == "0"]
    assert len(checks) == 1 + len(TOPICS)
    for check in checks:
        assert check.verdict == "ok"
        assert "N/A" in check.value
        if not check.name.startswith("gpu"):
            assert not re.search(r"\d", check.value), check
        assert not check.expected


@pytest.mark.parametrize(
    ("bits", "verdict", "value"),
    [
        (0x00, "ok", "none"),
        (0x01, "ok", "none"),
        (0x02, "note", "held to clocks that were set"),
        (0x04, "note", "power-capped"),
        (0x08, "problem", "slowed by hardware or power brake"),
        (0x20, "problem", "slowed by heat"),
        (0x80 | 0x04, "problem", "slowed by hardware or power brake, power-capped"),
    ],
)
@pytest.mark.parametrize("name", ["EventReasons", "ThrottleReasons"])
def test_throttle_reasons_are_told_by_new_and_old_drivers(name, bits, verdict, value):
    changes = {"nvmlDeviceGetCurrentClocksEventReasons": {"error": "FunctionNotFound"}}
    changes[f"nvmlDeviceGetCurrentClocks{name}"] = bits
    check = of(described("b200x8_healthy", **changes), "throttle now 0-7")
    assert (check.verdict, check.value) == (verdict, value)


def test_links_of_a_single_gpu_are_told_and_not_judged():
    off = {"by": {str(link): 0 for link in range(18)}}
    check = of(described("b200x8_healthy", count=1, nvmlDeviceGetNvLinkState=off), "NVLinks 0")
    assert (check.verdict, check.value, check.expected) == ("ok", "0 of 18 up", "")
    check = of(described("b200x8_healthy", count=2, nvmlDeviceGetNvLinkState=off), "NVLinks 0-1")
    assert (check.verdict, check.value, check.expected) == ("note", "0 of 18 up", "18")


def test_gpu_that_is_lost_while_it_is_asked_is_asked_no_more():
    scenario = json.loads((SCENARIOS / "b200x8_healthy.json").read_text())
    whole = {**scenario["gpus"][0], "count": 1}
    scenario["gpus"] = [whole, {**whole, "nvmlDeviceGetRemappedRows": {"error": "GpuIsLost"}}]
    checks = gpu_checks(scenario)
    check = of(checks, "gpu 1")
    assert (check.verdict, check.value) == ("problem", "lost just now")
    assert [check.name for check in checks][-3:] == ["other processes 0", "PCIe 0", "NVLinks 0"]


@pytest.mark.parametrize(("name", "verdict"), [("mig", "problem"), ("lost", "problem"),
                                               ("none", "note"), ("rtx5090", "note")])  # fmt: skip
def test_gpu_that_is_there_and_cannot_be_used_is_a_problem(name, verdict):
    check = of(described(name), "gpu")
    assert check.verdict == verdict
    assert check.fix


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([0, 1, 2], "0-2"), ([3, 1], "1,3"), ([5, 0, 1, 7, 6], "0-1,5-7")],
)
def test_spans_are_short(numbers, text):
    assert gpus.spans(numbers) == text


def test_driver_floor_is_that_of_the_bootstrap():
    script = (REPO_ROOT / "scripts" / "bootstrap.sh").read_text()
    assert re.search(r"^min_driver=(\d+)$", script, re.M)[1] == gpus.MIN_DRIVER


# ----------------------------------------------------------------------------- host, containers


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text + "\n")


def test_versions_are_judged_by_the_floors_of_the_project(monkeypatch):
    versions = {"torch": "2.10.9", "triton": "3.6.0+git1", "numpy": "10.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    checks = list(host.examine(hardware.detect(fake=SCENARIOS / "none.json")))
    found = {check.name: (check.verdict, check.expected) for check in checks}
    assert found["torch"] == ("problem", ">= 2.11")
    assert found["triton"] == ("ok", ">= 3.6")
    assert found["numpy"] == ("ok", ">= 2.3")
    assert found["nvidia-ml-py"] == ("problem", ">= 13")
    assert found["python"] == ("ok", ">= 3.11")


def test_floors_are_absent_without_a_project_file(tmp_path):
    assert host.floors(tmp_path / "pyproject.toml") == {}


@pytest.mark.parametrize(
    ("clock", "verdict", "value"),
    [
        ("tsc", "ok", "tsc"),
        ("kvm-clock", "ok", "kvm-clock"),
        ("hpet", "note", "hpet"),
        ("acpi_pm", "note", "acpi_pm"),
        (None, "ok", "N/A"),
    ],
)
def test_clock_source_is_judged_where_it_is_known(clock, verdict, value, tmp_path):
    if clock is not None:
        write(tmp_path, host.CLOCKSOURCE, clock)
    checks = list(host.examine(hardware.detect(), system=tmp_path))
    check = of(checks, "clock source")
    assert (check.verdict, check.value) == (verdict, value)


V2 = {"proc/self/cgroup": "0::/a/b"}
V1 = {"proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/c\n1:name=systemd:/x"}
FAR = {"proc/self/cgroup": "0::/kubepods/burstable/pod1"}  # a path of the host, not mounted here


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        ({}, None, None),
        (V2, None, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "max 100000"}, None, None),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "150000 100000"}, 1.5, None),
        # the least limit of all that it lies in
        (
            V2
            | {
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/memory.max": "max",
                "sys/fs/cgroup/a/memory.max": str(2**30),
            },
            2.0,
            2**30,
        ),
        (FAR | {"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5, None),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": str(2**29),
            },
            3.0,
            2**29,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu,cpuacct/c/cpu.cfs_period_us": "100000",
                "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
        (V2 | {"sys/fs/cgroup/a/b/cpu.max": "junk", "sys/fs/cgroup/memory.max": ""}, None, None),
        ({"proc/self/cgroup": "nonsense"}, None, None),
    ],
)
def test_limits_of_control_groups_are_found(files, cpus, memory, tmp_path):
    for path, text in files.items():
        write(tmp_path, path, text)
    limits = container.read_limits(tmp_path)
    assert (limits.cpus, limits.memory_bytes) == (cpus, memory)


def test_container_that_is_too_small_is_told_with_its_option(tmp_path, root):
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "10000 100000")
    write(tmp_path, "sys/fs/cgroup/memory.max", str(2**20))
    checks = list(container.examine(plan_on("none", root), system=tmp_path))
    cpu, memory = of(checks, "cpu limit"), of(checks, "memory limit")
    assert (cpu.verdict, cpu.value) == ("note", "0.1 CPUs of time")
    assert "docker run --cpus" in cpu.fix
    assert (memory.verdict, memory.value) == ("note", "1 MiB")
    assert "docker run --memory" in memory.fix


def test_shared_and_locked_memory_are_judged_by_what_the_run_needs(tmp_path, root, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    several = list(container.examine(plan_on("h200x2", root), system=tmp_path))
    shm, locked = of(several, "/dev/shm"), of(several, "locked memory")
    assert (shm.verdict, shm.value) == ("note", "absent")
    assert ">= 1 GiB" in shm.expected
    assert (locked.verdict, locked.value) == ("note", "64 KiB")
    for one in (plan_on("h200x1", root), None):
        checks = list(container.examine(one, system=tmp_path))
        assert of(checks, "/dev/shm").verdict == of(checks, "locked memory").verdict == "ok"
        assert of(checks, "/dev/shm").expected == of(checks, "locked memory").expected == ""


def test_few_open_files_are_a_note_with_the_command(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    check = of(list(container.examine(None)), "open files")
    assert (check.verdict, check.value) == ("note", "256")
    assert "ulimit -n 1024" in check.fix
    assert "4096" in check.fix


# ---------------------------------------------------------------------------------------- disk


def test_disk_is_measured_and_nothing_is_left_of_it(root, monkeypatch):
    monkeypatch.setattr(disk, "FILE_BYTES", 8 << 20)
    speed = disk.measure(root.path)
    assert speed.num_bytes == 8 << 20
    assert speed.write > 0
    assert speed.read > 0
    assert list(root.path.iterdir()) == []


def test_doctor_that_is_killed_leaves_no_file(tmp_path):
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom harness.doctor import disk\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"disk.FILE_BYTES = 1\ndisk.measure(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_disk_speed_is_judged_by_loader_and_checkpoints(root, monkeypatch):
    speed = disk.Speed(write=20e6, read=700e3, num_bytes=64 << 20)
    monkeypatch.setattr(disk, "measure", lambda _: speed)
    run = plan_on("h200x1", root)
    read, write_ = disk.examine_speed(root, run, tok_s=366_000.0)
    # two bytes a token
    assert (read.verdict, read.expected[:11]) == ("note", ">= 715 KiB/")
    assert "366K tok/s x 2 bytes" in read.expected
    seconds = run.checkpoint.every * run.train.batch_size * run.train.seq_len / 366_000
    assert preflight.checkpoint_bytes(run) / seconds > speed.write
    assert write_.verdict == "note"
    assert f"every {run.checkpoint.every:,} steps" in write_.expected
    read, write_ = disk.examine_speed(root, run, tok_s=None)
    assert (read.verdict, read.expected, write_.expected) == ("ok", "", "")


def test_disk_that_cannot_be_measured_says_why(root, monkeypatch):
    def full(_: Path) -> disk.Speed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk, "measure", full)
    (check,) = disk.examine_speed(root, None, tok_s=None)
    assert (check.verdict, check.value) == ("note", "not measured: No space left on device")


def test_room_is_judged_by_checkpoints_and_data_still_to_come(root, monkeypatch):
    run = plan_on("h200x1", root)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**36}))
    check = of(list(disk.examine(root, run)), "free space")
    assert (check.verdict, check.value) == ("problem", "64 GiB")
    assert "18.8 GiB of it for data" in check.expected
    check = of(list(disk.examine(root, plan_on("none", root))), "free space")
    assert check.verdict == "ok"
    assert "data" not in check.expected


def test_data_root_without_access_is_a_problem():
    nowhere = DataRoot(path=Path("/dev/null/below"), reason="test")
    (check,) = disk.examine(nowhere, None)
    assert (check.name, check.verdict) == ("data root", "problem")


# -------------------------------------------------------------------------------- the whole


def test_memory_of_the_preset_is_judged_against_the_gpu(root):
    run = plan_on("h200x1", root)
    memory = estimate(run, world=1)
    check = prospects._memory(run, memory, run.hardware.memory_bytes)
    assert check.verdict == "ok"
    assert "micro-batches of 32" in check.value
    assert "93 % of the GPU's 139.8 GiB" in check.expected
    unknown = prospects._memory(run, memory, None)
    assert (unknown.verdict, unknown.expected) == ("ok", "")
    small = prospects._memory(run, memory, memory.total)
    assert (small.verdict, small.fix) == ("problem", "Use more GPUs, or a smaller preset.")


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.json")), ids=lambda path: path.stem)
def test_every_machine_is_examined_without_measuring_it(path, tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a fake machine was measured")

    monkeypatch.setattr(launch, "lines_of", never)
    monkeypatch.setattr(disk, "measure", never)
    root = DataRoot(path=tmp_path / "root", reason="test")
    detection = hardware.detect(fake=path)
    checks = list(doctor.examine(detection, root, nvml=hardware.library(path)))

    assert of(checks, "data root").verdict == "ok"
    assert all(check.fix for check in checks if check.verdict != "ok")
    assert not root.path.exists()  # looking changes nothing


def test_preset_is_examined_where_it_is_named(root):
    fake = hardware.detect(fake=SCENARIOS / "h100x8.json")
    nvml = hardware.library(SCENARIOS / "h100x8.json")
    checks = list(doctor.examine(fake, root, nvml=nvml, preset="dense", num_gpus=4))
    assert of([c for c in checks if c.verdict == "ok"], "n speedrun dense").value.startswith(
        "dense on 4 x H100"
    )
    assert checks[-1].name == "measured"
    assert "described by a file" in checks[-1].value


def test_preset_that_this_machine_cannot_run_is_a_problem(root):
    none = hardware.detect(fake=SCENARIOS / "none.json")
    checks = list(doctor.examine(none, root, preset="super", is_quick=True))
    assert checks[-1].name == "n speedrun super"
    assert checks[-1].verdict == "problem"
    assert "n speedrun pocket" in checks[-1].fix


@pytest.mark.parametrize("options", [{"preset": "nosuch"}, {"num_gpus": 7}])
def test_what_was_named_and_cannot_be_is_a_usage_error(options, root):
    fake = hardware.detect(fake=SCENARIOS / "b200x8.json")
    with pytest.raises(UsageError):
        next(doctor.examine(fake, root, **options))


def test_lines_have_columns_of_fixed_widths_and_no_escapes():
    long = Check(name="other processes 0-5,7", verdict="problem", value="v" * 50, expected="e")
    short = Check(name="x", verdict="ok", value="\x1b[2J", expected="e", fix="do\nthis")
    first, second, fix = *tables.check_lines(long), *tables.check_lines(short)
    assert first.index("vvv") == second.index("?[2J")
    assert first.index("other") == second.index("x")
    assert second.endswith("  expected e")
    assert fix == "    → do?this"


def test_text_of_strangers_is_short_and_printable():
    assert harmless("a\x00b\u202ec") == "a?b?c"
    assert len(harmless("x" * 1000, most=30)) == 30
