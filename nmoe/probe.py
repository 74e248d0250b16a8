"""What a machine can do at most, measured: `python -m nmoe.probe` prints one JSON object a line.

A line is a fact, `{"name": "CUDA", "value": "13.0"}`, or a measurement, `{"name": "matmul", "gpu":
0, "rate": 790.2, "unit": "TFLOP/s", "what": "8192^3 bf16, median of 30"}`; one that failed has an
`error` instead of its rate. Nothing else is on stdout. The bench suite takes its ceilings here.
"""

import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.cuda import nccl

FLUSH_BYTES = 256 * 2**20  # several times the L2 cache
BUSY_CYCLES = 4_000_000  # 2 ms at 1.98 GHz
TIMINGS, WARMUPS = 30, 5
PAIR_TIMINGS, PAIR_BYTES = 10, 256 * 2**20  # eight GPUs are 56 pairs
DEADLINE_S = 150  # whoever waits for the lines may be gone
# An odd number turns consecutive ones into words that share no bytes (Knuth's multiplier).
SPREAD = 0x9E3779B97F4A7C15 - 2**64

Work = Callable[[], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The side and dtype of the square product, and the bytes of the copy."""

    matmul: int
    dtype: torch.dtype
    copy_bytes: int


SIZES = {
    "cuda": Size(matmul=8192, dtype=torch.bfloat16, copy_bytes=4 * 2**30),
    "cpu": Size(matmul=512, dtype=torch.float32, copy_bytes=64 * 2**20),
}


class Stopwatch:
    """Microseconds of pieces of work that follow one another; events on a GPU, else the clock.

    On a GPU a timing is: flush the L2 cache, keep the device busy for 2 ms, record an event, run,
    record an event. While the device is busy the host queues the work, so that the time is the
    device's and not that of launching. Whoever makes the host wait pays for it.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._flush = (
            torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
            if self.device.type == "cuda"
            else None
        )

    def time(self, *pieces: Work, ready: Work | None = None) -> tuple[float, ...]:
        """us from the start to the end of each piece, cumulative; `ready` runs before the start."""
        if self._flush is None:
            return self._time_on_host(pieces, ready)
        with torch.cuda.device(self.device):
            self._flush.zero_()
            torch.cuda._sleep(BUSY_CYCLES)
            if ready is not None:
                ready()
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(pieces) + 1)]
            marks[0].record()
            for piece, mark in zip(pieces, marks[1:], strict=True):
                piece()
                mark.record()
            marks[-1].synchronize()
        return tuple(marks[0].elapsed_time(mark) * 1000 for mark in marks[1:])

    def repeat(self, work: Work, *, timings: int = TIMINGS) -> list[float]:
        """So many timings of one piece after the warm-up."""
        return [self.time(work)[0] for _ in range(WARMUPS + timings)][WARMUPS:]

    @staticmethod
    def _time_on_host(pieces: Sequence[Work], ready: Work | None) -> tuple[float, ...]:
        if ready is not None:
            ready()
        start = time.perf_counter()
        ends = []
        for piece in pieces:
            piece()
            ends.append(time.perf_counter())
        return tuple((end - start) * 1e6 for end in ends)


def matmul_tflops(device: torch.device | str) -> float:
    """TFLOP/s of a large square product of random numbers: bf16 on a GPU, fp32 on a CPU."""
    watch = Stopwatch(device)
    size = SIZES[watch.device.type]
    left, right = torch.randn(2, size.matmul, size.matmul, device=watch.device, dtype=size.dtype)
    us = statistics.median(watch.repeat(lambda: left @ right))
    return tflops(2 * size.matmul**3, us)


def copy_gbps(device: torch.device | str) -> float:
    """GB/s that a copy within a device reads and writes, both counted."""
    watch = Stopwatch(device)
    source = _pattern(SIZES[watch.device.type].copy_bytes, watch.device, salt=0)
    target = torch.empty_like(source)
    us = statistics.median(watch.repeat(lambda: target.copy_(source)))
    return gbps(2 * source.nbytes, us)


def peer_gbps(
    source: torch.device | str,
    target: torch.device | str,
    *,
    num_bytes: int = PAIR_BYTES,
    timings: int = PAIR_TIMINGS,
    salt: int = 1,
) -> float:
    """GB/s one way from a GPU to another; RuntimeError when other bytes arrive than were sent."""
    watch = Stopwatch(source)
    sent = _pattern(num_bytes, watch.device, salt=salt)
    arrived = torch.zeros_like(sent, device=target)
    us = statistics.median(watch.repeat(lambda: arrived.copy_(sent), timings=timings))
    check_content(arrived, salt=salt)
    return gbps(sent.nbytes, us)


def check_content(arrived: Tensor, *, salt: int) -> None:
    """RuntimeError unless these are the words of the pattern, which the receiver knows itself."""
    wrong = int((arrived != _pattern(arrived.nbytes, arrived.device, salt=salt)).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {arrived.numel()} words arrived changed")


def tflops(flops: float, us: float) -> float:
    return flops / us / 1e6


def gbps(num_bytes: float, us: float) -> float:
    return num_bytes / us / 1e3


def _pattern(num_bytes: int, device: torch.device | str, *, salt: int) -> Tensor:
    """Words of 8 bytes that any device makes alike."""
    return torch.arange(num_bytes // 8, device=device).add_(salt).mul_(SPREAD)


def facts() -> Iterator[dict[str, Any]]:
    """Versions as this process sees them, threads, GPUs."""
    yield {"name": "torch", "value": torch.__version__}
    try:
        yield {"name": "triton", "value": version("triton")}
    except PackageNotFoundError:
        yield {"name": "triton", "error": "not installed"}
    yield {"name": "threads", "value": str(torch.get_num_threads())}
    yield {"name": "GPUs", "value": str(torch.cuda.device_count())}
    if torch.version.cuda is not None:
        yield {"name": "CUDA", "value": torch.version.cuda}
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version()
        if cudnn is not None:  # 91002 is 9.10.2
            yield {"name": "cuDNN", "value": f"{cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}"}
        yield {"name": "NCCL", "value": ".".join(map(str, nccl.version()))}


def measurements() -> Iterator[dict[str, Any]]:
    """Product and copy of every GPU, then copies between all pairs; the CPU's where there is none.

    A copy between GPUs that cannot reach each other goes through the host: `is_direct` is false.
    """
    count = torch.cuda.device_count()
    kind = "cuda" if count else "cpu"
    size = SIZES[kind]
    product = f"{size.matmul}^3 {'bf16' if count else 'fp32'}, median of {TIMINGS}"
    copied = f"{size.copy_bytes >> 20} MiB, read and written, median of {TIMINGS}"
    for index in range(max(1, count)):
        where = {"gpu": index} if count else {}
        device = f"cuda:{index}" if count else "cpu"
        for name, unit, what, measure in (
            ("matmul", "TFLOP/s", product, matmul_tflops),
            ("copy", "GB/s", copied, copy_gbps),
        ):
            line = {"name": name, **where, "unit": unit, "what": what}
            yield line | _tried(partial(measure, device))
    sent = f"{PAIR_BYTES >> 20} MiB one way, median of {PAIR_TIMINGS}, content checked"
    for number, (source, target) in enumerate(permutations(range(count), 2), start=1):
        where = {"gpu": source, "to": target}
        line = {"name": "peer", **where, "unit": "GB/s", "what": sent}
        measure = partial(peer_gbps, f"cuda:{source}", f"cuda:{target}", salt=number)
        is_direct = torch.cuda.can_device_access_peer(source, target)
        yield line | {"is_direct": is_direct} | _tried(measure)


def _tried(measure: Callable[[], float]) -> dict[str, Any]:
    """The rate, or in one line why there is none; the memory is given back either way."""
    try:
        return {"rate": measure()}
    except RuntimeError as error:  # what torch raises for want of memory, too
        return {"error": str(error).partition("\n")[0]}
    finally:
        # Of a context that is broken nothing can be given back.
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


def main() -> int:
    """Print each line as soon as it is known; what libraries print goes to stderr."""
    signal.alarm(DEADLINE_S)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        for lines in (facts, measurements):
            for line in lines():
                out.write(json.dumps(line) + "\n")
                out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
