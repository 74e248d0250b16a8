"""The verb of files for others: export."""

from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from harness.errors import MachineError, UsageError
from harness.terminal import answer, say

HtmlFile = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="One page of everything (default)."),
]
SvgFile = Annotated[
    str | None, typer.Option("--svg", metavar="FILE", help="The loss curve as a picture.")
]
CsvFile = Annotated[
    str | None, typer.Option("--csv", metavar="FILE", help="A row a logged step and validation.")
]
JsonFile = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="State, curves and entry.")
]
MllogFile = Annotated[
    str | None, typer.Option("--mllog", metavar="FILE", help="A log in the format of MLPerf.")
]


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Run id, its beginning, last, or the path of a copied run folder."
        ),
    ],
    *,
    html: HtmlFile = None,
    svg: SvgFile = None,
    csv: CsvFile = None,
    json: JsonFile = None,
    mllog: MllogFile = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that exist already.")
    ] = False,
) -> None:
    """Write a run as files for others; FILE may be a folder, or - for stdout."""
    wanted = {"html": html, "svg": svg, "csv": csv, "json": json, "mllog": mllog}
    named = {kind: file for kind, file in wanted.items() if file is not None}
    if sum(file == "-" for file in named.values()) > 1:
        raise UsageError("only one export fits stdout", "Name a file for the others.")
    from harness import curves, replay, report, sheet
    from harness import export as exports
    from harness import mllog as logs
    from harness import svg as drawings
    from nmoe.paths import data_root

    root = data_root()
    folder = replay.find(root, run)
    places = {
        kind: exports.destination(file, folder, kind, force=force) for kind, file in named.items()
    }
    if len(set(places.values())) < len(places):
        raise UsageError("two exports have the same file", "Name a file for each.")
    account = cache(lambda: exports.gather(str(folder.root), root))
    # Rows and picture tell the state alone, which is read in a third of the time.
    is_state_alone = bool(named) and named.keys() <= {"csv", "svg"}
    state = cache(lambda: exports.read_state(folder) if is_state_alone else account().state)
    write = {
        "html": lambda: report.html(account()),
        "svg": lambda: drawings.document(curves.loss_chart(state())),
        "csv": lambda: curves.sheet(state()).csv(),
        "json": lambda: exports.to_json(account()),
        "mllog": lambda: logs.text(account(), root),
    }
    if not named:
        try:
            path = sheet.save(root.exports, folder.run_id, "html", write["html"]())
        except OSError as error:
            raise MachineError(f"cannot write into {root.exports}: {error.strerror}") from None
        answer(str(path))
        return
    texts = {kind: write[kind]() for kind in named}
    for kind, path in places.items():
        _deliver(texts[kind], path)


def _deliver(text: str, path: Path | None) -> None:
    """Write an export where it goes, and say so; None is stdout."""
    from harness import export as exports

    if path is None:
        answer(text.removesuffix("\n"))
        return
    is_replaced = path.exists()
    exports.write(path, text)
    say(f"{'replaced' if is_replaced else 'written to'} {path}")
