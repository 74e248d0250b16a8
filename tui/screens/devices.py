"""GPUs of a run as values for the widgets: what they say, what they cost, what went wrong."""

from statistics import median

from harness import format as fmt
from harness.describe import describe
from harness.gpu_watch import stragglers
from harness.run_state import RunState
from tui.feed import RunView
from tui.widgets.gpus import Gpu, state
from tui.widgets.logs import Line
from tui.widgets.rows import Role, Row

_RECENT = 500  # points of the throughput that the newest one is compared with
_SLOWER = 0.03  # less is noise
_NA = fmt.NOT_AVAILABLE


def gpus(view: RunView) -> tuple[Gpu, ...]:
    """The newest sample of every GPU; ranks take GPUs in this order."""
    behind = stragglers(view.state.gpus)
    return tuple(
        Gpu(
            index=gpu.index,
            rank=rank,
            util=None if gpu.util is None else gpu.util / 100,
            memory_used_bytes=gpu.memory_used_bytes,
            memory_total_bytes=gpu.memory_total_bytes,
            power_w=gpu.power_w,
            power_limit_w=gpu.power_limit_w,
            energy_j=gpu.energy_j,
            temperature_c=gpu.temperature_c,
            sm_mhz=gpu.sm_mhz,
            memory_mhz=gpu.memory_mhz,
            throttle=gpu.throttle,
            sm=gpu.sm_frac,
            tensor=gpu.tensor_frac,
            nvlink_bytes_s=_both(gpu.nvlink_tx_bytes_s, gpu.nvlink_rx_bytes_s),
            is_behind=gpu.index in behind,
            is_lost=gpu.is_lost,
        )
        for rank, gpu in enumerate(view.state.gpus)
    )


def facts(view: RunView) -> tuple[tuple[Row, ...], ...]:
    """The machine, what the run gets out of it, and what that costs."""
    run = view.state
    every = gpus(view)
    watts = [gpu.power_w for gpu in every if gpu.power_w is not None]
    power_w = sum(watts) if watts else None
    joules = None if power_w is None or not run.tok_s else power_w / run.tok_s
    machine: list[Row] = []
    if run.plan is not None and run.plan.hardware.gpu:
        host = run.plan.hardware
        machine = [
            _fact("", f"{run.plan.world} x {host.gpu}"),
            _fact("capability", host.capability or _NA),
            _fact("driver", host.driver or _NA),
            _fact("P2P", _paths(run)),
        ]
    whole = run.joules_per_token
    told = f" of {len(watts)}" if 0 < len(watts) < len(every) else ""
    return (
        (
            *machine,
            _fact("power", fmt.fixed(power_w, unit="W", none=_NA) + told),
            _fact("", f"{fmt.fixed(_scaled(joules), decimals=2, none=_NA)} mJ/token now"),
            *([] if whole is None else [_fact("", f"{1e3 * whole:.2f} in all")]),
            *_speed(run),
        ),
    )


def _both(sent: float | None, received: float | None) -> float | None:
    return None if sent is None or received is None else sent + received


def _paths(run: RunState) -> str:
    """How the GPUs reach each other: one word where all pairs are alike."""
    if run.plan is not None and run.plan.world == 1:
        return "one GPU"
    if run.topology is None:
        return _NA
    num = len(run.topology.indices)
    pairs = {run.topology.paths[a * num + b] for a in range(num) for b in range(num) if a != b}
    return "/".join(sorted(path or _NA for path in pairs)) or _NA


def _scaled(joules: float | None) -> float | None:
    return None if joules is None else joules * 1e3


def _speed(run: RunState) -> list[Row]:
    """The throughput, and how much of its median is lost."""
    parts = [_fact("", fmt.rate(run.tok_s))]
    series = run.curves.get("tok_s")
    if series is not None and run.tok_s and series.length > 10:
        usual = median(series.values[-_RECENT:])
        if usual > 0:
            change = run.tok_s / usual - 1
            role: Role = "warn" if change < -_SLOWER else "dim"
            sign = "+" if change >= 0 else ""
            parts.append(((f"{sign}{fmt.percent(change, decimals=1)} of its median", role),))
    return parts


def alerts(view: RunView) -> tuple[Line, ...]:
    """What somebody should know, with its time; GPUs in trouble now stand at the end."""
    messages = {describe(alert) for alert in view.state.alerts}
    lines = [line for line in view.state.lines if line[1] in messages]
    for gpu in gpus(view):
        sign = state(gpu)
        if sign.word in ("lost", "slowed"):
            lines.append((view.state.updated, f"GPU {gpu.index} {sign.word}: {sign.meaning}"))
    return tuple(lines)


def _fact(label: str, text: str) -> Row:
    return ((f"{label} " if label else "", "dim"), (text, "text"))
