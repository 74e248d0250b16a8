"""Progress bars, one a job."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import format as fmt
from tui.widgets.rows import Panel, Role, Row, clean, clip_row, pad

_PARTS = "▏▎▍▌▋▊▉█"


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
    name_width = min(max([len(clean(job.name)) for job in jobs], default=0), max(8, width // 3))
    rows.extend(_job(job, width, name_width) for job in jobs)
    if progress.note and len(rows) < height:
        if is_roomy and jobs:
            rows.append(())
        rows.append(((progress.note, "dim"),))
    return [clip_row(row, width) for row in rows[:height]]


def _job(job: Job, width: int, name_width: int) -> Row:
    is_done = job.total > 0 and job.done >= job.total
    frac = min(1.0, job.done / job.total) if job.total > 0 else 0.0
    amount = _amount(job)
    tail = f" {fmt.percent(frac if job.total > 0 else None):>5}  {amount}"
    bar_width = max(4, min(60, width - name_width - 2 - max(28, len(tail))))
    filled, empty = _bar(frac, bar_width)
    role: Role = "good" if is_done else "line"
    mark: Role = "good" if is_done else "text"
    return (
        (("✔ " if is_done else "  ") + pad(clean(job.name), name_width) + " ", mark),
        (filled, role),
        (empty, "faint"),
        (tail, "text"),
    )


def _bar(frac: float, width: int) -> tuple[str, str]:
    eighths = round(frac * width * len(_PARTS))
    whole, part = divmod(eighths, len(_PARTS))
    filled = _PARTS[-1] * whole + (_PARTS[part - 1] if part else "")
    return filled, "·" * (width - len(filled))


def _amount(job: Job) -> str:
    if job.unit == "bytes":
        done, total = fmt.bytes_(job.done), fmt.bytes_(job.total)
        return f"{done} of {total}" if job.total > 0 else done
    done, total = fmt.tokens(job.done), fmt.tokens(job.total)
    return f"{done} of {total} {clean(job.unit)}" if job.total > 0 else f"{done} {clean(job.unit)}"
