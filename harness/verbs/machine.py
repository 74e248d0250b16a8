"""The verb of this machine: doctor."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from harness.options import FakeHardware, Gpus, Json
from harness.terminal import answer

Preset = Annotated[
    str | None, typer.Argument(metavar="PRESET", help="What to run (default: as n speedrun).")
]
Quick = Annotated[
    bool, typer.Option("--quick", help="Measure nothing: only what is known at once.")
]


def doctor(
    preset: Preset = None,
    *,
    quick: Quick = False,
    gpus: Gpus = None,
    as_json: Json = False,
    fake_hardware: FakeHardware = None,
) -> None:
    """Examine and measure this machine before it costs money; say what to mend."""
    from harness import doctor as facts
    from harness import hardware, tables
    from nmoe.paths import data_root

    checks: list[facts.Check] = []
    for check in facts.examine(
        hardware.detect(fake=fake_hardware),
        data_root(),
        nvml=hardware.library(fake_hardware),
        preset=preset,
        num_gpus=gpus,
        is_quick=quick,
    ):
        checks.append(check)
        if not as_json:
            answer(*tables.check_lines(check))
    if as_json:
        answer(json.dumps([asdict(check) for check in checks]))
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(3)
