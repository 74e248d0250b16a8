"""A rank that trains nothing: the flags, files, descriptors and exit codes of the real trainer.

    fake_trainer.py MODE --run R --attempt N --lock-fd F --supervisor-fd G

MODE: steps (to the end), endless (until stopped), deaf (endless, and heeds nobody), oom, nan, late
(rank 1 never ends); any other is endless too.
"""

import argparse
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

from nmoe.event_log import EventLog
from nmoe.events import OutcomeEvent, PhaseEvent, Status, StepEvent, StopAckEvent
from nmoe.paths import RunFolder

EVERY = 10
STEPS = 50
STEP_S = 0.002
CODES = {"missed": 6, "interrupted": 130, "diverged": 5}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--attempt", type=int)
    parser.add_argument("--lock-fd", type=int)
    parser.add_argument("--supervisor-fd", type=int)
    args = parser.parse_args()
    os.fstat(args.lock_fd)
    rank = int(os.environ["RANK"])
    print(f"rank {rank} of {os.environ['WORLD_SIZE']}", flush=True)
    if args.mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trainer = Trainer(RunFolder(root=args.run), args.attempt, rank)
    if rank == 0:
        trainer.begin()
    if args.mode == "oom" and rank == 1:
        print("Traceback\ntorch.OutOfMemoryError: CUDA out of memory.", file=sys.stderr)
        return 1
    if args.mode == "nan":
        return trainer.end("diverged", "the loss is nan at step 10")
    return loop(trainer, args.mode, args.supervisor_fd)


def loop(trainer: "Trainer", mode: str, supervisor_fd: int) -> int:
    is_main = trainer.rank == 0
    while True:
        trainer.step += EVERY
        if is_main:
            trainer.report()
        if trainer.step >= STEPS and (mode == "steps" or (mode == "late" and is_main)):
            return trainer.end("missed")
        if mode != "deaf" and trainer.folder.stop_request.exists():
            return trainer.end("interrupted")
        if mode != "deaf" and select.select([supervisor_fd], [], [], 0)[0]:
            trainer.folder.log(f"orphan{trainer.rank}").write_text("the supervisor is gone")
            return 143
        time.sleep(EVERY * STEP_S)


class Trainer:
    """Rank 0's files; `step` goes on from the last stop."""

    def __init__(self, folder: RunFolder, attempt: int, rank: int) -> None:
        self.folder, self.attempt, self.rank = folder, attempt, rank
        self.checkpoint = folder.checkpoints / "step.json"
        self.step = json.loads(self.checkpoint.read_text()) if self.checkpoint.exists() else 0

    def begin(self) -> None:
        self.log = EventLog(self.folder.train, attempt=self.attempt)
        self.log.write(
            PhaseEvent(phase="training", resume_step=self.step if self.attempt else None)
        )

    def report(self) -> None:
        step = self.step
        self.log.write(
            StepEvent(
                step=step,
                tokens=step * 1024,
                loss=3.0,
                lr=1e-3,
                grad_norm=1.0,
                ms=2.0,
                tok_s=5e5,
                mfu=None,
                train_s=step * STEP_S,
                wall_s=step * STEP_S,
            )
        )

    def end(self, status: Status, message: str = "") -> int:
        if self.rank:
            return CODES[status]
        if status == "interrupted":
            self.checkpoint.parent.mkdir(exist_ok=True)
            self.checkpoint.write_text(json.dumps(self.step))
            self.log.write(StopAckEvent(step=self.step, reason="request"))
        self.log.write(
            OutcomeEvent(
                status=status,
                step=self.step,
                tokens=self.step * 1024,
                loss=None,
                train_s=self.step * STEP_S,
                wall_s=self.step * STEP_S,
                compile_s=0.0,
                eval_s=0.0,
                checkpoint_s=0.0,
                peak_memory_bytes=1,
                params_total=1,
                params_active=1,
                message=message,
            )
        )
        return CODES[status]


if __name__ == "__main__":
    sys.exit(main())
