"""What this machine can do at most, measured: `python -m nmoe.probe` prints one JSON a line.

A line is a fact, `{"name": "CUDA", "value": "13.0"}`, or a measurement of one GPU or of a pair,
`{"name": "matmul", "gpu": 0, "rate": 790.2, "unit": "TFLOP/s", "what": "8192^3, bf16"}`; one that
could not be taken has an `error` instead of a rate.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch.cuda import nccl

TIMINGS, WARMUPS = 10, 3
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}


def matmul_tflops(device: torch.device) -> float:
    """TFLOP/s of a large square product: bf16 on a GPU, fp32 on a CPU."""
    size = MATMUL_SIZE[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=DTYPES[device.type])
    return tflops(2 * size**3, _median_us(lambda: left @ right, device))


def copy_gbps(device: torch.device) -> float:
    """GB/s that a copy within a device reads and writes."""
    source = _random_bytes(device)
    target = torch.empty_like(source)
    return gbps(2 * source.numel(), _median_us(lambda: target.copy_(source), device))


def peer_gbps(source: torch.device, target: torch.device) -> float:
    """GB/s one way from one GPU to another; RuntimeError when other bytes arrive than were sent."""
    sent = _random_bytes(source)
    arrived = torch.empty_like(sent, device=target)
    rate = gbps(sent.numel(), _median_us(lambda: arrived.copy_(sent), source))
    if not torch.equal(arrived.cpu(), sent.cpu()):
        raise RuntimeError(f"other bytes arrived on GPU {target.index} than were sent")
    return rate


def tflops(flops: float, us: float) -> float:
    return flops / us / 1e6


def gbps(num_bytes: float, us: float) -> float:
    return num_bytes / us / 1e3


def _random_bytes(device: torch.device) -> torch.Tensor:
    return torch.randint(0, 256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)


def _median_us(work: Callable[[], Any], device: torch.device) -> float:
    """Microseconds between events of the device's stream, else of the clock."""
    return statistics.median([_time_us(work, device) for _ in range(WARMUPS + TIMINGS)][WARMUPS:])


def _time_us(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        work()
        return (time.perf_counter() - began) * 1e6
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1000


def facts() -> Iterator[dict[str, Any]]:
    """The libraries that come with torch, or the threads that it takes on a CPU."""
    if torch.cuda.is_available():
        yield {"name": "CUDA", "value": str(torch.version.cuda)}
        yield {"name": "cuDNN", "value": str(torch.backends.cudnn.version())}
        yield {"name": "NCCL", "value": ".".join(map(str, nccl.version()))}
    else:
        yield {"name": "threads", "value": str(torch.get_num_threads())}


def measurements() -> Iterator[dict[str, Any]]:
    """Product and copy of every GPU, then copies between all pairs; of the CPU without any GPU."""
    count = torch.cuda.device_count()
    devices = [torch.device("cuda", index) for index in range(count)] or [torch.device("cpu")]
    size, dtype = MATMUL_SIZE[devices[0].type], DTYPES[devices[0].type]
    mib = COPY_BYTES[devices[0].type] >> 20
    for device in devices:
        where = {} if device.index is None else {"gpu": device.index}
        product = {"unit": "TFLOP/s", "what": f"{size}^3, {str(dtype).removeprefix('torch.')}"}
        copy = {"unit": "GB/s", "what": f"{mib} MiB, read and written"}
        yield {"name": "matmul", **where, **product, **_tried(matmul_tflops, device)}
        yield {"name": "copy", **where, **copy, **_tried(copy_gbps, device)}
    for source in devices:
        for target in devices:
            if source != target:
                where = {"gpu": source.index, "to": target.index}
                way = {"unit": "GB/s", "what": f"{mib} MiB, one way"}
                yield {"name": "peer", **where, **way, **_tried(_peer, source, target)}


def _peer(source: torch.device, target: torch.device) -> float:
    if not torch.cuda.can_device_access_peer(source, target):
        raise RuntimeError(f"GPU {source.index} cannot reach the memory of GPU {target.index}")
    return peer_gbps(source, target)


def _tried(measure: Callable[..., float], *devices: torch.device) -> dict[str, Any]:
    """The rate, or in one line why there is none; memory is given back either way."""
    try:
        return {"rate": measure(*devices)}
    except RuntimeError as error:  # what torch raises for want of memory, too
        return {"error": str(error).partition("\n")[0]}
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> int:
    """Print what is known, each line as soon as it is."""
    for line in chain(facts(), measurements()):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
