"""What a child with torch finds: versions, products, copies, copies between GPUs.

Rates are judged by what the bench suite measured on such GPUs before, where it did.
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import format as fmt
from harness import launch, outlook
from harness.benchmarks import Row
from harness.doctor.check import Check, Verdict, harmless, judged
from harness.doctor.host import INSTALL, floors, is_at_least, numbers
from harness.errors import HarnessError
from harness.hardware import Detection
from nmoe.config import ConfigError, build
from nmoe.flops import peak_tflops, product
from nmoe.paths import BENCH_RESULTS

COMMAND = (sys.executable, "-P", "-m", "nmoe.probe")
DEADLINE_S = 180.0
# A machine that does less than this share of what such GPUs did is not well.
ENOUGH = 0.9
NAME = "probe"
_FIXES = {
    "matmul": "See power limit, throttle and other processes above.",
    "copy": "See other processes, ECC and remapped rows above.",
    "peer": "See NVLinks above and `nvidia-smi topo -m`.",
}
_NOT_DIRECT = (
    "Let GPUs reach each other's memory: see `nvidia-smi topo -p2p r`; in a virtual machine ask for"
    " peer access, in a container add --ipc=host."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What the child prints: a fact has a value, a measurement a rate; either may have failed."""

    name: str
    value: str = ""
    error: str = ""
    rate: float | None = None
    unit: str = ""
    what: str = ""
    gpu: int | None = None
    to: int | None = None
    is_direct: bool = True

    def where(self, detection: Detection) -> str:
        """Its name and the GPUs that it is about, which torch counts among those it sees."""
        seen = dict(enumerate(gpu.index for gpu in detection.gpus))
        way = [str(seen.get(gpu, gpu)) for gpu in (self.gpu, self.to) if gpu is not None]
        return harmless(f"{self.name} {'>'.join(way)}".rstrip(), most=40)


def examine(
    detection: Detection,
    *,
    command: Sequence[str] | None = None,
    deadline_s: float = DEADLINE_S,
    results: Path = BENCH_RESULTS,
) -> Iterator[Check]:
    """Each finding as it comes; a child that fails, hangs or talks nonsense is a problem."""
    is_silent, gpu = True, detection.hardware.gpu
    ceilings = {} if gpu is None else outlook.ceilings(gpu, results)
    try:
        for text in launch.lines_of(command or COMMAND, deadline_s=deadline_s):
            is_silent, line = False, parse(text)
            if line is None:
                fix = f"It said: {harmless(text, most=200)}"
                yield _problem("its output is not understood", fix)
                return
            yield judge(line, detection, ceilings)
    except HarnessError as error:
        yield _problem(harmless(error.problem, most=200), harmless(error.fix, most=600))
        return
    if is_silent:
        yield _problem("it ended without a word", "")


def parse(text: str) -> Line | None:
    """The line of a text, or None for anything else."""
    try:
        line = build(Line, json.loads(text), where="line")
    except (ValueError, RecursionError, ConfigError):
        return None
    if not line.name:
        return None
    is_rate = line.rate is not None and math.isfinite(line.rate) and line.rate > 0
    # A rate, a reason why there is none, or else a value.
    return line if is_rate or (line.rate is None and (line.error or line.value)) else None


def judge(line: Line, detection: Detection, ceilings: Mapping[str, Row]) -> Check:
    """The check of a line; `ceilings` are rows of such GPUs by name."""
    if line.error:
        fix = _FIXES.get(line.name, "")
        error, what = (
            harmless(line.error, most=200),
            f" ({harmless(line.what)})" if line.what else "",
        )
        return Check(
            name=line.where(detection), verdict="problem", value=f"failed: {error}{what}", fix=fix
        )
    if line.rate is None:
        return _fact(line, detection)
    return _measured(line, line.rate, detection, ceilings)


def _fact(line: Line, detection: Detection) -> Check:
    """A version or a number that torch says; the file of its package may say another."""
    name, value, fix = f"{harmless(line.name)} in torch", harmless(line.value), INSTALL
    expected, is_well = "", None
    otherwise: Verdict = "problem"
    if line.name in ("torch", "triton"):
        name = f"{line.name} as imported"
        floor = floors().get(line.name)
        if floor is not None:
            expected, is_well = f">= {floor}", is_at_least(value, floor)
    elif line.name == "CUDA" and detection.cuda is not None:
        fix = "Update the driver and reboot."
        expected = f"no major version above the driver's {detection.cuda}"
        is_well = numbers(value)[:1] <= numbers(detection.cuda)[:1]
    elif line.name == "GPUs":
        there = len(detection.gpus)
        expected, is_well = f"{there}, as NVML sees", value == str(there)
        fix = "Check that torch is a CUDA build (`pip config list`) and that the driver fits it."
        # Without a GPU that can train, this is a CPU box.
        otherwise = "problem" if detection.has_supported_gpu else "note"
    return judged(name, value, expected=expected, is_well=is_well, fix=fix, otherwise=otherwise)


def _measured(line: Line, rate: float, detection: Detection, ceilings: Mapping[str, Row]) -> Check:
    where = line.where(detection)
    gpu = None if line.gpu is None else detection.hardware.gpu
    row = None if gpu is None else ceilings.get(line.name)
    expected, is_well = "", None
    if row is not None and row.rate is not None:
        expected = (
            f">= {_rate(ENOUGH * row.rate, line.unit)}: {fmt.percent(ENOUGH)} of a"
            f" {product(row.gpu)} of {row.date[:10]} in bench/results"
        )
        is_well = rate >= ENOUGH * row.rate
    peak = peak_tflops(gpu, "bf16") if line.name == "matmul" else None
    share = "" if peak is None else f", {fmt.percent(rate / peak)} of the data sheet"
    value = f"{_rate(rate, line.unit)} ({harmless(line.what, most=80)}{share})"
    if not line.is_direct:
        return Check(
            name=where,
            verdict="problem",
            value=f"{value}, through the host",
            expected="direct",
            fix=_NOT_DIRECT,
        )
    return judged(
        where, value, expected=expected, is_well=is_well,
        fix=_FIXES.get(line.name, ""),
    )  # fmt: skip


def _rate(rate: float, unit: str) -> str:
    """A rate in the unit that leaves digits before the point: a CPU does GFLOP/s."""
    if unit == "TFLOP/s" and rate < 1:
        rate, unit = 1000 * rate, "GFLOP/s"
    return fmt.fixed(rate, decimals=0 if rate >= 100 else 1, unit=harmless(unit, most=10))


def _problem(what: str, fix: str) -> Check:
    own = f"Run: python {' '.join(COMMAND[1:])}"
    return Check(name=NAME, verdict="problem", value=what, fix=f"{fix} {own}".strip())
