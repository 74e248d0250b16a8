"""The machine as NVML knows it; what is unknown is None."""

import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pynvml  # pyright: ignore[reportMissingTypeStubs]

from harness.errors import Problem
from harness.fake_nvml import FakeNvml, read_scenario
from harness.sampler import Sampler
from nmoe.config import Dtype, Hardware
from nmoe.flops import product

T = TypeVar("T")
# Compute capability -> dtype that a run takes when none is named.
DEFAULT_DTYPE: dict[str, Dtype] = {"9.0": "bf16", "10.0": "fp8"}
SUPPORTED = "9.0 (H100, H200) or 10.0 (B200)"
NO_DRIVER = "Install the NVIDIA driver on the host; in a container start it with --gpus all."
INIT_PROBLEMS = {
    "LibraryNotFound": ("no NVIDIA driver library (libnvidia-ml.so.1)", NO_DRIVER),
    "DriverNotLoaded": (
        "the NVIDIA kernel driver is not loaded",
        "Load it with `sudo modprobe nvidia`, or reinstall the driver for this kernel.",
    ),
    "LibRmVersionMismatch": (
        "the NVIDIA library and the loaded kernel driver have different versions",
        "The driver was upgraded while loaded: reboot, or reload the nvidia modules.",
    ),
    "NoPermission": (
        "no permission to open the NVIDIA devices",
        "Give this user access to /dev/nvidia*, or start the container with --gpus all.",
    ),
    "GpuIsLost": ("a GPU has fallen off the bus", "Reset it or reboot; see `dmesg | grep Xid`."),
    "ResetRequired": ("a GPU needs a reset", "Run `sudo nvidia-smi --gpu-reset`, or reboot."),
    "OperatingSystem": (
        "the operating system blocked access to the NVIDIA devices",
        "Check the container's device rules and the security policy of the host.",
    ),
    "IrqIssue": ("a GPU's interrupts do not arrive", "Reboot; see `dmesg | grep NVRM`."),
    "Timeout": (
        "the NVIDIA driver did not answer in time",
        "Run `nvidia-smi`; reboot if it hangs.",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One visible GPU; `index` is NVML's, as nvidia-smi shows it."""

    index: int
    uuid: str | None
    name: str
    product: str
    capability: str | None
    memory_bytes: int | None
    vbios: str | None
    is_ecc: bool | None
    is_mig: bool
    is_lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What this machine is: visible GPUs in rank order, and what is wrong with them."""

    hardware: Hardware
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[Problem, ...] = ()
    cuda: str | None = None
    num_nodes: int = 1

    @property
    def has_supported_gpu(self) -> bool:
        """Whether the visible GPUs can train."""
        return bool(self.gpus) and not self.problems


def detect(
    nvml: Any = pynvml, *, fake: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Detection:
    """Look at this machine, or at the one that the file `fake` describes."""
    if fake is not None:
        scenario = read_scenario(fake)
        nvml = FakeNvml(scenario, real=pynvml)
        environ = scenario.get("environ", {})
    host = Hardware(cpu=cpu_model(), cores=num_cores(), is_fake=fake is not None)
    num_nodes = _num_nodes(environ)
    try:
        nvml.nvmlInit()
        driver = _ask(nvml, nvml.nvmlSystemGetDriverVersion)
        cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion_v2)
        every = [_read_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
        nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return Detection(hardware=host, problems=(_init_problem(error),), num_nodes=num_nodes)
    gpus, hidden = _visible(every, environ.get("CUDA_VISIBLE_DEVICES"))
    if gpus:
        host = replace(
            host,
            gpu=gpus[0].product,
            num_gpus=len(gpus),
            capability=gpus[0].capability,
            memory_bytes=gpus[0].memory_bytes,
            vbios=_same(gpu.vbios for gpu in gpus),
            is_ecc=_same(gpu.is_ecc for gpu in gpus),
            is_mig=_same(gpu.is_mig for gpu in gpus),
        )
    return Detection(
        hardware=replace(host, driver=driver),
        gpus=gpus,
        problems=hidden or _gpu_problems(gpus),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        num_nodes=num_nodes,
    )


def _same(values: Iterable[T]) -> T | None:
    """What all GPUs say; None when they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model name, or the machine type where the kernel does not tell."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _num_nodes(environ: Mapping[str, str]) -> int:
    """Nodes of a torchrun launch, from the variables that it sets; 1 without them."""
    world, local = environ.get("WORLD_SIZE", ""), environ.get("LOCAL_WORLD_SIZE", "")
    groups = environ.get("GROUP_WORLD_SIZE", "")
    if groups.isdecimal() and int(groups) > 1:
        return int(groups)
    if world.isdecimal() and local.isdecimal() and int(local) > 0:
        return max(1, -(-int(world) // int(local)))
    return 1


def _init_problem(error: Exception) -> Problem:
    name = type(error).__name__.removeprefix("NVMLError_")
    what, fix = INIT_PROBLEMS.get(
        name, (f"NVML failed: {str(error).rstrip('.')}", "Run `nvidia-smi` to see what is wrong.")
    )
    return Problem(what=what, fix=fix)


def _ask(nvml: Any, function: Callable[..., Any], *args: Any) -> Any:
    """The answer, or None for whatever this driver or binding cannot say; a lost GPU raises."""
    try:
        return function(*args)
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
        raise
    except (nvml.NVMLError, UnicodeDecodeError, AttributeError):
        return None


def _read_gpu(nvml: Any, index: int) -> Gpu:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        name = _ask(nvml, nvml.nvmlDeviceGetName, handle) or "unknown GPU"
        capability = _ask(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
        memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        ecc = _ask(nvml, nvml.nvmlDeviceGetEccMode, handle)
        mig = _ask(nvml, nvml.nvmlDeviceGetMigMode, handle)
        return Gpu(
            index=index,
            uuid=_ask(nvml, nvml.nvmlDeviceGetUUID, handle),
            name=name,
            product=product(name),
            capability=f"{capability[0]}.{capability[1]}" if capability else None,
            memory_bytes=memory.total if memory else None,
            vbios=_ask(nvml, nvml.nvmlDeviceGetVbiosVersion, handle),
            is_ecc=bool(ecc[0]) if ecc else None,
            is_mig=bool(mig and mig[0]),
            is_lost=False,
        )
    except (nvml.NVMLError_GpuIsLost, nvml.NVMLError_ResetRequired):
        return Gpu(
            index=index,
            uuid=None,
            name="lost GPU",
            product="lost GPU",
            capability=None,
            memory_bytes=None,
            vbios=None,
            is_ecc=None,
            is_mig=False,
            is_lost=True,
        )


def _visible(
    gpus: Sequence[Gpu], wanted: str | None
) -> tuple[tuple[Gpu, ...], tuple[Problem, ...]]:
    """The GPUs that CUDA will show, in its order; it stops at the first name it does not know."""
    if not gpus:
        return (), (Problem(what="the NVIDIA driver found no GPU", fix="Check `lspci` and dmesg."),)
    if wanted is None:
        return tuple(gpus), ()
    chosen: list[Gpu] = []
    for name in (part.strip() for part in wanted.split(",")):
        if name.startswith("MIG-"):
            what = f"CUDA_VISIBLE_DEVICES names a MIG slice: got {name}, expected whole GPUs"
            return (), (Problem(what=what, fix="Unset it, or name GPUs by index."),)
        match = [
            gpu
            for gpu in gpus
            if (name.isdecimal() and int(name) == gpu.index)
            or (name.startswith("GPU-") and (gpu.uuid or "").startswith(name))
        ]
        if len(match) != 1 or match[0] in chosen:
            break
        chosen.append(match[0])
    if chosen:
        return tuple(chosen), ()
    what = f'CUDA_VISIBLE_DEVICES="{wanted}" hides all {len(gpus)} GPUs'
    return (), (Problem(what=what, fix="Unset it, or name GPUs by index."),)


def _gpu_problems(gpus: Sequence[Gpu]) -> tuple[Problem, ...]:
    problems: list[Problem] = []
    for gpu in gpus:
        if gpu.is_lost:
            what = f"GPU {gpu.index} is lost (off the bus, or it needs a reset)"
            fix = "Reset it or reboot, or leave it out with CUDA_VISIBLE_DEVICES."
        elif gpu.is_mig:
            what = f"MIG mode is on for GPU {gpu.index} ({gpu.product})"
            fix = f"Turn it off with `sudo nvidia-smi -i {gpu.index} -mig 0`."
        elif gpu.capability not in DEFAULT_DTYPE:
            seen = gpu.capability or "unknown"
            what = (
                f"{gpu.product} is not supported: got compute capability {seen},"
                f" expected {SUPPORTED}"
            )
            fix = "Use such a machine."
        else:
            continue
        problems.append(Problem(what=what, fix=fix))
    products = sorted({gpu.product for gpu in gpus})
    if not problems and len(products) > 1:
        what = f"the visible GPUs differ: got {', '.join(products)}, expected one kind"
        problems.append(Problem(what=what, fix="Choose one kind with CUDA_VISIBLE_DEVICES."))
    return tuple({problem.what: problem for problem in problems}.values())


def library(fake: Path | None = None) -> Any:
    """The NVML module of this machine, or of the one that the file `fake` describes."""
    return pynvml if fake is None else FakeNvml(read_scenario(fake), real=pynvml)


def open_sampler(num_gpus: int, *, fake: Path | None = None) -> Sampler:
    """A sampler of the first `num_gpus` visible GPUs, the ones the ranks use; none on a CPU run."""
    indices = [gpu.index for gpu in detect(fake=fake).gpus[:num_gpus]] if num_gpus else []
    return Sampler(indices, nvml=library(fake))
