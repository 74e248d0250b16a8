"""A machine described in a JSON file: answers like NVML, so that detection runs on it unchanged.

The file maps NVML function names to values; `{"error": "NotSupported"}` raises that NVML error,
a list under `{"each": […]}` gives one answer after the other and then stays at the last one:

    {"system": {"nvmlSystemGetDriverVersion": "580.82.07"},
     "gpus": [{"count": 8, "nvmlDeviceGetName": "NVIDIA B200", …}]}
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from harness.errors import UsageError


class FakeNvml:
    """The part of the pynvml module that detection and sampling use, driven by a table."""

    def __init__(self, scenario: Mapping[str, Any], *, real: Any) -> None:
        """Constants and exception classes come from `real`, the pynvml module."""
        self.NVMLError = real.NVMLError
        self._real = real
        self._system: Mapping[str, Any] = scenario.get("system", {})
        self._gpus = [gpu for gpu in scenario.get("gpus", ()) for _ in range(gpu.get("count", 1))]
        self._calls: dict[tuple[str, int | None], int] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(self._real, name)
        if name.startswith("nvml"):
            return self._function(name)
        raise AttributeError(name)

    def calls(self, name: str) -> int:
        """How often the function `name` was called."""
        return sum(count for (called, _), count in self._calls.items() if called == name)

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if "nvmlDeviceGetHandleByIndex" in self._gpus[index]:
            self._answer("nvmlDeviceGetHandleByIndex", index)
        return index

    def _function(self, name: str) -> Callable[..., Any]:
        def of_gpu(handle: int, *_: object) -> Any:
            return self._answer(name, handle)

        def of_system(*_: object) -> Any:
            return self._answer(name, None)

        return of_gpu if name.startswith("nvmlDevice") else of_system

    def _answer(self, name: str, gpu: int | None) -> Any:
        count = self._calls.get((name, gpu), 0)
        self._calls[name, gpu] = count + 1
        table = self._system if gpu is None else self._gpus[gpu]
        if name in table:
            return self._value(table[name], count)
        if name == "nvmlDeviceGetUUID":
            return f"GPU-fa4e0000-0000-0000-0000-{gpu:012d}"
        if name in ("nvmlInit", "nvmlShutdown"):
            return None
        raise self._real.NVMLError_NotSupported()

    def _value(self, value: Any, count: int) -> Any:
        if isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            if "each" in table:
                return self._value(table["each"][min(count, len(table["each"]) - 1)], 0)
            if "error" in table:
                raise getattr(self._real, f"NVMLError_{table['error']}")()
            return SimpleNamespace(**table)
        return value


def read_scenario(path: Path) -> dict[str, Any]:
    """The scenario of a file; UsageError when it is not one."""
    try:
        scenario = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as fake hardware: {error}") from None
    if not isinstance(scenario, dict) or not {"system", "gpus"} & scenario.keys():
        raise UsageError(
            f"{path}: not fake hardware: expected an object with system and gpus",
            "See tests/data/hardware for examples.",
        )
    return cast(dict[str, Any], scenario)
