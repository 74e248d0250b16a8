"""A row a GPU: state, meters and figures; what does not fit goes column by column.

Everything NVML may not tell is None and drawn as N/A, never as 0. Utilisation says that a kernel
ran, not how much of the GPU it used; that is what SM and tensor activity are for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import format as fmt
from tui.widgets.meters import meter, spark
from tui.widgets.rows import Panel, Role, Row, Span, clean, clip_row, join_fitting
from tui.widgets.states import GPU_SIGNS, Sign
from tui.widgets.table import Cell, Column, draw_table, table_width

# Bits of NVML's clock event reasons; those that are no slowing down (idle 1, application clocks 2,
# display 0x100) have no name here.
REASONS: tuple[tuple[int, str, Role], ...] = (
    (0x40, "HW heat", "bad"),
    (0x80, "power brake", "bad"),
    (0x08, "HW slowdown", "bad"),
    (0x20, "SW heat", "bad"),
    (0x04, "power cap", "warn"),
    (0x10, "sync boost", "dim"),
)
_METERS = (16, 10, 6, 4)  # cells: as long as no column has to go for them
_HOT_C, _WARM_C = 90, 85
_NA = fmt.NOT_AVAILABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What one GPU says of itself; `util`, `sm` and `tensor` are fractions.

    `throttle` has NVML's bits, `nvlink_bytes_s` is both directions.
    """

    index: int
    rank: int | None = None
    util: float | None = None
    sm: float | None = None
    tensor: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None
    temperature_c: float | None = None
    sm_mhz: int | None = None
    memory_mhz: int | None = None
    throttle: int | None = None
    nvlink_bytes_s: float | None = None
    is_behind: bool = False
    is_lost: bool = False

    @property
    def tells_nothing(self) -> bool:
        told = (self.util, self.memory_used_bytes, self.power_w, self.temperature_c, self.sm_mhz)
        return all(value is None for value in told)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A column: what a GPU shows in it, and whether it is left out when no GPU knows it."""

    column: Column
    cell: Callable[[Gpu, int], Cell]
    is_known: Callable[[Gpu], bool] = lambda gpu: True


class GpuTable(Panel[tuple[Gpu, ...]]):
    """All GPUs of the run."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_gpus(self.value, width, height)


def state(gpu: Gpu) -> Sign:
    """The one word for a GPU."""
    bits = gpu.throttle or 0
    is_slowed = any(bits & bit for bit, _, role in REASONS if role == "bad")
    word = (
        "lost" if gpu.is_lost
        else "n/a" if gpu.tells_nothing
        else "slowed" if is_slowed
        else "behind" if gpu.is_behind
        else "capped" if bits & 0x04
        else "idle" if gpu.util == 0
        else "ok"
    )  # fmt: skip
    return GPU_SIGNS[word]


def draw_gpus(gpus: Sequence[Gpu], width: int, height: int) -> list[Row]:
    """Header and a row a GPU; when there are more than rows, those in trouble come first."""
    if width < 1 or height < 1:
        return []
    if not gpus:
        return [clip_row((("no GPU", "dim"),), width)]
    if height == 1:
        return [draw_gpu_line(gpus, width)]
    shown = _chosen(gpus, height - 1)
    kinds = [kind for kind in _KINDS if any(map(kind.is_known, gpus))]
    columns = [kind.column for kind in kinds]
    records: list[list[Cell]] = []
    for cells in _METERS:
        records = [[kind.cell(gpu, cells) for kind in kinds] for gpu in shown]
        if table_width(columns, records) <= width:
            break
    rows = draw_table(columns, records, width)
    if len(shown) < len(gpus):
        more = f"and {len(gpus) - len(shown)} more: " + _words(gpus, shown)
        rows.append(clip_row(((more, "dim"),), width))
    elif height > len(rows) + 1 and len(gpus) > 1:
        rows += [(), draw_gpu_line(gpus, width)]
    return rows[:height]


def draw_gpu_line(gpus: Sequence[Gpu], width: int) -> Row:
    """All GPUs in one row: a column of utilisation each, means and sums, what is wrong."""
    utils = [gpu.util for gpu in gpus if gpu.util is not None]
    watts = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
    temps = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    mean = sum(utils) / len(utils) if utils else None
    parts: list[Row] = [
        (("GPU ", "dim"), *spark([gpu.util for gpu in gpus[:16]], "line")),
        ((fmt.percent(mean, none=_NA), "text"),),
        ((fmt.fixed(sum(watts) if watts else None, unit="W", none=_NA), "text"),),
        ((fmt.fixed(max(temps, default=None), unit="°C", none=_NA), "text"),),
    ]
    for sign in reversed(GPU_SIGNS.values()):
        indices = [gpu.index for gpu in gpus if state(gpu) is sign]
        if indices and sign.role in ("bad", "warn"):
            which = ",".join(map(str, indices[:4])) + ("…" if len(indices) > 4 else "")
            parts.insert(1, ((f"{sign.glyph} {sign.word} {which}", sign.role),))
    return join_fitting(parts, width, gap=" ")


def _chosen(gpus: Sequence[Gpu], room: int) -> list[Gpu]:
    if len(gpus) <= room:
        return list(gpus)
    order = list(GPU_SIGNS.values())
    worst = sorted(gpus, key=lambda gpu: order.index(state(gpu)))[: max(0, room - 1)]
    return [gpu for gpu in gpus if gpu in worst]


def _words(gpus: Sequence[Gpu], shown: Sequence[Gpu]) -> str:
    """The states of those that are not shown."""
    words = [state(gpu).word for gpu in gpus if gpu not in shown]
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def _state_cell(gpu: Gpu, _: int) -> Row:
    sign = state(gpu)
    return ((f"{sign.glyph} {sign.word}", sign.role),)


def _util_cell(gpu: Gpu, cells: int) -> Row:
    if gpu.util is None:
        return _na()
    return (*meter(gpu.util, cells, "line"), (f" {fmt.percent(gpu.util):>5}", "text"))


def _memory_cell(gpu: Gpu, cells: int) -> Row:
    used, total = gpu.memory_used_bytes, gpu.memory_total_bytes
    if used is None:
        return _na()
    text: Row = ((fmt.gib(used, decimals=0).removesuffix(" GiB"), "text"),)
    if not total:
        return (*text, (" GiB", "dim"))
    bar = meter(used / total, cells, "warn" if used > 0.97 * total else "dim")
    return (*bar, (" ", "text"), *text, (f"/{fmt.gib(total, decimals=0)}", "dim"))


def _power_cell(gpu: Gpu, _: int) -> Row:
    if gpu.power_w is None:
        return _na()
    limit = f"/{fmt.fixed(gpu.power_limit_w)}" if gpu.power_limit_w else ""
    return ((fmt.fixed(gpu.power_w), "text"), (f"{limit} W", "dim"))


def _heat_cell(gpu: Gpu, _: int) -> Row:
    if gpu.temperature_c is None:
        return _na()
    celsius = gpu.temperature_c
    role: Role = "bad" if celsius >= _HOT_C else "warn" if celsius >= _WARM_C else "text"
    mark = "!" if celsius >= _WARM_C else ""
    return ((mark + fmt.fixed(celsius, unit="°C"), role),)


def _reasons_cell(gpu: Gpu, _: int) -> Row:
    if gpu.throttle is None:
        return _na()
    row: list[Span] = []
    for bit, name, role in REASONS:
        if gpu.throttle & bit:
            row.append((f", {name}" if row else name, role))
    return tuple(row) or (("none", "dim"),)


def _gigabytes(bytes_s: float | None) -> str:
    return fmt.fixed(None if bytes_s is None else bytes_s / 1e9, unit="GB/s", none=_NA)


def _kilowatt_hours(joules: float | None) -> str:
    """Since the driver was loaded."""
    kwh = None if joules is None else joules / 3.6e6
    return fmt.fixed(kwh, decimals=2, unit="kWh", none=_NA)


def _na() -> Row:
    return ((_NA, "faint"),)


def _plain(text: str) -> Row:
    return ((clean(text), "faint" if text == _NA else "text"),)


_KINDS = (
    _Kind(column=Column(title="gpu", align="right"), cell=lambda gpu, _: str(gpu.index)),
    _Kind(column=Column(title="state"), cell=_state_cell),
    _Kind(column=Column(title="util", rank=1), cell=_util_cell),
    _Kind(column=Column(title="memory", rank=4), cell=_memory_cell),
    _Kind(column=Column(title="power", align="right", rank=2), cell=_power_cell),
    _Kind(column=Column(title="heat", align="right", rank=3), cell=_heat_cell),
    _Kind(
        column=Column(title="MHz", align="right", rank=7),
        cell=lambda gpu, _: _plain(fmt.count(gpu.sm_mhz, none=_NA)),
    ),
    _Kind(
        column=Column(title="mem MHz", align="right", rank=12),
        cell=lambda gpu, _: _plain(fmt.count(gpu.memory_mhz, none=_NA)),
        is_known=lambda gpu: gpu.memory_mhz is not None,
    ),
    _Kind(
        column=Column(title="energy", align="right", rank=13),
        cell=lambda gpu, _: _plain(_kilowatt_hours(gpu.energy_j)),
        is_known=lambda gpu: gpu.energy_j is not None,
    ),
    _Kind(
        column=Column(title="SM", align="right", rank=9),
        cell=lambda gpu, _: _plain(fmt.percent(gpu.sm, none=_NA)),
        is_known=lambda gpu: gpu.sm is not None,
    ),
    _Kind(
        column=Column(title="tensor", align="right", rank=10),
        cell=lambda gpu, _: _plain(fmt.percent(gpu.tensor, none=_NA)),
        is_known=lambda gpu: gpu.tensor is not None,
    ),
    _Kind(
        column=Column(title="NVLink", align="right", rank=8),
        cell=lambda gpu, _: _plain(_gigabytes(gpu.nvlink_bytes_s)),
        is_known=lambda gpu: gpu.nvlink_bytes_s is not None,
    ),
    _Kind(
        column=Column(title="rank", align="right", rank=11),
        cell=lambda gpu, _: _plain(fmt.count(gpu.rank, none=_NA)),
        is_known=lambda gpu: gpu.rank not in (None, gpu.index),
    ),
    _Kind(column=Column(title="slowed by", rank=6), cell=_reasons_cell),
)
