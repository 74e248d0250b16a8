"""What this machine is, and what it can do at most: the ceilings that rows are compared with."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bench.rows import CPU, Machine
from nmoe.paths import code_version
from nmoe.probe import copy_gbps, matmul_tflops, peer_gbps

PEER_BYTES = 4 * 2**30
_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """TFLOP/s of a product, GB/s of a copy (read + written) and to a peer (one way)."""

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
    """Of the first GPU, and of its way to the second where there is one; else of the CPU."""
    has_peer = device == "cuda" and torch.cuda.device_count() > 1
    return Ceilings(
        matmul=matmul_tflops(device),
        copy=copy_gbps(device),
        peer=peer_gbps(device, "cuda:1", num_bytes=PEER_BYTES) if has_peer else None,
    )


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
