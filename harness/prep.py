"""`n prep eval` and the child of a run that does the same: `python -m harness.prep [--json]`.

`--json` prints one progress object a line on stdout, as the other preparations do; otherwise
progress goes to stderr for people. Exit codes: 0 done, 2 usage, 3 disk, 4 network or data.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from harness import bundle, download
from harness import format as text
from harness.errors import HarnessError
from harness.pins import BundleRecord
from nmoe.paths import data_root

INTERRUPTED_EXIT = 130
REPORT_EVERY_S = 0.1

Steps = Generator[download.Progress, None, BundleRecord | None]


class Lines:
    """Progress as JSON lines, at most ten a second and always at the end of a job."""

    def __init__(self) -> None:
        self._last = 0.0

    def show(self, step: download.Progress) -> None:
        """Print one step."""
        now = time.monotonic()
        if step.done < step.total and now - self._last < REPORT_EVERY_S:
            return
        self._last = now
        line = {"job": step.label, "done": step.done, "total": step.total, "unit": step.unit}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


class Bars:
    """Progress as one bar a job on a terminal; a line a finished job elsewhere."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16))
        console = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self.progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._jobs: dict[str, TaskID] = {}

    def show(self, step: download.Progress) -> None:
        """Move the bar of one step."""
        if step.label not in self._jobs:
            self._jobs[step.label] = self.progress.add_task(step.label, total=None, note="")
        note = f"{text.bytes_(step.done)} of {text.bytes_(step.total)}"
        self.progress.update(
            self._jobs[step.label], completed=step.done, total=step.total, note=note
        )


def _run(steps: Steps, *, as_json: bool) -> BundleRecord | None:
    shown = Lines() if as_json else Bars()
    if isinstance(shown, Bars):
        shown.progress.start()
    try:
        while True:
            try:
                shown.show(next(steps))
            except StopIteration as end:
                return end.value
    finally:
        if isinstance(shown, Bars):
            shown.progress.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="n prep eval",
        description="The official eval bundle into the data root; a whole one is left as it is.",
        epilog="n prep eval --output DIR writes the small bundle of pocket instead.",
        allow_abbrev=False,
    )
    parser.add_argument(
        *("--from",), dest="archive", type=Path, metavar="FILE", help="a zip or tar at hand"
    )
    parser.add_argument("--mirror", metavar="URL", help="base URL in place of the official one")
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the official bundle; the exit code is returned."""
    args = _parser().parse_args(argv)
    root = data_root()
    try:
        with closing(bundle.install(root, archive=args.archive, mirror=args.mirror)) as steps:
            record = _run(steps, as_json=args.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no second complaint
        return INTERRUPTED_EXIT
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again to go on\n")
        return INTERRUPTED_EXIT
    if not args.json:
        status = record.status if record else "unpacked by hand, only its lists are checked"
        sys.stderr.write(f"eval bundle: {status}, whole in {root.bundle(bundle.OFFICIAL)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
