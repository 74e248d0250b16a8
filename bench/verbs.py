"""What the quick verbs cost: `python -m bench.verbs` starts each anew, in turns.

Wall clock and processor time of the fastest of several starts, in seconds: what else the machine
does makes only the others slower. `n --help` is to take .3 s at most, lists .5 s.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nmoe.paths import REPO_ROOT

VERBS = (
    ("--help",),
    ("runs",),
    ("leaderboard",),
    ("speedrun", "--leaderboard"),
    ("doctor", "--quick"),
)


def start(arguments: tuple[str, ...], root: Path) -> tuple[float, float]:
    """(wall clock, user and system time) of one start, in seconds."""
    command = [sys.executable, "-P", "-m", "harness.cli", *arguments]
    environ = os.environ | {"DATA_DIR": str(root), "PYTHONPATH": str(REPO_ROOT)}
    began = time.perf_counter()
    child = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"n {' '.join(arguments)} ended with {child.returncode}")
    return wall_s, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure all of them, a verb a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=10, metavar="N", help="of each verb")
    starts: int = parser.parse_args().starts
    times: dict[tuple[str, ...], list[tuple[float, float]]] = {verb: [] for verb in VERBS}
    with tempfile.TemporaryDirectory(prefix="verbs-") as folder:
        for _ in range(starts):
            for verb in VERBS:
                times[verb].append(start(verb, Path(folder)))
    for verb, found in times.items():
        wall_s, cpu_s = map(min, zip(*found, strict=True))
        print(f"n {' '.join(verb):22} {wall_s:.2f} s, {cpu_s:.2f} s of CPU")


if __name__ == "__main__":
    main()
