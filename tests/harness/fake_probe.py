"""Stands in for `nmoe.probe`: prints what FAKE_PROBE says, and ends as that says."""

import os
import sys
import time

LINES = {
    "gpu": (
        '{"name": "CUDA", "value": "13.0"}',
        '{"name": "matmul", "gpu": 0, "rate": 790.0, "unit": "TFLOP/s", "what": "8192^3"}',
        '{"name": "copy", "gpu": 1, "rate": 1500.0, "unit": "GB/s", "what": "1024 MiB"}',
        '{"name": "peer", "gpu": 0, "to": 1, "error": "GPU 0 cannot reach the memory of GPU 1"}',
    ),
    "rubbish": (
        "\x1b[31mhello",
        '{"rate": 1}',
        "[]",
        '{"name": "matmul", "rate": "fast", "unit": 3}',
        '{"name": "CUDA", "value": "new"}',
        '{"name": "threads", "value": "2"}',
    ),
    "crash": ('{"name": "threads", "value": "2"}',),
    "hang": ('{"name": "threads", "value": "2"}',),
}


def main() -> int:
    mode = os.environ["FAKE_PROBE"]
    for line in LINES[mode]:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if mode == "hang":
        time.sleep(600)
    if mode == "crash":
        sys.stderr.write("Traceback\nImportError: libcudart.so.13: cannot open shared object\n")
    return 1 if mode == "crash" else 0


if __name__ == "__main__":
    sys.exit(main())
