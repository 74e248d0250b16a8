"""What the GPUs, or the CPU, really do: measured by a child of the trainer's kind, with torch.

Against what the bench suite measured on such GPUs before, where it did.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import benchmarks, launch
from harness import format as fmt
from harness.benchmarks import RESULTS, Row
from harness.doctor.check import Check, judged
from harness.errors import HarnessError
from harness.hardware import Detection
from nmoe.flops import product

PROBE = "nmoe.probe"
DEADLINE_S = 180.0
ENOUGH = 0.9  # of what such a GPU has done before
_FIXES = {
    "matmul": "Look at power, clocks and other programs above.",
    "copy": "Look for other programs and remapped rows above.",
    "peer": "Look at the NVLinks above, and at: nvidia-smi topo -m",
}
_UNREACHED = "Let the ranks reach each other: one host, no MIG, docker with --ipc=host."


def examine(
    detection: Detection,
    *,
    module: str = PROBE,
    deadline_s: float = DEADLINE_S,
    results: Path = RESULTS,
) -> Iterator[Check]:
    """Each measurement as it comes; a child that fails is a problem that says how."""
    gpu = detection.hardware.gpu
    rows = [] if gpu is None else _kept(gpu, results)
    try:
        for line in launch.lines_of(module, deadline_s=deadline_s):
            yield _check(line, rows, detection.cuda)
    except HarnessError as error:
        fix = f"Run: python -m {module}"
        yield Check(name="measured", verdict="problem", value=error.problem, fix=fix)


def _kept(gpu: str, results: Path) -> list[Row]:
    """Ceilings that were measured on such GPUs."""
    rows = [bench.row for bench in benchmarks.read(results).benches]
    return [row for row in rows if row.what.startswith("ceiling ") and product(row.gpu) == gpu]


def _check(line: str, rows: list[Row], cuda: str | None) -> Check:
    try:
        found: Any = json.loads(line)
        name = str(found["name"])
        where = "".join(f" {found[key]}" for key in ("gpu", "to") if key in found)
        if "error" in found:
            return _failed(name, where, str(found["error"]))
        if "rate" in found:
            return _measured(name, where, found, rows)
        return _fact(name, str(found["value"]), cuda)
    except (ValueError, TypeError, KeyError):
        return Check(name="measured", verdict="note", value=f"not understood: {line.strip()[:80]}")


def _failed(name: str, where: str, error: str) -> Check:
    fix = _UNREACHED if name == "peer" else _FIXES.get(name, "")
    verdict = "problem" if name in _FIXES else "note"
    return Check(name=f"{name}{where}", verdict=verdict, value=error, fix=fix)


def _measured(name: str, where: str, found: dict[str, Any], rows: list[Row]) -> Check:
    rate, unit = float(found["rate"]), str(found["unit"])
    kept = [row for row in rows if row.what == f"ceiling {name}" and row.rate]
    before = max(kept, key=lambda row: row.date, default=None)
    known = None if before is None or before.rate is None else before.rate
    return judged(
        f"{name}{where}",
        f"{_speed(rate, unit)} ({found.get('what', '')})",
        "" if known is None else f"about {_speed(known, unit)}, as such GPUs did before",
        _FIXES.get(name, ""),
        is_well=None if known is None else rate >= ENOUGH * known,
    )


def _fact(name: str, value: str, cuda: str | None) -> Check:
    """Of torch; its CUDA must not be newer than the driver's."""
    if name != "CUDA" or cuda is None:
        return Check(name=f"torch's {name}", verdict="ok", value=value)
    is_well = int(cuda.partition(".")[0]) >= int(value.partition(".")[0])
    expected = f"the driver's {cuda} or older"
    return judged("torch's CUDA", value, expected, "Update the driver.", is_well=is_well)


def _speed(rate: float, unit: str) -> str:
    return fmt.fixed(rate, decimals=0 if rate >= 100 else 2, unit=unit)
