"""What this machine is, and what it can do at most: the ceilings that rows are compared with."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from bench.rows import CPU, Machine
from bench.timing import Stopwatch, median
from nmoe.paths import code_version

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """TFLOP/s of a bf16 product, GB/s of a copy (read + written) and to a peer (one way)."""

    matmul: float
    copy: float
    peer: float | None = None

    def of(self, unit: str) -> float:
        """The ceiling of arithmetic or, for GB/s, of this GPU's memory."""
        return self.matmul if unit == "TFLOP/s" else self.copy


def device_name() -> str:
    """Where rows are measured: "cuda" when there is any."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@cache
def machine(*, gpus: int = 1, commit: str | None = None) -> Machine:
    """The facts that every row carries."""
    has_gpu = torch.cuda.is_available()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        versions["triton"] = version("triton")
    except PackageNotFoundError:
        versions["triton"] = "none"
    if has_gpu:
        versions["cuda"] = str(torch.version.cuda)
    return Machine(
        gpu=torch.cuda.get_device_name() if has_gpu else CPU,
        gpus=gpus if has_gpu else 0,
        driver=_driver() if has_gpu else "",
        versions=versions,
        commit=commit or _commit(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def measure_ceilings(device: str) -> Ceilings:
    """Medians of a large product and of large copies, on random data."""
    on_gpu = device == "cuda"
    size, elements = (8192, 2**31) if on_gpu else (256, 2**22)
    watch = Stopwatch(device)
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    matmul_us = median(watch.repeat(lambda: left @ right))
    source = torch.randn(elements, device=device, dtype=torch.bfloat16)
    num_bytes = source.numel() * source.element_size()
    copy_us = _copy_us(watch, source, device)
    has_peer = on_gpu and torch.cuda.device_count() > 1
    return Ceilings(
        matmul=tflops(2 * size**3, matmul_us),
        copy=gbps(2 * num_bytes, copy_us),
        peer=gbps(num_bytes, _copy_us(watch, source, "cuda:1")) if has_peer else None,
    )


def tflops(flops: float, us: float) -> float:
    return flops / us / 1e6


def gbps(num_bytes: float, us: float) -> float:
    return num_bytes / us / 1e3


def _copy_us(watch: Stopwatch, source: Tensor, device: str) -> float:
    target = torch.empty_like(source, device=device)
    return median(watch.repeat(lambda: target.copy_(source)))


def _commit() -> str:
    code = code_version()
    return f"{code.commit or 'unknown'}{'+changes' if code.is_dirty else ''}"


def _driver() -> str:
    """The kernel module's version, from the one line that names it."""
    try:
        words = _DRIVER.read_text().partition("\n")[0].split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")
