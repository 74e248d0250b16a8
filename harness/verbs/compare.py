"""The verb of two sets of runs: compare."""

import json
from dataclasses import asdict

import typer

from harness.options import Json, Repeat, Side, Steps
from harness.terminal import answer
from harness.verbs.run import run_repeats


def compare(
    first: Side, second: Side, *, repeat: Repeat = None, steps: Steps = None, as_json: Json = False
) -> None:
    """Compare losses and times of two runs or sets; with --repeat, run two presets in turns."""
    from harness import compare as pairs
    from harness import hardware, tables
    from harness import plan as planner
    from nmoe.paths import data_root

    root, names = data_root(), [first, second]
    if repeat is not None:
        detection = hardware.detect()
        plans = [
            planner.resolve(preset=name, detection=detection, root=root, steps=steps)
            for name in names
        ]
        output = "json" if as_json else "quiet"
        code, concluded = run_repeats(plans, detection, root, repeat, steps, None, output, None)
        names = [each.series for each in concluded]
        if code in (130, 143):
            raise typer.Exit(code)
    found = pairs.compare_runs(names[0], names[1], root)
    if as_json:
        answer(json.dumps(asdict(found)))
    else:
        answer(*tables.run_comparison_lines(found))
