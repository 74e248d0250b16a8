"""Samples of GPUs by a process of their own: `python -m harness.gpu_process --gpus N`.

The driver's library is native code. It has corrupted the memory of the process that asks it, and a
GPU that hangs lets it hang: that must cost a sample, never a run. A line on the child's stdin asks
for the next answer, its first is the topology; an answer is event lines and an empty line.
"""

import argparse
import os
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import hardware, launch
from harness.errors import MachineError
from nmoe.event_line import EventError
from nmoe.events import Event, GpuEvent, Record, TopologyEvent, decode, encode

COMMAND = (sys.executable, "-m", "harness.gpu_process")
ANSWER_S = 30.0  # a driver with a GPU in trouble takes seconds
LEAVE_S = 2.0
CHUNK_BYTES = 1 << 16
WHO = "the process that asks the driver about the GPUs"
WAY_ON = "It is started again; see logs/supervisor.log."


class GpuProcess:
    """Asks about the first `num_gpus` visible GPUs; a child that ended may be started again."""

    def __init__(self, num_gpus: int) -> None:
        self._command = (*COMMAND, "--gpus", str(num_gpus))
        self._process: launch.Process | None = None
        self._rest = b""
        self.topology: TopologyEvent | None = None

    @property
    def is_started(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start the child and read how the GPUs are joined; raises MachineError."""
        try:
            self._process = launch.spawn_answering(self._command)
        except OSError as error:
            raise MachineError(f"{WHO} cannot be started: {error.strerror}") from None
        told = self._ask()
        self.topology = next((event for event in told if isinstance(event, TopologyEvent)), None)

    def sample(self) -> tuple[GpuEvent, ...]:
        """One event a GPU; MachineError when the child ended, hangs or talks nonsense.

        Then it is gone and may be started again.
        """
        return tuple(event for event in self._ask() if isinstance(event, GpuEvent))

    def close(self) -> None:
        """The child sees the end of its stdin and gives back what it took from the driver."""
        if self._process is not None:
            self._end(patience_s=LEAVE_S)

    def _ask(self) -> list[Event]:
        """The next answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
            records = [decode(line) for line in self._answer(time.monotonic() + ANSWER_S)]
        except (BrokenPipeError, EOFError):
            how = launch.how_it_ended(self._end(patience_s=LEAVE_S))
            raise MachineError(f"{WHO} {how}", WAY_ON) from None
        except (TimeoutError, EventError) as error:
            self._end(patience_s=0.0)
            raise MachineError(f"{WHO} {error}", WAY_ON) from None
        return [record.event for record in records if record is not None]

    def _answer(self, end_at: float) -> list[bytes]:
        """The lines before the next empty one."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while not (self._rest.startswith(b"\n") or b"\n\n" in self._rest):
            ready, _, _ = select.select([fd], [], [], max(0.0, end_at - time.monotonic()))
            if not ready:
                raise TimeoutError(f"did not answer in {ANSWER_S:g} s")
            chunk = os.read(fd, CHUNK_BYTES)
            if not chunk:
                raise EOFError
            self._rest += chunk
        answer, _, self._rest = (b"\n" + self._rest).partition(b"\n\n")
        return answer.split(b"\n")[1:]

    def _end(self, *, patience_s: float) -> int | None:
        """Let the child end; its exit code."""
        process, self._process, self._rest = self._process, None, b""
        assert process is not None
        return launch.let_end(process, patience_s=patience_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the child: answers until its stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m harness.gpu_process")
    parser.add_argument("--gpus", type=int, required=True, metavar="N")
    parser.add_argument("--fake-hardware", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    sampler = hardware.open_sampler(args.gpus, fake=args.fake_hardware)
    topology = sampler.topology()
    answer: Sequence[Event] = () if topology is None else (topology,)
    for number, _ in enumerate(sys.stdin):
        _say(answer if number == 0 else sampler.sample())
    sampler.close()
    return 0


def _say(events: Sequence[Event]) -> None:
    now = time.time()
    records = (Record(seq=0, time=now, attempt=0, event=event) for event in events)
    sys.stdout.write("".join(encode(record) + "\n" for record in records) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
