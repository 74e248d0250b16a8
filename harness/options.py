"""The options that verbs of the `n` command share, each declared once."""

from pathlib import Path
from typing import Annotated, Literal

import typer

DtypeName = Literal["fp32", "bf16", "fp8", "nvfp4"]
Headless = Annotated[
    bool,
    typer.Option("--headless", help="Progress on stderr, event lines on stdout; no screen."),
]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Only the result.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", metavar="N", help="How many GPUs (default: all); ranks of a CPU preset."
    ),
]
Steps = Annotated[int | None, typer.Option("--steps", metavar="N", help="Most steps to take.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of weights and order.")]
Repeat = Annotated[
    int | None,
    typer.Option("--repeat", metavar="N", help="N runs of --steps steps, each with its own seed."),
]
Dtype = Annotated[
    DtypeName | None,
    typer.Option("--dtype", help="Default: what suits the hardware."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder with train and val (ranked apart)."),
]
Mirror = Annotated[
    str | None,
    typer.Option("--mirror", metavar="URL", help="Where missing data is fetched from instead."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one value; repeatable."),
]
FakeHardware = Annotated[
    Path | None,
    typer.Option("--fake-hardware", metavar="FILE", help="Plan for a machine described in JSON."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan and its problems; start nothing.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Run id, its beginning, or last.")]
Scored = Annotated[
    str, typer.Argument(metavar="RUN", help="Run id, its beginning, last, or a file of items.")
]
Side = Annotated[
    str, typer.Argument(metavar="RUN", help="Run, last, set of repeats; preset with --repeat.")
]
OptionalRun = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="Its target, else its newest step.")
]
CheckpointFolder = Annotated[
    Path | None, typer.Option("--checkpoint", metavar="DIR", help="A folder in checkpoints/.")
]
Cap = Annotated[
    int | None,
    typer.Option("--cap", metavar="N", min=0, help="Items a task; 0: all (default: as the run)."),
]
Tasks = Annotated[
    str | None, typer.Option("--tasks", metavar="A,B", help="Default: all of the bundle.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="The result as JSON; its items beside it."),
]
Records = Annotated[
    Path | None, typer.Option("--records", metavar="FILE", help="The items, a JSON line each.")
]
