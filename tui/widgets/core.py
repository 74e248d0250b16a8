"""The CORE table: a row a task, filling in as tasks are scored, with a bar of each score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from harness import format as fmt
from tui.widgets.rows import Panel, Role, Row, clip_row, join_fitting, row_width, spread
from tui.widgets.table import Column, draw_table

_COLUMNS = (
    Column(title="task"),
    Column(title="items", align="right", rank=2),
    Column(title="acc", align="right", rank=1),
    Column(title="centered", align="right"),
    Column(title="s", align="right", rank=3),
)
_MIN_BAR, _MAX_BAR = 6, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One scored task; `acc` and `centered` are fractions, `seconds` its price."""

    name: str
    items: int
    acc: float
    centered: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """Scored tasks of `count`, and their score when it is known, with its interval and notes.

    `step` is set for an interim evaluation of a run that trains on.
    """

    tasks: tuple[Task, ...] = ()
    count: int = 0
    score: float | None = None
    ci95: tuple[float, float] | None = None
    without_boolq: float | None = None
    cropped: int | None = None
    empty_regions: int | None = None
    step: int | None = None


class CoreTable(Panel[Core]):
    """The newest tasks stay visible when not all fit."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_core(self.value, width, height)


def draw_core(core: Core, width: int, height: int) -> list[Row]:
    """Summary, header and tasks in `width` x `height` cells."""
    if height < 1:
        return []
    if not core.tasks:
        return [(("CORE is scored once the target is reached", "dim"),)]
    num_tasks = max(0, height - 2)
    tasks = core.tasks[-num_tasks:] if num_tasks else ()
    table = draw_table(
        _COLUMNS,
        [
            (
                task.name,
                fmt.count(task.items),
                fmt.percent(task.acc, decimals=1),
                fmt.core(task.centered),
                fmt.fixed(task.seconds, decimals=1),
            )
            for task in tasks
        ],
        width,
    )
    used = max(row_width(row) for row in table)
    bar_width = min(_MAX_BAR, width - used - 2)
    if bar_width >= _MIN_BAR:
        header, *records = table
        bars = [_bar(task.centered, bar_width) for task in tasks]
        table = [header, *map(_beside, records, bars, repeat(used + 2))]
    return [_summary(core, width), *table][:height]


def _summary(core: Core, width: int) -> Row:
    interim = "" if core.step is None else f"step {fmt.count(core.step)} "
    if core.score is not None:
        done: Row = (
            (f"{interim}CORE ", "strong"),
            (fmt.core(core.score), "text" if interim else "good"),
            (fmt.interval(core.ci95), "dim"),
        )
        notes = join_fitting(_notes(core), width - row_width(done) - 2, gap=" · ")
        return clip_row(spread(done, notes, width), width)
    mean = sum(task.centered for task in core.tasks) / len(core.tasks)
    partial: Row = ((f"{interim}so far ", "dim"), (fmt.core(mean), "text"))
    return clip_row(
        spread(partial, ((f"{len(core.tasks)} of {core.count} tasks", "dim"),), width), width
    )


def _notes(core: Core) -> list[Row]:
    """Facts about the score, the most telling first."""
    facts = [f"{len(core.tasks)} tasks"]
    if core.without_boolq is not None:
        facts.append(f"{fmt.core(core.without_boolq)} without boolq (ours)")
    if core.cropped:
        facts.append(f"{fmt.count(core.cropped)} cropped")
    if core.empty_regions:
        facts.append(f"{fmt.count(core.empty_regions)} empty")
    return [((fact, "dim"),) for fact in facts]


def _beside(row: Row, bar: Row, column: int) -> Row:
    """The bar behind the row, beginning at `column`."""
    return (*row, (" " * (column - row_width(row)), "text"), *bar)


def _bar(centered: float, width: int) -> Row:
    """A bar from 0 to 1; nothing for a task at or below chance."""
    frac = min(1.0, max(0.0, centered)) if centered == centered else 0.0
    filled = round(frac * width)
    role: Role = "line" if filled else "faint"
    return (("━" * filled, role), ("─" * (width - filled), "faint"))
