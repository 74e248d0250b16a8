"""The real supervisor with a fake trainer and little patience, as a process of its own.

    fake_supervisor.py MODE [PREP] --run R --lock-fd F

PREP: none (default), or what `sh -c` shall do as the one preparation.
"""

import argparse
import resource
import signal
import sys
from pathlib import Path

from harness.attempt import Patience
from harness.errors import HarnessError
from harness.supervise import supervise
from nmoe.paths import RunFolder

TRAINER = Path(__file__).with_name("fake_trainer.py")
PATIENCE = Patience(stop_s=0.5, term_s=0.5, peers_s=0.5, linger_s=0.5)
# Bytes a file may have: enough for the supervisor and too few for the trainer, or for neither.
FULL = {"full": 8000, "fuller": 300}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode")
    parser.add_argument("prep", nargs="?", default="")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--lock-fd", type=int)
    args = parser.parse_args()
    if args.mode in FULL:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL[args.mode], FULL[args.mode]))
    prep = [["sh", "-c", args.prep]] if args.prep else []
    try:
        return supervise(
            RunFolder(root=args.run),
            lock_fd=args.lock_fd,
            command=(sys.executable, str(TRAINER), args.mode),
            prep=lambda plan, root: prep,
            patience=PATIENCE,
        )
    except HarnessError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
