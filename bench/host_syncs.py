"""How often the host waits for the GPU, counted in a profiler's trace."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

# waits of the runtime and of the driver, and copies that return only when they are done
_WAIT = re.compile(r"cu(da)?\w*Synchronize\w*|cu(da)?Mem(cpy|set)(?!\w*Async)\w*")
_REGION, _CONTROL = "bench: counted", "bench: control"


def waits(names: Iterable[str]) -> Counter[str]:
    """Those of the calls by which the host waits."""
    return Counter(name for name in names if _WAIT.fullmatch(name))


def count_host_syncs(work: Callable[[], Any]) -> Counter[str] | None:
    """Waits by name during one run; None when the trace misses a wait that was certainly there.

    The run is over when the host has queued everything: that it is waited for afterwards, and that
    the profiler waits when it stops, is not counted.
    """
    scalar = torch.ones((), device="cuda")
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        with record_function(_REGION):
            work()
        with record_function(_CONTROL):
            scalar.item()
        torch.cuda.synchronize()
    events = list(trace.events() or ())
    if not waits(_names_within(events, _CONTROL)):
        return None
    return waits(_names_within(events, _REGION))


def _names_within(events: list[Any], region: str) -> list[str]:
    """Names of the host's events, of any thread, that began while the region ran."""
    spans = [
        each.time_range
        for each in events
        if each.name == region and each.device_type == torch.autograd.DeviceType.CPU
    ]
    return [
        each.name
        for each in events
        for span in spans
        if each.device_type == torch.autograd.DeviceType.CPU
        and span.start <= each.time_range.start <= span.end
    ]
