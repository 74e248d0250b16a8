"""The host: versions against what the project asks for, its clock, what a container leaves."""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from harness import format as fmt
from harness.doctor.check import Check, judged
from harness.hardware import Detection, num_cores
from nmoe.paths import REPO_ROOT, code_version

PYPROJECT = REPO_ROOT / "pyproject.toml"
PACKAGES = ("torch", "triton", "numpy", "nvidia-ml-py")
# Clocks that are read without leaving the process: others cost microseconds a reading.
FAST_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")
# A rank opens shards, logs, checkpoints and sockets; 1,024 is the usual limit.
MIN_FILES = 1024
SHM = "dev/shm"


def examine(detection: Detection, *, root: Path = Path("/")) -> Iterator[Check]:
    """Everything that needs no GPU; `root` is where /sys and /proc are."""
    yield Check(name="python", verdict="ok", value=platform.python_version())
    floors = _floors(PYPROJECT)
    for package in PACKAGES:
        yield _package(package, floors.get(package, ""))
    yield _code()
    cores = num_cores()
    value = f"{detection.hardware.cpu}, {cores} cores"
    yield Check(name="cpu", verdict="ok", value=value)
    if not detection.hardware.is_fake:
        yield from _limits(root, cores)


def _floors(pyproject: Path) -> dict[str, str]:
    """The oldest version of each dependency that the project takes."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError):
        return {}
    found = (re.match(r"([\w-]+)>=([\d.]+)", text) for text in project["dependencies"])
    return {each[1]: each[2] for each in found if each}


def _package(name: str, floor: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        fix = "Delete .venv and run ./n again."
        return Check(name=name, verdict="problem", value="not installed", fix=fix)
    is_well = _numbers(version) >= _numbers(floor) if floor else None
    return judged(name, version, f">= {floor}", "Delete .venv and run ./n again.", is_well=is_well)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _code() -> Check:
    code = code_version()
    if code.commit is None:
        fix = "Clone the repository with git, so that results name their code."
        return Check(name="code", verdict="note", value="no git commit", fix=fix)
    if code.is_dirty:
        value, fix = f"{code.commit[:12]} with changes", "Commit, so that results name their code."
        return Check(name="code", verdict="note", value=value, fix=fix)
    return Check(name="code", verdict="ok", value=code.commit[:12])


def _limits(root: Path, cores: int) -> Iterator[Check]:
    clock = _read(root / "sys/devices/system/clocksource/clocksource0/current_clocksource")
    yield judged(
        "clock",
        clock or fmt.NOT_AVAILABLE,
        "one that is read without a system call",
        f"Start the kernel with clocksource={FAST_CLOCKS[0]}, if the CPU has one that can be used.",
        is_well=clock in FAST_CLOCKS if clock else None,
    )
    quota = _cpu_quota(root)
    yield judged(
        "cpu quota",
        "none" if quota is None else f"{quota:g} CPUs",
        f">= {cores} cores, as this process may use",
        "Give the container as much CPU time as it has cores (docker run --cpus).",
        is_well=quota is None or quota >= cores,
    )
    limit = _memory_limit(root)
    yield Check(
        name="memory limit", verdict="ok", value="none" if limit is None else fmt.bytes_(limit)
    )
    shm = root / SHM
    free = fmt.bytes_(shutil.disk_usage(shm).free) if shm.is_dir() else fmt.NOT_AVAILABLE
    yield Check(name="/dev/shm", verdict="ok", value=f"{free} free")
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = files == resource.RLIM_INFINITY
    yield judged(
        "open files",
        "no limit" if is_unlimited else fmt.count(files),
        f">= {fmt.count(MIN_FILES)}",
        f"Run `ulimit -n {MIN_FILES}` first.",
        is_well=is_unlimited or files >= MIN_FILES,
    )


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control group may use; None without a limit."""
    words = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(words) != 2:
        words = [
            _read(root / f"sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period")
        ]
    quota, period = words
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _memory_limit(root: Path) -> int | None:
    """Bytes that the control group may use; None where that is all there are."""
    group = root / "sys/fs/cgroup"
    text = _read(group / "memory.max") or _read(group / "memory/memory.limit_in_bytes")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(text) if text.isdecimal() and int(text) < total else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
