"""The trainer on a disk that stands still, or is full, when one rank writes one checkpoint.

python -m tests.slow_disk RANK STEP ARGUMENTS OF nmoe.train …              stands still
python -m tests.slow_disk RANK STEP --full ARGUMENTS OF nmoe.train …       is full
"""

import errno
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nmoe import checkpoint, train

write = checkpoint.write_part


def main(rank: str, step: str, *args: str) -> int:
    is_full = "--full" in args

    def write_there(path: Path, content: Mapping[str, Any]) -> checkpoint.FileInfo:
        if os.environ["RANK"] == rank and int(step) == int(path.parent.stem.split("_")[1]):
            if is_full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            threading.Event().wait()
        return write(path, content)

    checkpoint.write_part = write_there
    return train.main([arg for arg in args if arg != "--full"])


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
