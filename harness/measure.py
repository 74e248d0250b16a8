"""The bench suite as a screen starts it: beside no run, one at a time; leaving does not end it."""

from harness import launch
from harness.alive import is_held, newest_alive
from harness.errors import MachineError, RunError
from harness.hardware import detect
from nmoe.paths import DataRoot

# What can be measured, and what that is.
PARTS = {
    "kernels": "each of them, and the layer",
    "loss": "the loss of the head",
    "transport": "dispatch and return between GPUs",
}
_TAIL_BYTES = 4096


def start(part: str, root: DataRoot) -> None:
    """Start a part of the suite on this machine's GPUs; its rows go where `n bench` keeps them.

    MachineError without GPUs to measure; RunError beside a live run or another measurement.
    """
    found = detect()
    if not found.has_supported_gpu:
        problem = found.problems[0]
        raise MachineError(f"nothing to measure: {problem.what}", problem.fix)
    num = len(found.gpus)
    if part == "transport" and num < 2:
        raise MachineError("transport needs two GPUs or more: got 1", "Measure kernels or loss.")
    if (run := newest_alive(root)) is not None:
        raise RunError(
            f"run {run.run_id} is alive: each would slow the other",
            f"Wait for its end, or run: n stop {run.run_id}",
        )
    launch.spawn_bench(root, [part, "--gpus", str(num)] if part == "transport" else [part])


def is_running(root: DataRoot) -> bool:
    """Whether the suite that a screen started is at work."""
    return is_held(root.bench / "lock")


def last_words(root: DataRoot) -> str:
    """The newest line that the suite printed."""
    try:
        with (root.bench / "log").open("rb") as log:
            log.seek(max(0, log.seek(0, 2) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
