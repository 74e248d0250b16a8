"""The verb of this machine: doctor."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.options import FakeHardware, Json
from harness.terminal import answer


def doctor(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only what is known at once; measure nothing.")
    ] = False,
    as_json: Json = False,
    fake_hardware: FakeHardware = None,
) -> None:
    """Examine and measure this machine; say what to mend."""
    from harness import doctor as facts
    from harness import hardware, tables
    from nmoe.paths import data_root

    detection, nvml = hardware.detect(fake=fake_hardware), hardware.library(fake_hardware)
    checks: list[facts.Check] = []
    for check in facts.examine(detection, data_root(), nvml=nvml, is_quick=quick):
        checks.append(check)
        if not as_json:
            answer(*tables.check_lines(check))
    if as_json:
        answer(json.dumps([asdict(check) for check in checks]))
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(3)
