"""What GPUs say of themselves once a second; what one of them cannot say is None, and stays so.

Takes the NVML module as an argument, so that a described machine is sampled like a real one. A
call that a GPU does not support is asked once; a GPU that is lost is never touched again.

Traffic comes from GPM, never from the NVLink throughput fields: asking for those corrupts the heap
of whoever asks (driver 580, H100; bench/NOTES.md), and takes fifty times as long.
"""

import ctypes
import math
from collections.abc import Callable, Sequence
from typing import Any

from nmoe.events import GpuEvent, TopologyEvent

# A call that fails this often in a row for a passing reason is not tried again.
STRIKES = 3
# Samples between two looks at what hardly ever moves: ECC counts, remapped rows, replays.
SLOW_EVERY = 10
# NVML numbers the links of a GPU from 0; H100 and B200 have 18 of them.
MAX_LINKS = 36
MIB = 1024**2
# nvmlDeviceGetP2PStatus by its literal index: some versions of the binding hold a tuple there.
P2P_READ, P2P_NVLINK = 0, 2
# nvmlGpuTopologyLevel: what two GPUs have in common on the way to each other.
ANCESTORS = {0: "board", 10: "switch", 20: "switches", 30: "bridge", 40: "node", 50: "system"}


class GpuLost(Exception):
    """A GPU has fallen off the bus, or needs a reset."""


class Asker:
    """Asks NVML about one GPU; None for what it cannot tell, GpuLost when it is gone."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self.handle = handle
        self._unsupported: set[str] = set()
        self._strikes: dict[str, int] = {}

    def ask(self, name: str, *args: Any) -> Any:
        """The answer of the device function `name`."""
        return self.call(f"{name}{args}", lambda: getattr(self._nvml, name)(self.handle, *args))

    def call(self, key: str, function: Callable[[], Any]) -> Any:
        """The answer of a function, which `key` stands for when it fails."""
        nvml = self._nvml
        if key in self._unsupported:
            return None
        try:
            answer = function()
        except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
            raise GpuLost from None
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_InvalidArgument,
            AttributeError,
            ctypes.ArgumentError,
        ):
            self._unsupported.add(key)
            return None
        except (nvml.NVMLError, UnicodeDecodeError):
            self._strike(key)
            return None
        self._strikes.pop(key, None)
        return answer

    def fields(self, ids: Sequence[tuple[int, int]]) -> dict[tuple[int, int], int | float]:
        """Values of (field, scope) pairs in one call; those that cannot be told are left out."""
        wanted = [each for each in ids if f"field{each}" not in self._unsupported]
        if not wanted:
            return {}
        values = self.call("fields", lambda: self._nvml.nvmlDeviceGetFieldValues(
            self.handle, wanted))  # fmt: skip
        told: dict[tuple[int, int], int | float] = {}
        for each, value in zip(wanted, values or (), strict=False):
            error = value.nvmlReturn
            if error in (self._nvml.NVML_ERROR_GPU_IS_LOST, self._nvml.NVML_ERROR_RESET_REQUIRED):
                raise GpuLost
            if error == self._nvml.NVML_SUCCESS:
                told[each] = number_of(self._nvml, value)
                self._strikes.pop(f"field{each}", None)
            elif error == self._nvml.NVML_ERROR_NOT_SUPPORTED:
                self._unsupported.add(f"field{each}")
            else:
                self._strike(f"field{each}")
        return told

    def _strike(self, key: str) -> None:
        self._strikes[key] = self._strikes.get(key, 0) + 1
        if self._strikes[key] >= STRIKES:
            self._unsupported.add(key)


def number_of(nvml: Any, field: Any) -> int | float:
    """The value of an NVML field: the member of its union that its type names."""
    member = {
        nvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
        nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
    }[field.valueType]
    return getattr(field.value, member)


class Gpm:
    """GPM metrics of one GPU, each a mean since the last call; nothing where it has none."""

    # Metric, its name in a sample and what one unit of it is.
    METRICS = (
        ("NVML_GPM_METRIC_SM_UTIL", "sm_frac", 0.01),
        ("NVML_GPM_METRIC_ANY_TENSOR_UTIL", "tensor_frac", 0.01),
        ("NVML_GPM_METRIC_DRAM_BW_UTIL", "dram_frac", 0.01),
        ("NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC", "nvlink_tx_bytes_s", MIB),
        ("NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC", "nvlink_rx_bytes_s", MIB),
        ("NVML_GPM_METRIC_PCIE_TX_PER_SEC", "pcie_tx_bytes_s", MIB),
        ("NVML_GPM_METRIC_PCIE_RX_PER_SEC", "pcie_rx_bytes_s", MIB),
    )

    def __init__(self, nvml: Any, asker: Asker) -> None:
        self._nvml = nvml
        self._asker = asker
        self._samples: list[Any] = []
        self._request: Any = None
        support = asker.ask("nvmlGpmQueryDeviceSupport")
        if support is None or not support.isSupportedDevice:
            return
        samples = [asker.call("gpm alloc", nvml.nvmlGpmSampleAlloc) for _ in range(2)]
        if None not in samples:
            self._samples = samples
            self._asker.ask("nvmlGpmSampleGet", samples[0])
            self._request = nvml.c_nvmlGpmMetricsGet_t()

    def read(self) -> dict[str, float]:
        """The metrics since the last call, by name."""
        if self._request is None:
            return {}
        before, now = self._samples
        if self._asker.ask("nvmlGpmSampleGet", now) is None:
            return {}
        self._samples.reverse()
        request = self._request
        request.version = self._nvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(self.METRICS)
        request.sample1, request.sample2 = before, now
        for index, (name, _, _) in enumerate(self.METRICS):
            request.metrics[index].metricId = getattr(self._nvml, name)
        if self._asker.call("gpm", lambda: self._nvml.nvmlGpmMetricsGet(request)) is None:
            return {}
        told: dict[str, float] = {}
        for index, (_, name, unit) in enumerate(self.METRICS):
            metric = request.metrics[index]
            # Samples too close to each other divide nothing by nothing.
            if metric.nvmlReturn == self._nvml.NVML_SUCCESS and math.isfinite(metric.value):
                told[name] = round(metric.value * unit, 4 if unit < 1 else None)
        return told

    def close(self) -> None:
        """Give the samples back."""
        for number, sample in enumerate(self._samples):
            self._asker.call(
                f"gpm free {number}", lambda it=sample: self._nvml.nvmlGpmSampleFree(it)
            )
        self._samples, self._request = [], None


class GpuSampler:
    """Samples one GPU by its NVML index."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self.index = index
        self._count = 0
        self._slow: dict[str, Any] = {}
        self.num_links: int | None = None
        self.asker: Asker | None = None
        self._gpm: Gpm | None = None
        try:
            self.asker = Asker(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
            self.num_links = _count_links(nvml, self.asker)
            self._gpm = Gpm(nvml, self.asker)
        except (nvml.NVMLError, GpuLost):
            self.asker = None

    def sample(self) -> GpuEvent:
        """What the GPU says now."""
        if self.asker is None:
            return GpuEvent(index=self.index, is_lost=True)
        try:
            return self._sample(self.asker)
        except GpuLost:
            self.asker = None
            return GpuEvent(index=self.index, is_lost=True)

    def close(self) -> None:
        """Give back what was taken from the driver; nothing is asked of a lost GPU."""
        if self._gpm is not None and self.asker is not None:
            try:
                self._gpm.close()
            except GpuLost:
                self.asker = None

    def _sample(self, asker: Asker) -> GpuEvent:
        nvml, ask = self._nvml, asker.ask
        util = ask("nvmlDeviceGetUtilizationRates")
        memory = ask("nvmlDeviceGetMemoryInfo")
        limit = ask("nvmlDeviceGetEnforcedPowerLimit")
        energy = ask("nvmlDeviceGetTotalEnergyConsumption")
        throttle = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if throttle is None:
            throttle = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        if self._count % SLOW_EVERY == 0:
            self._slow = self._read_slow(asker)
        self._count += 1
        return GpuEvent(
            index=self.index,
            util=None if util is None else util.gpu,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            power_limit_w=None if limit is None else limit / 1e3,
            energy_j=None if energy is None else energy / 1e3,
            temperature_c=ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            sm_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_mhz=ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            throttle=throttle,
            **self._read_fields(asker),
            **(self._gpm.read() if self._gpm else {}),
            **self._slow,
        )

    def _read_fields(self, asker: Asker) -> dict[str, Any]:
        """Power now, else its mean of a second, and the temperature of the memory."""
        power = (self._nvml.NVML_FI_DEV_POWER_INSTANT, 0)
        heat = (self._nvml.NVML_FI_DEV_MEMORY_TEMP, 0)
        told = asker.fields([power, heat])
        watts = told.get(power)
        if watts is None:
            watts = asker.ask("nvmlDeviceGetPowerUsage")
        return {
            "power_w": None if watts is None else watts / 1e3,
            "memory_temperature_c": told.get(heat),
        }

    def _read_slow(self, asker: Asker) -> dict[str, Any]:
        """What is worth a look now and then."""
        nvml, ask = self._nvml, asker.ask
        rows = ask("nvmlDeviceGetRemappedRows")
        corrected, uncorrected = (
            ask("nvmlDeviceGetTotalEccErrors", kind, nvml.NVML_VOLATILE_ECC)
            for kind in (
                nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
                nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            )
        )
        return {
            "ecc_corrected": corrected,
            "ecc_uncorrected": uncorrected,
            "remapped_rows": None if rows is None else rows[0] + rows[1],
            "is_remap_pending": None if rows is None else bool(rows[2]),
            "pcie_replays": ask("nvmlDeviceGetPcieReplayCounter"),
            "sm_max_mhz": ask("nvmlDeviceGetMaxClockInfo", nvml.NVML_CLOCK_SM),
        }


class Sampler:
    """Samples GPUs by NVML index, in their order."""

    def __init__(self, indices: Sequence[int], *, nvml: Any) -> None:
        self._nvml = nvml
        if indices:
            nvml.nvmlInit()
        self._gpus = [GpuSampler(nvml, index) for index in indices]

    def sample(self) -> tuple[GpuEvent, ...]:
        """One event a GPU; a lost GPU is never touched again."""
        return tuple(gpu.sample() for gpu in self._gpus)

    def topology(self) -> TopologyEvent | None:
        """How the GPUs are joined, or None without any."""
        if not self._gpus:
            return None
        return TopologyEvent(
            indices=tuple(gpu.index for gpu in self._gpus),
            nvlinks=tuple(gpu.num_links for gpu in self._gpus),
            paths=tuple(self._path(one, other) for one in self._gpus for other in self._gpus),
            pcie_gens=self._ask_all("nvmlDeviceGetCurrPcieLinkGeneration"),
            pcie_widths=self._ask_all("nvmlDeviceGetCurrPcieLinkWidth"),
            pcie_max_widths=self._ask_all("nvmlDeviceGetMaxPcieLinkWidth"),
        )

    def close(self) -> None:
        """Release NVML."""
        for gpu in self._gpus:
            gpu.close()
        if self._gpus:
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError:
                return

    def _ask_all(self, name: str) -> tuple[Any, ...]:
        return tuple(_ask(gpu, name) for gpu in self._gpus)

    def _path(self, one: GpuSampler, other: GpuSampler) -> str | None:
        """The word for the way from one GPU to another, itself included."""
        if one is other:
            return "self"
        if other.asker is None:
            return None
        peer = other.asker.handle
        if _ask(one, "nvmlDeviceGetP2PStatus", peer, P2P_NVLINK) == 0:
            return "nvlink"
        if _ask(one, "nvmlDeviceGetP2PStatus", peer, P2P_READ) == 0:
            return "p2p"
        return ANCESTORS.get(_ask(one, "nvmlDeviceGetTopologyCommonAncestor", peer))


def _ask(gpu: GpuSampler, name: str, *args: Any) -> Any:
    """An answer outside a sample: None, too, of a GPU that is lost; its sample will say so."""
    if gpu.asker is None:
        return None
    try:
        return gpu.asker.ask(name, *args)
    except GpuLost:
        return None


def _count_links(nvml: Any, asker: Asker) -> int | None:
    """The number of NVLinks in use; None where the GPU does not tell of any."""
    states = [asker.ask("nvmlDeviceGetNvLinkState", link) for link in range(MAX_LINKS)]
    if all(state is None for state in states):
        return None
    return states.count(nvml.NVML_FEATURE_ENABLED)
