"""A machine described in a JSON file: answers like NVML, so that detection runs on it unchanged.

The file maps NVML function names to values; `{"error": "NotSupported"}` raises that NVML error,
a list under `{"each": […]}` gives one answer after the other and then stays at the last one:

    {"system": {"nvmlSystemGetDriverVersion": "580.82.07"},
     "gpus": [{"count": 8, "nvmlDeviceGetName": "NVIDIA B200", …}]}

`{"by": {"0": 1, "2": 0}}` answers by the last argument, or by all after the GPU ("1,0");
`{"from": 5, "step": 2}` counts up call by call. "fields" and "gpm" of a GPU map the names of NVML
fields and GPM metrics to values.
"""

import json
from collections.abc import Callable, Mapping, Sequence
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
        self._calls: dict[tuple[str, int | None, tuple[object, ...]], int] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(self._real, name)
        if name.startswith("nvml"):
            return self._function(name)
        raise AttributeError(name)

    def __dir__(self) -> list[str]:
        return dir(self._real)

    def calls(self, name: str) -> int:
        """How often the function `name` was called."""
        return sum(count for (called, _, _), count in self._calls.items() if called == name)

    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if "nvmlDeviceGetHandleByIndex" in self._gpus[index]:
            self._answer("nvmlDeviceGetHandleByIndex", index)
        return index

    def nvmlDeviceGetFieldValues(self, handle: int, ids: Sequence[tuple[int, int]]) -> list[Any]:
        """Values in the shape of c_nvmlFieldValue_t; counters of links count up one by one."""
        names = {getattr(self._real, name): name for name in self._gpus[handle].get("fields", {})}
        return [self._field(handle, names.get(field), link) for field, link in ids]

    def _field(self, handle: int, name: str | None, link: int) -> Any:
        value, error = None, self._real.NVML_ERROR_NOT_SUPPORTED
        if name is not None:
            try:
                value, error = self._answer(name, handle, self._gpus[handle]["fields"], [link]), 0
            except self._real.NVMLError as failure:
                error = failure.value
        return SimpleNamespace(
            nvmlReturn=error,
            valueType=self._real.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
            value=SimpleNamespace(ullVal=value),
        )

    def nvmlGpmQueryDeviceSupport(self, handle: int) -> Any:
        return SimpleNamespace(isSupportedDevice=int("gpm" in self._gpus[handle]))

    def nvmlGpmSampleAlloc(self) -> Any:
        return SimpleNamespace(gpu=None)

    def nvmlGpmSampleGet(self, handle: int, sample: Any) -> Any:
        sample.gpu = handle
        return sample

    def nvmlGpmSampleFree(self, sample: Any) -> None:
        sample.gpu = None

    def c_nvmlGpmMetricsGet_t(self) -> Any:
        metrics = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0) for _ in range(16)]
        return SimpleNamespace(metrics=metrics, numMetrics=0, sample1=None, sample2=None)

    def nvmlGpmMetricsGet(self, request: Any) -> Any:
        gpu = request.sample2.gpu
        table = self._gpus[gpu]["gpm"]
        names = {getattr(self._real, name): name for name in table}
        for metric in request.metrics[: request.numMetrics]:
            name = names.get(metric.metricId)
            metric.value, metric.nvmlReturn = 0.0, self._real.NVML_ERROR_NOT_SUPPORTED
            if name and not (isinstance(table[name], Mapping) and table[name].get("error")):
                metric.value, metric.nvmlReturn = self._answer(name, gpu, table), 0
        return request

    def _function(self, name: str) -> Callable[..., Any]:
        def of_gpu(handle: int, *args: object) -> Any:
            return self._answer(name, handle, args=args)

        def of_system(*args: object) -> Any:
            return self._answer(name, None, args=args)

        return of_gpu if name.startswith("nvmlDevice") else of_system

    def _answer(
        self,
        name: str,
        gpu: int | None,
        table: Mapping[str, Any] | None = None,
        args: Sequence[object] = (),
    ) -> Any:
        count = self._calls.get((name, gpu, tuple(args)), 0)
        self._calls[name, gpu, tuple(args)] = count + 1
        own = table or (self._system if gpu is None else self._gpus[gpu])
        if name in own:
            return self._value(own[name], count, args)
        if name == "nvmlDeviceGetUUID":
            return f"GPU-fa4e0000-0000-0000-0000-{gpu:012d}"
        if name in ("nvmlInit", "nvmlShutdown"):
            return None
        raise self._real.NVMLError_NotSupported()

    def _value(self, value: Any, count: int, args: Sequence[object] = ()) -> Any:
        if isinstance(value, Mapping):
            table = cast(Mapping[str, Any], value)
            if "each" in table:
                return self._value(table["each"][min(count, len(table["each"]) - 1)], 0)
            if "by" in table:
                by, both = table["by"], ",".join(map(str, args))
                answer = by.get(both, by.get(str(args[-1]), {"error": "InvalidArgument"}))
                return self._value(answer, count)
            if "step" in table:
                return table["from"] + table["step"] * count
            if "error" in table:
                raise getattr(self._real, f"NVMLError_{table['error']}")()
            return SimpleNamespace(**table)
        if isinstance(value, list):
            # Structures in a list, such as processes.
            return [
                SimpleNamespace(**each) if isinstance(each, dict) else each
                for each in cast(list[Any], value)
            ]
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
