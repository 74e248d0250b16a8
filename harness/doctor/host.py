"""The host: versions against what the project asks for, the code, the CPU, the kernel's clock."""

import importlib.metadata
import platform
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from harness import format as fmt
from harness.doctor.check import Check, harmless, judged
from harness.hardware import Detection
from nmoe.paths import REPO_ROOT, code_version

PYPROJECT = REPO_ROOT / "pyproject.toml"
PACKAGES = ("torch", "triton", "numpy", "nvidia-ml-py")
INSTALL = "Delete .venv and run ./n again."
CLOCKSOURCE = "sys/devices/system/clocksource/clocksource0/current_clocksource"
# Clocks that the kernel lets a process read by itself; any other is a system call a reading.
VDSO_CLOCKS = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")


def examine(detection: Detection, *, system: Path = Path("/")) -> Iterator[Check]:
    """Everything in reading order; `system` is where /sys is."""
    yield _version("python", platform.python_version(), fix="Install a newer Python.")
    for package in PACKAGES:
        yield _package(package)
    yield _code()
    cpu = f"{detection.hardware.cpu}, {detection.hardware.cores} cores"
    yield Check(name="cpu", verdict="ok", value=harmless(cpu))
    if not detection.hardware.is_fake:
        yield _clock(system)


@cache
def floors(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """The oldest version of Python and of each dependency that the project takes."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        asked = [f"python{project['requires-python']}", *project["dependencies"]]
    except (OSError, ValueError, KeyError):
        return {}
    found = (re.match(r"([\w-]+)>=([\d.]+)", text) for text in asked)
    return {each[1]: each[2] for each in found if each}


def is_at_least(version: str, floor: str) -> bool:
    """Whether a version, its local part left out, is no older than another."""
    return numbers(version) >= numbers(floor)


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 11, 0) of 2.11.0rc1+cu130."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _version(name: str, version: str, *, fix: str) -> Check:
    floor = floors().get(name)
    return judged(
        name,
        version,
        expected=f">= {floor}" if floor else "",
        is_well=is_at_least(version, floor) if floor else None,
        fix=fix,
        otherwise="problem",
    )


def _package(name: str) -> Check:
    try:
        return _version(name, importlib.metadata.version(name), fix=INSTALL)
    except importlib.metadata.PackageNotFoundError:
        floor = floors().get(name)
        expected = f">= {floor}" if floor else ""
        return Check(
            name=name, verdict="problem", value="not installed", expected=expected, fix=INSTALL
        )


def _code() -> Check:
    code = code_version()
    if code.commit is None:
        fix = "Clone the repository with git, so that results name their code."
        return Check(name="code", verdict="note", value="no git commit", fix=fix)
    if code.is_dirty:
        value, fix = f"{code.commit[:12]} with changes", "Commit, so that results name their code."
        return Check(name="code", verdict="note", value=value, expected="no changes", fix=fix)
    return Check(name="code", verdict="ok", value=code.commit[:12])


def _clock(system: Path) -> Check:
    try:
        clock = (system / CLOCKSOURCE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        clock = ""
    return judged(
        "clock source",
        harmless(clock) or fmt.NOT_AVAILABLE,
        expected="tsc, or one read without a system call",
        is_well=clock in VDSO_CLOCKS if clock else None,
        fix="See `dmesg | grep -i clocksource` why the kernel distrusts tsc; every timing pays.",
    )
