"""The GPUs as NVML knows them: what holds them back, what is worn, who else is on them.

Topic by topic; GPUs of which the same is true share a line. What a GPU does not tell is n/a.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from harness import format as fmt
from harness.doctor.check import Check, Verdict, harmless, judged
from harness.doctor.host import is_at_least
from harness.gpu_watch import TROUBLES
from harness.hardware import Detection, Gpu
from harness.sampler import MAX_LINKS, Asker, GpuLost

NA = fmt.NOT_AVAILABLE
# The driver branch that CUDA 13 needs, which torch's wheel carries; as in scripts/bootstrap.sh.
MIN_DRIVER = "580"
# Clock event reasons beside those of TROUBLES, which are found while a run goes on, too.
SET_CLOCKS, SYNC_BOOST, DISPLAY = 0x02, 0x10, 0x100
HELD_BACK: tuple[tuple[int, str, Verdict, str], ...] = (
    *(
        (each.bits, each.word, "problem" if each.level == "error" else "note", fix)
        for each, fix in zip(
            TROUBLES,
            (
                "Cool it; see `nvidia-smi -q -d TEMPERATURE -i {gpus}`.",
                "Check the host's power supply and cooling; see `nvidia-smi -q -i {gpus}`.",
                "",
                "See who uses it with `nvidia-smi -i {gpus}`, and the power limit above.",
            ),
            strict=True,
        )
        if each.bits
    ),
    (SET_CLOCKS, "held to clocks that were set", "note", "Run: sudo nvidia-smi -rac -i {gpus}"),
    (SYNC_BOOST, "held to the clocks of its sync boost group", "note", "Dissolve the group."),
    (DISPLAY, "held to clocks for a display", "note", "Detach the display."),
)
RESET = "Run: sudo nvidia-smi --gpu-reset -i {gpus}"
# nvmlMemoryErrorType_t, nvmlEccCounterType_t, nvmlClockType_t
UNCORRECTED, VOLATILE, AGGREGATE, SM, MEMORY = 1, 0, 1, 1, 2
NAMED = 3  # processes that are named; the others are counted

Topic = Callable[[Any, Asker], Check]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is true of one GPU; {gpus} in the fix stands for all of which it is true."""

    gpu: int
    check: Check


def examine(detection: Detection, nvml: Any) -> Iterator[Check]:
    """What there is, what rules GPUs out, then topic by topic every GPU that can be asked."""
    yield from together(Finding(gpu=gpu.index, check=_identity(gpu)) for gpu in detection.gpus)
    if detection.gpus or detection.hardware.driver:
        yield _driver(detection)
    # Without any driver this is a CPU box; a GPU that is there and cannot be used was paid for.
    verdict = "problem" if any(gpu.is_mig or gpu.is_lost for gpu in detection.gpus) else "note"
    for problem in detection.problems:
        yield Check(name="gpu", verdict=verdict, value=harmless(problem.what, most=200),
                    fix=problem.fix)  # fmt: skip
    yield from _ask_all([gpu.index for gpu in detection.gpus if not gpu.is_lost], nvml)


def together(findings: Iterable[Finding]) -> Iterator[Check]:
    """GPUs of which the same is true as one check, in the order they first come: `power 0-6`."""
    alike: dict[Check, list[int]] = {}
    for finding in findings:
        alike.setdefault(finding.check, []).append(finding.gpu)
    for check, gpus in alike.items():
        fix = check.fix.replace("{gpus}", ",".join(map(str, gpus)))
        yield replace(check, name=f"{check.name} {spans(gpus)}", fix=fix)


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers in short: 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _identity(gpu: Gpu) -> Check:
    memory = fmt.gib(gpu.memory_bytes, decimals=0, none=NA)
    value = f"{harmless(gpu.product)}, {memory}, compute capability {gpu.capability or NA}"
    return Check(name="gpu", verdict="ok", value=value)


def _driver(detection: Detection) -> Check:
    driver = detection.hardware.driver
    return judged(
        "driver",
        f"{harmless(driver or NA)}, CUDA {detection.cuda or NA}",
        expected=f">= {MIN_DRIVER}",
        is_well=is_at_least(driver, MIN_DRIVER) if driver else None,
        fix="Update the driver and reboot.",
        otherwise="problem",
    )


def _ask_all(indices: list[int], nvml: Any) -> Iterator[Check]:
    if not indices:
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return  # detection has said why
    try:
        askers: dict[int, Asker] = {}
        for index in indices:
            try:
                askers[index] = Asker(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
            except nvml.NVMLError as error:
                value = f"no access: {harmless(str(error))}"
                yield Check(name=f"gpu {index}", verdict="problem", value=value,
                            fix="See `nvidia-smi`.")  # fmt: skip
        links = partial(_links, is_alone=len(indices) == 1)
        for topic in (*TOPICS, links):
            yield from together(_about(topic, nvml, askers))
    finally:
        nvml.nvmlShutdown()


def _about(topic: Topic, nvml: Any, askers: dict[int, Asker]) -> Iterator[Finding]:
    """What a topic finds of every GPU; one that is lost meanwhile is asked no more."""
    for index, asker in list(askers.items()):
        try:
            yield Finding(gpu=index, check=topic(nvml, asker))
        except GpuLost:
            del askers[index]
            fix = "Reset it or reboot; see `dmesg | grep Xid`."
            check = Check(name="gpu", verdict="problem", value="lost just now", fix=fix)
            yield Finding(gpu=index, check=check)


def _power(_: Any, asker: Asker) -> Check:
    limit = asker.ask("nvmlDeviceGetEnforcedPowerLimit")
    default = asker.ask("nvmlDeviceGetPowerManagementDefaultLimit")
    watts = None if default is None else f"{default / 1e3:.0f}"
    return judged(
        "power limit",
        fmt.fixed(None if limit is None else limit / 1e3, unit="W", none=NA),
        expected="" if watts is None else f"{watts} W, the default",
        is_well=None if limit is None or default is None else limit >= default,
        fix=f"Run: sudo nvidia-smi -pl {watts} -i {{gpus}}",
    )


def _clocks(_: Any, asker: Asker) -> Check:
    """Not judged: an idle GPU lowers them, and one that is held back says so."""
    told = [
        f"{name} {fmt.fixed(asker.ask('nvmlDeviceGetClockInfo', kind), none=NA)} of"
        f" {fmt.fixed(asker.ask('nvmlDeviceGetMaxClockInfo', kind), unit='MHz', none=NA)}"
        for name, kind in (("SM", SM), ("memory", MEMORY))
    ]
    return Check(name="clocks now", verdict="ok", value=", ".join(told))


def _throttle(_: Any, asker: Asker) -> Check:
    reasons = asker.ask("nvmlDeviceGetCurrentClocksEventReasons")
    if reasons is None:
        reasons = asker.ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    if reasons is None:
        return Check(name="throttle now", verdict="ok", value=NA)
    found = [each for each in HELD_BACK if reasons & each[0]]
    if not found:
        return Check(name="throttle now", verdict="ok", value="none", expected="none")
    is_bad = any(verdict == "problem" for _, _, verdict, _ in found)
    return Check(
        name="throttle now",
        verdict="problem" if is_bad else "note",
        value=", ".join(word for _, word, _, _ in found),
        expected="none",
        fix=" ".join(fix for _, _, _, fix in found),
    )


def _ecc(_: Any, asker: Asker) -> Check:
    mode = asker.ask("nvmlDeviceGetEccMode")
    if mode is not None and not mode[0]:
        fix = "Run: sudo nvidia-smi -e 1 -i {gpus}, then reboot."
        return Check(name="ECC", verdict="note", value="off", expected="on", fix=fix)
    now, ever = (
        asker.ask("nvmlDeviceGetTotalEccErrors", UNCORRECTED, since)
        for since in (VOLATILE, AGGREGATE)
    )
    past = "" if ever is None else f", {fmt.count(ever)} ever"
    return judged(
        "ECC",
        f"{fmt.count(now, none=NA)} uncorrected since the driver was loaded{past}",
        expected="" if now is None else "0",
        is_well=None if now is None else now == 0,
        fix=f"{RESET}; have it replaced if they come back.",
        otherwise="problem",
    )


def _rows(_: Any, asker: Asker) -> Check:
    """Rows of memory that were replaced by spare ones."""
    found = asker.ask("nvmlDeviceGetRemappedRows")
    if found is None:
        return Check(name="remapped rows", verdict="ok", value=NA)
    corrected, uncorrected, is_pending, has_failed = found
    value = f"{fmt.count(corrected + uncorrected)}"
    fix, expected = "", "none pending, none failed"
    if is_pending:
        value, fix = f"{value}, pending until a reset", RESET
    if has_failed:
        value, fix = f"{value}, one could not be remapped", "Have it replaced: no spare is left."
    return judged("remapped rows", value, expected=expected, is_well=not fix, fix=fix,
                  otherwise="problem")  # fmt: skip


def _others(nvml: Any, asker: Asker) -> Check:
    """Processes that compute on it, by the host's ids."""
    found = asker.ask("nvmlDeviceGetComputeRunningProcesses")
    if found is None:
        return Check(name="other processes", verdict="ok", value=NA)
    used = [each.usedGpuMemory for each in found]
    total = fmt.bytes_(None if None in used else sum(used), none=NA)
    named = [f"{_name(nvml, each.pid)} (pid {each.pid})" for each in found[:NAMED]]
    more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    return judged(
        "other processes",
        f"{', '.join(named + more)}: {total}" if found else "none",
        expected="none",
        is_well=not found,
        fix="End them, or leave the GPU out with CUDA_VISIBLE_DEVICES; a container cannot see the"
        " host's processes.",
    )


def _name(nvml: Any, pid: int) -> str:
    """What the driver calls a process; any user may have chosen it."""
    try:
        name = str(nvml.nvmlSystemGetProcessName(pid))
    except (nvml.NVMLError, UnicodeDecodeError, AttributeError):
        return NA
    return harmless(name.rpartition("/")[2], most=30) or NA


def _pcie(_: Any, asker: Asker) -> Check:
    """The width is judged; the generation falls by itself while nothing is sent."""
    width, most_width, generation, most_generation = (
        asker.ask(f"nvmlDeviceGet{which}PcieLink{what}")
        for what in ("Width", "Generation")
        for which in ("Curr", "Max")
    )
    speed = f"gen {fmt.fixed(generation, none=NA)} now, gen {fmt.fixed(most_generation, none=NA)}"
    return judged(
        "PCIe",
        f"{NA if width is None else f'x{width}'} ({speed} at most)",
        expected="" if most_width is None else f"x{most_width}",
        is_well=None if width is None or most_width is None else width >= most_width,
        fix="Power the host off and seat it anew, or try another slot; on a rented host ask for"
        " another.",
    )


def _links(nvml: Any, asker: Asker, *, is_alone: bool) -> Check:
    """Judged where there is another GPU to reach; a host that lends one GPU turns its links off."""
    states = [asker.ask("nvmlDeviceGetNvLinkState", link) for link in range(MAX_LINKS)]
    known = [state for state in states if state is not None]
    up = sum(state == nvml.NVML_FEATURE_ENABLED for state in known)
    return judged(
        "NVLinks",
        f"{up} of {len(known)} up" if known else NA,
        expected=f"{len(known)}" if known and not is_alone else "",
        is_well=up == len(known) if known and not is_alone else None,
        fix="Run: sudo systemctl restart nvidia-fabricmanager; see its log and `nvidia-smi nvlink"
        " -s -i {gpus}`.",
    )


TOPICS: tuple[Topic, ...] = (
    _power, _clocks, _throttle, _ecc, _rows, _others, _pcie,
)  # fmt: skip
