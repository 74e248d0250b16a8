"""Rows as the tests of bench/ need them."""

from typing import Any

from bench.rows import OURS, Machine, Row


def a_machine(**changes: Any) -> Machine:
    facts: dict[str, Any] = {
        "gpu": "NVIDIA H200",
        "gpus": 1,
        "driver": "580.1",
        "versions": {"torch": "2.11.0"},
        "commit": "0123456789abcdef",
        "date": "2026-01-02T00:00:00+00:00",
    }
    return Machine(**{**facts, **changes})


def a_row(machine: Machine | None = None, **changes: Any) -> Row:
    facts: dict[str, Any] = {
        "what": "layer forward",
        "shape": "s1",
        "implementation": OURS,
        "us": 2000.0,
        "spread_us": 10.0,
        "timings": 30,
        "rate": 400.0,
        "unit": "TFLOP/s",
        "percent": 50.0,
        "errors": {"y": 0.002},
    }
    return Row(**{**facts, **changes}, machine=machine or a_machine())
