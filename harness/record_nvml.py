"""`python -m harness.record_nvml FILE`: what NVML answers here, as a machine for --fake-hardware.

Detection, the doctor and sampling run on the real library while every answer is written down, so
that a test meets a real machine's answers, errors and counters where there is no GPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import hardware
from harness.doctor import gpus
from harness.errors import HarnessError, MachineError
from harness.sampler import Sampler, number_of
from harness.terminal import say
from nmoe.paths import write_atomic

NUM_SAMPLES, EVERY_S = 12, 1.0
# Answers that are structures, by the members that are asked for.
MEMBERS = {
    "nvmlDeviceGetUtilizationRates": ("gpu", "memory"),
    "nvmlDeviceGetMemoryInfo": ("total", "used", "free"),
}
# What a fake makes for itself; and what is nobody's business: identities, programs of others.
UNKEPT = (
    *("nvmlInit", "nvmlShutdown", "nvmlDeviceGetCount", "nvmlDeviceGetUUID"),
    *("nvmlDeviceGetComputeRunningProcesses", "nvmlSystemGetProcessName"),
)
OBJECTS = ("nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmQueryDeviceSupport")


class Recorder:
    """Passes everything on to an NVML module and keeps the answers, in the order they came."""

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        self._handles: list[tuple[int, Any]] = []
        self._sampled = 0
        self._names: dict[str, dict[int, str]] = {}
        # By GPU (None: the system), group ("" for functions), name and arguments.
        self._answers: dict[tuple[int | None, str, str, str], list[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._nvml, name)
        if not name.startswith("nvml") or name in OBJECTS:
            return found
        return self._recording(name, found)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        self._handles.append((index, handle))
        return handle

    def nvmlDeviceGetFieldValues(self, handle: Any, ids: Sequence[tuple[int, int]]) -> Any:
        nvml, values = self._nvml, self._nvml.nvmlDeviceGetFieldValues(handle, ids)
        for (field, scope), value in zip(ids, values, strict=True):
            is_told = value.nvmlReturn == nvml.NVML_SUCCESS
            answer = number_of(nvml, value) if is_told else self._error(value.nvmlReturn)
            name = self._name("NVML_FI_", field)
            self._keep(self._index(handle), "fields", name, str(scope), answer)
        return values

    def nvmlGpmSampleGet(self, handle: Any, sample: Any) -> Any:
        self._sampled = self._index(handle)
        return self._nvml.nvmlGpmSampleGet(handle, sample)

    def nvmlGpmMetricsGet(self, request: Any) -> Any:
        answer = self._nvml.nvmlGpmMetricsGet(request)
        for metric in request.metrics[: request.numMetrics]:
            is_told = metric.nvmlReturn == self._nvml.NVML_SUCCESS
            value = metric.value if is_told else self._error(metric.nvmlReturn)
            name = self._name("NVML_GPM_METRIC_", metric.metricId)
            # A GPU's metrics are asked for right after its sample.
            self._keep(self._sampled, "gpm", name, "", value)
        return answer

    def scenario(self, more: "Recorder | None" = None) -> dict[str, Any]:
        """Everything that was answered, as FakeNvml reads it, and what only `more` was asked."""
        tables = self._tables()
        for gpu, table in more._tables().items() if more else ():
            if gpu is not None:
                _add(tables[gpu], table)
        indices = sorted(index for index in tables if index is not None)
        return {"system": tables[None], "gpus": [tables[index] for index in indices]}

    def _tables(self) -> dict[int | None, dict[str, Any]]:
        """The answers of every GPU, and under None of the system."""
        tables: dict[int | None, dict[str, Any]] = {index: {} for index, _ in self._handles}
        tables[None] = {}
        for (gpu, group, name, args), answers in self._answers.items():
            own = tables.setdefault(gpu, {})
            table = own.setdefault(group, {}) if group else own
            is_steady = all(answer == answers[0] for answer in answers)
            value = answers[0] if is_steady else {"each": answers}
            if args:
                table.setdefault(name, {"by": {}})["by"][args] = value
            else:
                table[name] = value
        return tables

    def _recording(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            is_device = name.startswith("nvmlDevice") and bool(args)
            gpu = self._index(args[0]) if is_device and name not in UNKEPT else None
            rest = ",".join(str(self._index(arg)) for arg in (args[1:] if is_device else args))
            try:
                answer = function(*args)
            except self._nvml.NVMLError as error:
                self._keep(gpu, "", name, rest, self._error(error.value))
                raise
            members = MEMBERS.get(name)
            kept = {each: getattr(answer, each) for each in members} if members else answer
            self._keep(gpu, "", name, rest, kept)
            return answer

        return call

    def _keep(self, gpu: int | None, group: str, name: str, args: str, answer: Any) -> None:
        if name not in UNKEPT:
            self._answers.setdefault((gpu, group, name, args), []).append(answer)

    def _index(self, handle: Any) -> Any:
        """The index of a GPU's handle; anything else as it is."""
        return next((index for index, known in self._handles if known is handle), handle)

    def _error(self, code: int) -> dict[str, str]:
        return {"error": type(self._nvml.NVMLError(code)).__name__.removeprefix("NVMLError_")}

    def _name(self, prefix: str, number: int) -> str:
        """The constant of that number, of which there may be thousands."""
        if prefix not in self._names:
            names = [name for name in dir(self._nvml) if name.startswith(prefix)]
            self._names[prefix] = {getattr(self._nvml, name): name for name in names}
        return self._names[prefix][number]


def record(
    nvml: Any, *, num_samples: int = NUM_SAMPLES, every_s: float = EVERY_S
) -> dict[str, Any]:
    """What NVML answers while this machine is detected, sampled and examined."""
    recorder, examined = Recorder(nvml), Recorder(nvml)
    found = hardware.detect(recorder, environ={})
    sampler = Sampler([gpu.index for gpu in found.gpus], nvml=recorder)
    sampler.topology()
    for number in range(num_samples if found.gpus else 0):
        time.sleep(every_s if number else 0.0)
        sampler.sample()
    sampler.close()
    for _ in gpus.examine(found, examined):
        pass
    # What was sampled has its own course; the doctor's single look adds what it alone asks.
    return recorder.scenario(examined)


def _add(table: dict[str, Any], more: dict[str, Any]) -> None:
    """Answers of functions, or to arguments, that the table does not have yet."""
    for name, answer in more.items():
        known = table.setdefault(name, answer)
        if "by" in (known if isinstance(known, dict) else ()) and "by" in answer:
            known["by"] = answer["by"] | known["by"]


def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m harness.record_nvml", description=__doc__)
    parser.add_argument("file", type=Path, help="what to write, such as h200x2_recorded.json")
    args = parser.parse_args(argv)
    try:
        scenario = record(hardware.library())
        if not scenario["gpus"]:
            raise MachineError("no GPU to record", "Run: n doctor")
        write_atomic(args.file, json.dumps(scenario, indent=1) + "\n")
    except HarnessError as error:
        say(f"error: {error}")
        return error.exit_code
    say(f"{len(scenario['gpus'])} GPU(s) recorded in {args.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
