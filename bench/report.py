"""From timings to rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.machine import Ceilings
from bench.rows import SHARE, TOKENS, Machine, Row, worst
from bench.timing import Contest, median, spread
from nmoe.probe import TIMINGS, gbps, tflops


@dataclass(kw_only=True)
class Report:
    """Where rows of one machine are collected."""

    rows: list[Row]
    machine: Machine
    ceilings: Ceilings

    def add(
        self,
        contest: Contest,
        name: str,
        *,
        what: str,
        shape: str,
        work: float,
        unit: str,
        errors: Mapping[str, float] | None = None,
        plain: Mapping[str, float] | None = None,
        ceiling: float | None = None,
    ) -> None:
        """The row of one entrant: `work` FLOPs or bytes in the median time.

        ceiling: in `unit`, when it is neither that of a product nor that of a copy here.
        """
        times = contest.taken(name, what, last=TIMINGS)
        if not times:
            note = contest.failures.get(name, "was not timed")
            self.note(name, what=what, shape=shape, note=note)
            return
        us = median(times)
        rate = tflops(work, us) if unit == "TFLOP/s" else gbps(work, us)
        self.rows.append(
            Row(
                what=what,
                shape=shape,
                implementation=name,
                machine=self.machine,
                us=us,
                spread_us=spread(times),
                timings=len(times),
                rate=rate,
                unit=unit,
                percent=100 * rate / (ceiling or self.ceilings.of(unit)),
                errors=dict(errors or {}),
                plain_error=worst(plain or {}),
            )
        )

    def steps(
        self,
        name: str,
        *,
        what: str,
        shape: str,
        times: Sequence[float],
        tokens: int,
        flops: float,
        errors: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Tokens a second of steps of `tokens` tokens and `flops` FLOPs on each GPU."""
        us = median(times)
        self.rows.append(
            Row(
                what=what,
                shape=shape,
                implementation=name,
                machine=self.machine,
                us=us,
                spread_us=spread(times),
                timings=len(times),
                rate=1e6 * tokens / us,
                unit=TOKENS,
                percent=100 * tflops(flops, us) / self.ceilings.matmul,
                errors=dict(errors or {}),
                note=note,
            )
        )

    def part(
        self, name: str, *, part: str, shape: str, us: float, of_us: float, flops: float, note: str
    ) -> None:
        """A part of a step: its time, its share of the step, and how near it is to its floor."""
        floor_us = flops / self.ceilings.matmul / 1e6
        if flops:
            note = f"floor {floor_us / 1000:,.2f} ms; {note}"
        self.rows.append(
            Row(
                what=f"part {part}",
                shape=shape,
                implementation=name,
                machine=self.machine,
                us=us,
                timings=1,
                rate=100 * us / of_us,
                unit=SHARE,
                percent=100 * floor_us / us if flops and us else None,
                note=note.removesuffix("; "),
            )
        )

    def note(self, name: str, *, what: str, shape: str, note: str) -> None:
        """The row of an implementation without figures."""
        self.rows.append(
            Row(what=what, shape=shape, implementation=name, machine=self.machine, note=note)
        )

    def figure(
        self, name: str, *, what: str, shape: str, value: float, unit: str, note: str = ""
    ) -> None:
        """A row of one figure that is no time."""
        self.rows.append(
            Row(
                what=what,
                shape=shape,
                implementation=name,
                machine=self.machine,
                rate=value,
                unit=unit,
                note=note,
            )
        )

    def add_ceilings(self) -> None:
        """What the percentages refer to, as rows of their own."""
        known = {"matmul": "TFLOP/s", "copy": "GB/s", "peer": "GB/s"}
        for name, unit in known.items():
            if (value := getattr(self.ceilings, name)) is not None:
                self.figure("torch", what=f"ceiling {name}", shape="", value=value, unit=unit)
