"""The verb of this machine: doctor."""

import json
from dataclasses import asdict

import typer

from harness.options import FakeHardware, Json
from harness.terminal import answer


def doctor(*, as_json: Json = False, fake_hardware: FakeHardware = None) -> None:
    """Examine this machine; say what to mend."""
    from harness import doctor as facts
    from harness import hardware, tables
    from nmoe.paths import data_root

    checks = facts.examine(hardware.detect(fake=fake_hardware), data_root())
    if as_json:
        answer(json.dumps([asdict(check) for check in checks]))
    else:
        answer(*tables.check_lines(checks))
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(3)
