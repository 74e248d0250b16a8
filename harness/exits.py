"""How an attempt ended: from exit codes of ranks, the trainer's outcome and the end of a log."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nmoe.events import ExitEvent, OutcomeEvent, Status

# The exit codes of a rank that ended as it meant to.
ORDERLY: Mapping[int, Status] = {0: "done", 6: "missed", 7: "core-failed", 130: "interrupted"}
# Outcomes after which nothing is left to do, and their exit codes.
FINAL: Mapping[Status, int] = {"done": 0, "missed": 6, "core-failed": 7}
TRAINING_FAILED = 5
# Codes that mean the same for a rank and for the run.
PASSED_ON = frozenset({1, 2, 3, 4, TRAINING_FAILED})
DATA_FAILED = 4
PREP_CODES = frozenset({2, 3, DATA_FAILED})
INTERRUPTED = 130
TERMINATED = 143
TAIL_LINES = 20
TAIL_BYTES = 1 << 14
# An error names an address, a path and what to do.
TAIL_WIDTH = 600

HINTS = (
    (
        r"CUDA out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|DefaultCPUAlloc",
        "out of memory: lower train.micro_batch, the global batch stays the same",
    ),
    (
        r"No space left on device.*/dev/shm|/dev/shm.*No space left on device|unable to mmap",
        "/dev/shm is full or too small: free it, or start the container with --shm-size=8g",
    ),
    (r"No space left on device|Disk quota exceeded", "the disk is full: free space, then resume"),
    (
        r"EADDRINUSE|[Aa]ddress already in use",
        "another process took the port between choosing and using it: resume",
    ),
    (
        r"the loss is (nan|-?inf)|not finite|non-finite",
        "the loss is no number any more: lower the learning rate or change the seed",
    ),
)
SIGNAL_HINTS = {
    "SIGKILL": "killed from outside: by a person, or by the kernel when memory ran out (dmesg)",
    "SIGBUS": "a memory map lost its file: /dev/shm is full, or a shard was cut while in use",
    "SIGSEGV": "a crash in native code: the log may say where",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The first rank that ended as it should not; a negative `code` is the signal that did it."""

    rank: int
    code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A request to stop the run: who asked, and the exit code that a stopped run has then."""

    by: str
    code: int = INTERRUPTED


def judge(
    failure: Failure | None,
    outcome: OutcomeEvent | None,
    *,
    code: int,
    stop: Stop | None,
    was_forced: bool,
    tail: Sequence[str],
) -> ExitEvent:
    """The exit record of an attempt whose processes are all gone.

    `code` is rank 0's, used when no rank failed; `was_forced` says that signals had to enforce
    the stop.
    """
    if failure is None:
        status = outcome.status if outcome else ORDERLY.get(code, "failed")
        if status == "interrupted":
            return ExitEvent(status=status, rc=stop.code if stop else INTERRUPTED)
        return ExitEvent(status=status, rc=code, hint=outcome.message if outcome else "")
    name = signal_name(failure.code)
    if outcome is not None and outcome.status in FINAL:
        hint = f"rank {failure.rank} ended badly, but after the work was done"
        return ExitEvent(
            status=outcome.status,
            rc=FINAL[outcome.status],
            signal=name,
            rank=failure.rank,
            tail=tuple(tail),
            hint=hint,
        )
    if stop and was_forced and name:
        hint = "did not stop in time and was killed: goes on from its last checkpoint"
        return ExitEvent(
            status="interrupted", rc=stop.code, signal=name, rank=failure.rank, hint=hint
        )
    is_diverged = outcome is not None and outcome.status == "diverged"
    return ExitEvent(
        status="diverged" if is_diverged else "failed",
        rc=failure.code if failure.code in PASSED_ON else TRAINING_FAILED,
        signal=name,
        rank=failure.rank,
        tail=tuple(tail),
        hint=find_hint(tail, name) or (outcome.message if outcome else "") or last_error(tail),
    )


def judge_prep(code: int, tail: Sequence[str]) -> ExitEvent:
    """The exit record of an attempt whose preparation failed; its last line says why."""
    name = signal_name(code)
    return ExitEvent(
        status="failed",
        rc=code if code in PREP_CODES else DATA_FAILED,
        signal=name,
        tail=tuple(tail),
        hint=find_hint(tail, name) or last_error(tail) or "preparation failed without a word",
    )


def signal_name(code: int) -> str | None:
    """SIGKILL for -9; None for a code that is no signal."""
    if code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def find_hint(tail: Sequence[str], name: str | None = None) -> str:
    """What to do about the last lines of a log or the signal that ended its writer, if known."""
    text = "\n".join(tail)
    for pattern, hint in HINTS:
        if re.search(pattern, text):
            return hint
    return SIGNAL_HINTS.get(name or "", "")


def last_error(tail: Sequence[str]) -> str:
    """The last line of a log that is an error message, else its last line."""
    errors = [line for line in tail if re.match(r"(error|\w*Error): ", line)]
    last = (errors or tail or [""])[-1]
    return last.removeprefix("error: ")


def read_tail(path: Path, *, since: int = 0) -> tuple[str, ...]:
    """The last lines of a log that were written after byte `since`, cut to a readable width."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(since, size - TAIL_BYTES)
            file.seek(start)
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ()
    whole = lines[1:] if start > since else lines
    return tuple(line[:TAIL_WIDTH] for line in whole if line.strip())[-TAIL_LINES:]
