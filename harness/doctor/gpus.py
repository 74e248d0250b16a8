"""The GPUs as NVML knows them: what holds them back, what is worn, who else is on them.

GPUs of which the same is true share a line.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from harness import format as fmt
from harness.doctor.check import Check, Verdict, judged
from harness.hardware import Detection, Gpu
from harness.sampler import MAX_LINKS, Asker, GpuLost

# Bits of NVML's clock event reasons that cost speed, and what to do about each.
HELD_BACK: tuple[tuple[int, str, Verdict, str], ...] = (
    (0x08, "slowed by the hardware", "problem", "Check power supply and cooling: nvidia-smi -q."),
    (0x40, "slowed by heat", "problem", "Cool it; see nvidia-smi -q -d TEMPERATURE."),
    (0x80, "slowed by the power brake", "problem", "Check the power supply of the host."),
    (0x20, "held back by the driver against heat", "note", "Cool it, or wait until it is."),
    (0x04, "at its power limit", "note", "See who uses it: nvidia-smi."),
)
UNCORRECTED, VOLATILE = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
SM, MEMORY = 1, 2  # nvmlClockType_t


@dataclass(frozen=True, slots=True, kw_only=True)
class _Finding:
    gpu: int
    check: Check


def examine(detection: Detection, nvml: Any) -> Iterator[Check]:
    """What is there, then topic by topic all GPUs that can be asked, then what is wrong."""
    yield from _alike(_identity(gpu) for gpu in detection.gpus)
    driver = detection.hardware.driver
    if driver:
        value = f"{driver}, CUDA {detection.cuda or fmt.NOT_AVAILABLE}"
        yield Check(name="driver", verdict="ok", value=value)
    for problem in detection.problems:
        yield Check(name="gpu", verdict="note", value=problem.what, fix=problem.fix)
    indices = [gpu.index for gpu in detection.gpus if not gpu.is_lost]
    if indices:
        yield from _ask_all(indices, nvml)


def _identity(gpu: Gpu) -> _Finding:
    memory = fmt.gib(gpu.memory_bytes, decimals=0, none=fmt.NOT_AVAILABLE)
    value = f"{gpu.product}, {memory}, {gpu.capability or fmt.NOT_AVAILABLE}"
    return _Finding(gpu=gpu.index, check=Check(name="gpu", verdict="ok", value=value))


def _ask_all(indices: Sequence[int], nvml: Any) -> Iterator[Check]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return  # detection has said why
    try:
        askers = {index: Asker(nvml, nvml.nvmlDeviceGetHandleByIndex(index)) for index in indices}
        for topic in (_power, _clocks, _throttle, _ecc, _rows, _others, _pcie, _links):
            yield from _alike(_about(topic, askers))
    finally:
        nvml.nvmlShutdown()


def _about(topic: Any, askers: dict[int, Asker]) -> Iterator[_Finding]:
    """What a topic finds of every GPU; one that is lost meanwhile says so."""
    for index, asker in askers.items():
        try:
            check = topic(asker)
        except GpuLost:
            fix = "Reset it or reboot; see `dmesg | grep Xid`."
            check = Check(name="gpu", verdict="problem", value="lost", fix=fix)
        if check is not None:
            yield _Finding(gpu=index, check=replace(check, fix=check.fix.format(gpu=index)))


def _alike(findings: Iterable[_Finding]) -> Iterator[Check]:
    """Neighbouring GPUs of which the same is true, as one check: `power 0-7`."""
    for (_, value, expected, verdict), group in groupby(findings, key=_said):
        same = list(group)
        first, last = same[0], same[-1]
        where = str(first.gpu) if len(same) == 1 else f"{first.gpu}-{last.gpu}"
        fixes = dict.fromkeys(each.check.fix for each in same)
        yield Check(
            name=f"{first.check.name} {where}",
            verdict=verdict,
            value=value,
            expected=expected,
            fix=" ".join(filter(None, fixes)),
        )


def _said(finding: _Finding) -> tuple[str, str, str, Verdict]:
    check = finding.check
    return check.name, check.value, check.expected, check.verdict


def _power(asker: Asker) -> Check | None:
    limit = asker.ask("nvmlDeviceGetEnforcedPowerLimit")
    default = asker.ask("nvmlDeviceGetPowerManagementDefaultLimit")
    if limit is None:
        return None
    return judged(
        "power",
        f"limit {limit / 1000:.0f} W",
        "" if default is None else f"{default / 1000:.0f} W, its default",
        "" if default is None else f"Run: sudo nvidia-smi -i {{gpu}} -pl {default / 1000:.0f}",
        is_well=None if default is None else limit >= default,
    )


def _clocks(asker: Asker) -> Check | None:
    now = [asker.ask("nvmlDeviceGetClockInfo", kind) for kind in (SM, MEMORY)]
    most = [asker.ask("nvmlDeviceGetMaxClockInfo", kind) for kind in (SM, MEMORY)]
    if now == [None, None]:
        return None
    told = [
        f"{name} {fmt.count(is_now, none=fmt.NOT_AVAILABLE)}"
        f" of {fmt.count(at_most, none=fmt.NOT_AVAILABLE)} MHz"
        for name, is_now, at_most in zip(("SM", "memory"), now, most, strict=True)
    ]
    return Check(name="clocks", verdict="ok", value=f"{', '.join(told)}, as it is used now")


def _throttle(asker: Asker) -> Check | None:
    reasons = asker.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        return None
    for bit, value, verdict, fix in HELD_BACK:
        if reasons & bit:
            return Check(name="throttle", verdict=verdict, value=value, expected="nothing", fix=fix)
    return Check(name="throttle", verdict="ok", value="nothing holds it back")


def _ecc(asker: Asker) -> Check | None:
    mode = asker.ask("nvmlDeviceGetEccMode")
    if mode is None:
        return None
    if not mode[0]:
        fix = "Run: sudo nvidia-smi -i {gpu} -e 1, then reboot."
        return Check(name="ECC", verdict="note", value="off", expected="on", fix=fix)
    errors = asker.ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, VOLATILE)
    if not errors:
        return Check(name="ECC", verdict="ok", value="on, no uncorrected error since boot")
    value = f"{fmt.count(errors)} uncorrected errors since boot"
    fix = "Reset the GPU, run again, and have it replaced if they come back."
    return Check(name="ECC", verdict="problem", value=value, expected="none", fix=fix)


def _rows(asker: Asker) -> Check | None:
    """Rows of memory that were replaced by spare ones."""
    found = asker.ask("nvmlDeviceGetRemappedRows")
    if found is None:
        return None
    corrected, uncorrected, is_pending, has_failed = found
    value = f"{fmt.count(corrected + uncorrected)} remapped"
    if has_failed:
        fix = "Have GPU {gpu} replaced: it has no spare rows left."
        return Check(
            name="memory rows", verdict="problem", value=f"{value}, one could not be", fix=fix
        )
    if is_pending:
        fix = "Reset it, so that it takes effect: sudo nvidia-smi -i {gpu} --gpu-reset"
        return Check(
            name="memory rows", verdict="problem", value=f"{value}, one is pending", fix=fix
        )
    return Check(name="memory rows", verdict="ok", value=value)


def _others(asker: Asker) -> Check | None:
    found = asker.ask("nvmlDeviceGetComputeRunningProcesses")
    if found is None:
        return None
    if not found:
        return Check(name="other programs", verdict="ok", value="none")
    used = [each.usedGpuMemory for each in found if each.usedGpuMemory]
    pids = ", ".join(str(each.pid) for each in found[:3])
    memory = fmt.bytes_(sum(used) if used else None, none=fmt.NOT_AVAILABLE)
    value = f"{len(found)} (pid {pids}), {memory}"
    fix = "End them, or leave the GPU out with CUDA_VISIBLE_DEVICES. The pids are the host's."
    return Check(name="other programs", verdict="note", value=value, expected="none", fix=fix)


def _pcie(asker: Asker) -> Check | None:
    """The width; the generation falls while a link is idle."""
    width = asker.ask("nvmlDeviceGetCurrPcieLinkWidth")
    most = asker.ask("nvmlDeviceGetMaxPcieLinkWidth")
    generation = asker.ask("nvmlDeviceGetMaxPcieLinkGeneration")
    if width is None:
        return None
    speed = "" if generation is None else f", generation {generation} at most"
    return judged(
        "PCIe",
        f"x{width}{speed}",
        f"x{most}",
        "Power the host off and seat GPU {gpu} anew.",
        is_well=None if most is None else width >= most,
    )


def _links(asker: Asker) -> Check | None:
    states = [asker.ask("nvmlDeviceGetNvLinkState", link) for link in range(MAX_LINKS)]
    known = [state for state in states if state is not None]
    if not known:
        return None
    return judged(
        "NVLink",
        f"{sum(map(bool, known))} of {len(known)} links are up",
        "all",
        "Restart the fabric manager (systemctl restart nvidia-fabricmanager); see its log.",
        is_well=all(known),
    )
