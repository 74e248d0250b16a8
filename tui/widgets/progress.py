"""Progress bars, one a job."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from harness import format as fmt
from tui.widgets.meters import meter
from tui.widgets.rows import Panel, Role, Row, clean, clip_row, pad

_MAX_BAR = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job: `done` of `total` in `unit`; a total of 0 is unknown."""

    name: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Jobs under a heading."""

    heading: str = ""
    note: str = ""
    jobs: tuple[Job, ...] = ()


class ProgressBars(Panel[Progress]):
    """A heading, a row a job, and a note below."""

    def draw(self, width: int, height: int) -> Sequence[Row]:
        return draw_progress(self.value, width, height)


def draw_progress(progress: Progress, width: int, height: int) -> list[Row]:
    """Everything in `width` x `height` cells; the newest jobs when not all fit."""
    if height < 1 or width < 1:
        return []
    rows: list[Row] = []
    is_roomy = height >= len(progress.jobs) + 4
    if progress.heading:
        rows.append(((progress.heading, "strong"),))
        if is_roomy:
            rows.append(())
    room = height - len(rows)
    jobs = progress.jobs[-room:] if room > 0 else ()
    longest = max([cell_len(clean(job.name)) for job in jobs], default=0)
    name_width = min(longest, max(8, width // 3))
    tails = [_tail(job) for job in jobs]
    bar_width = width - name_width - 3 - max([cell_len(tail) for tail in tails], default=0)
    bar_width = max(4, min(_MAX_BAR, bar_width))
    rows.extend(
        _job(job, name_width, bar_width, tail) for job, tail in zip(jobs, tails, strict=True)
    )
    if progress.note and len(rows) < height:
        if is_roomy and jobs:
            rows.append(())
        rows.append(((progress.note, "dim"),))
    return [clip_row(row, width) for row in rows[:height]]


def _job(job: Job, name_width: int, bar_width: int, tail: str) -> Row:
    is_done = job.total > 0 and job.done >= job.total
    bar = meter(_frac(job) or 0.0, bar_width, "good" if is_done else "line")
    mark: Role = "good" if is_done else "text"
    return (
        (("✔ " if is_done else "  ") + pad(clean(job.name), name_width) + " ", mark),
        *bar,
        (tail, "text"),
    )


def _frac(job: Job) -> float | None:
    return min(1.0, job.done / job.total) if job.total > 0 else None


def _tail(job: Job) -> str:
    """Percentage and amount; the same number of cells for amounts of one size."""
    return f" {fmt.percent(_frac(job)):>5}  {_amount(job)}"


def _amount(job: Job) -> str:
    if job.unit == "bytes":
        done, total = fmt.bytes_(job.done), fmt.bytes_(job.total)
        return f"{done} of {total}" if job.total > 0 else done
    done, total = fmt.tokens(job.done), fmt.tokens(job.total)
    return f"{done} of {total} {clean(job.unit)}" if job.total > 0 else f"{done} {clean(job.unit)}"
