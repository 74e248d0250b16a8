"""From timings to rows."""

from collections.abc import Mapping
from dataclasses import dataclass

from bench.machine import Ceilings, gbps, tflops
from bench.rows import Machine, Row, worst
from bench.timing import TIMINGS, Contest, median, spread


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

    def note(self, name: str, *, what: str, shape: str, note: str) -> None:
        """The row of an implementation without figures."""
        self.rows.append(
            Row(what=what, shape=shape, implementation=name, machine=self.machine, note=note)
        )

    def figure(self, name: str, *, what: str, shape: str, value: float, unit: str) -> None:
        """A row of one figure that is no time."""
        self.rows.append(
            Row(
                what=what,
                shape=shape,
                implementation=name,
                machine=self.machine,
                rate=value,
                unit=unit,
            )
        )

    def add_ceilings(self) -> None:
        """What the percentages refer to, as rows of their own."""
        known = {"matmul": "TFLOP/s", "copy": "GB/s", "peer": "GB/s"}
        for name, unit in known.items():
            if (value := getattr(self.ceilings, name)) is not None:
                self.figure("torch", what=f"ceiling {name}", shape="", value=value, unit=unit)
