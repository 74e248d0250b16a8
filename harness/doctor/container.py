"""What a container or control group leaves of the host: CPU time, memory, /dev/shm, limits.

Control groups of both versions, from this process's own up to the root: the least limit holds.
"""

import os
import resource
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import format as fmt
from harness import preflight
from harness.doctor.check import Check, judged
from harness.hardware import num_cores
from nmoe.config import Plan

CGROUP = "sys/fs/cgroup"
SHM = "dev/shm"
# What a login gives by default, and all that a run ever needed.
MIN_FILES = 1024
# "NCCL and Docker": `--shm-size=1g --ulimit memlock=-1` (NCCL user guide, troubleshooting).
NCCL_SHM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The CPUs' worth of time and the bytes that may be used; None without a limit."""

    cpus: float | None = None
    memory_bytes: int | None = None


def examine(plan: Plan | None, *, system: Path = Path("/")) -> Iterator[Check]:
    """Everything in reading order, against what `plan` needs where there is one."""
    limits, cores = read_limits(system), num_cores()
    yield judged(
        "cpu limit",
        "none" if limits.cpus is None else f"{limits.cpus:g} CPUs of time",
        expected=f">= {cores}, the cores of this process",
        is_well=limits.cpus is None or limits.cpus >= cores,
        fix="Give the container as much CPU time as cores (docker run --cpus).",
    )
    yield _memory(plan, limits)
    yield _shm(plan, system / SHM)
    yield _files()
    yield _memlock(plan)


def read_limits(system: Path = Path("/")) -> Limits:
    """The limits of the control groups that this process is in."""
    cpus: list[float] = []
    memory: list[int] = []
    for group in _groups(system):
        quota, _, period = _read(group / "cpu.max").partition(" ")
        if not period:
            quota, period = (_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if quota.isdecimal() and period.isdecimal() and int(period):
            cpus.append(int(quota) / int(period))
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if limit.isdecimal() and int(limit) < _total_bytes():
            memory.append(int(limit))
    return Limits(cpus=min(cpus, default=None), memory_bytes=min(memory, default=None))


def _groups(system: Path) -> Iterator[Path]:
    """Folders of the control groups of this process, each with all that it lies in.

    A container may see only its own part of the tree, as the root of what is mounted.
    """
    top = system / CGROUP
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "/")
        mount = top / controllers
        folder = mount / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mount))
    yield top


def _memory(plan: Plan | None, limits: Limits) -> Check:
    needed = None if plan is None else preflight.host_bytes(plan)
    limit = limits.memory_bytes
    return judged(
        "memory limit",
        "none" if limit is None else fmt.bytes_(limit),
        expected=f">= {fmt.bytes_(needed)} for ranks and a checkpoint" if needed else "",
        is_well=None if needed is None else limit is None or limit >= needed,
        fix="Give the container more memory (docker run --memory).",
    )


def _shm(plan: Plan | None, shm: Path) -> Check:
    """Ranks of a CPU run exchange rows there; NCCL puts its own buffers there."""
    free = shutil.disk_usage(shm).free if shm.is_dir() else None
    needed, whose = None, ""
    if plan is not None and plan.device == "cpu":
        needed, whose = preflight.peer_bytes(plan), "for the rows of all ranks"
    elif plan is not None and plan.world > 1:
        needed, whose = NCCL_SHM_BYTES, "as NCCL asks for"
    return judged(
        "/dev/shm",
        "absent" if free is None else f"{fmt.bytes_(free)} free",
        expected=f">= {fmt.bytes_(needed)} {whose}" if needed else "",
        is_well=(free or 0) >= needed if needed else None,
        fix="Enlarge it (docker run --shm-size=1g), or mount a tmpfs there.",
    )


def _files() -> Check:
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return judged(
        "open files",
        _shown(files, fmt.count(files)),
        expected=f">= {fmt.count(MIN_FILES)}",
        is_well=files == resource.RLIM_INFINITY or files >= MIN_FILES,
        fix=f"Run `ulimit -n {MIN_FILES}` first; the hard limit is {_shown(most, str(most))}.",
    )


def _memlock(plan: Plan | None) -> Check:
    """Memory that may be locked, which copies to and from GPUs do."""
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    is_asked = plan is not None and plan.device == "cuda" and plan.world > 1
    return judged(
        "locked memory",
        _shown(locked, fmt.bytes_(locked)),
        expected="no limit, as NCCL asks for" if is_asked else "",
        is_well=locked == resource.RLIM_INFINITY if is_asked else None,
        fix="Run `ulimit -l unlimited` first (docker run --ulimit memlock=-1).",
    )


def _shown(limit: int, text: str) -> str:
    return "no limit" if limit == resource.RLIM_INFINITY else text


def _total_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
