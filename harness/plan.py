"""From a preset, a machine and flags to a Plan: every choice is made here once, and announced.

What was named is never replaced: a preset, dtype or GPU count that cannot be had is refused.
"""

import difflib
import hashlib
import importlib.metadata
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.errors import MachineError, UsageError
from harness.hardware import DEFAULT_DTYPE, Detection
from nmoe.config import (
    Config,
    Digests,
    Dtype,
    Hardware,
    Plan,
    config_digest,
    read_config,
    with_train,
)
from nmoe.data.manifest import DataError, digest, read_manifest
from nmoe.data.mixture import make_flow
from nmoe.flops import peak_tflops
from nmoe.flow import Flow
from nmoe.memory import fit_micro_batch
from nmoe.paths import (
    CONSTRAINTS,
    PRESETS,
    DataRoot,
    code_version,
    file_digest,
    new_run_id,
    preset_names,
)

GPU_PRESET = "super"
CPU_PRESET = "pocket"
CPU_DTYPE: Dtype = "fp32"
# What the tensor cores of a compute capability can multiply.
GPU_DTYPES: dict[str, tuple[Dtype, ...]] = {
    "9.0": ("bf16", "fp8"),
    "10.0": ("bf16", "fp8", "nvfp4"),
}
MAX_RANKS = 8
# Data that a person named is not known to be the canonical set: its runs are ranked apart.
CUSTOM_TASK = "custom"
PACKAGES = ("torch", "numpy", "triton")
# Libraries that come with a CUDA build of torch, as packages whose names end with its version.
CUDA_PACKAGES = {"cudnn": "nvidia-cudnn-cu", "nccl": "nvidia-nccl-cu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A TOML file, how to name it in a command, and why it was taken."""

    path: Path
    command: str
    reason: str


def resolve(
    *,
    preset: str | None,
    detection: Detection,
    root: DataRoot,
    dtype: Dtype | None = None,
    gpus: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    data: Path | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """The plan of one run; `preset` is a name, a TOML path, or None to let the machine decide.

    `gpus` is the number of GPUs, or of CPU ranks for a preset that runs on the CPU.
    Raises ConfigError, UsageError (exit 2) and MachineError (exit 3).
    """
    if detection.num_nodes > 1:
        raise MachineError(
            f"this is a launch over {detection.num_nodes} nodes (WORLD_SIZE and LOCAL_WORLD_SIZE"
            " of torchrun differ), expected one host",
            f"Start it outside torchrun, on one host: n speedrun {preset or ''}".rstrip(),
        )
    choice = _choose(preset, detection, gpus)
    config = _configure(choice, steps=steps, seed=seed, data=data, overrides=overrides)
    if config.model.impl == "reference":
        device, world = "cpu", _num_ranks(gpus)
        hardware = Hardware(
            cpu=detection.hardware.cpu,
            cores=detection.hardware.cores,
            is_fake=detection.hardware.is_fake,
        )
    else:
        device, world = "cuda", _num_gpus(choice, detection, gpus)
        hardware = replace(detection.hardware, num_gpus=world)
    _check_split(choice, config, world)
    final, reason = _dtype(choice, config, hardware, dtype)
    config = fit_micro_batch(with_train(config, dtype=final), world, hardware.memory_bytes)
    code, flow = code_version(), make_flow(config, root)
    return Plan(
        **{item.name: getattr(config, item.name) for item in fields(Config)},
        run_id=new_run_id(re.sub(r"[^A-Za-z0-9._]+", "-", config.preset).strip("-._") or "run"),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        world=world,
        device=device,
        dtype=final,
        dtype_reason=reason,
        choice=_announce(choice, hardware, world),
        hardware=replace(hardware, peak_tflops=peak_tflops(hardware.gpu, final)),
        digests=Digests(
            config=config_digest(config),
            constraints=file_digest(CONSTRAINTS) if CONSTRAINTS.exists() else None,
            data=_data_digest(root.dataset(config.data.data_path), flow),
            bundle=_bundle_digest(root.bundle(config.data.bundle)),
            commit=code.commit,
            is_dirty=code.is_dirty,
        ),
        flow=flow,
        versions=_versions(),
    )


def _choose(preset: str | None, detection: Detection, gpus: int | None) -> _Choice:
    if preset is None and (detection.has_supported_gpu or gpus is not None):
        return _Choice(
            path=PRESETS / f"{GPU_PRESET}.toml",
            command=f"n speedrun {GPU_PRESET}",
            reason="the default on a supported GPU",
        )
    if preset is None:
        why = detection.problems[0].what if detection.problems else "no GPU"
        return _Choice(
            path=PRESETS / f"{CPU_PRESET}.toml",
            command=f"n speedrun {CPU_PRESET}",
            reason=f"the CPU preset, because there is no supported GPU here: {why}",
        )
    if preset.endswith(".toml"):
        return _Choice(path=Path(preset), command=f"n train {preset}", reason="named")
    if preset not in preset_names():
        close = difflib.get_close_matches(preset, preset_names(), n=1)
        fix = f'Did you mean "{close[0]}"?' if close else f"Known: {', '.join(preset_names())}."
        raise UsageError(f"unknown preset {preset!r}", fix)
    path = PRESETS / f"{preset}.toml"
    return _Choice(path=path, command=f"n speedrun {preset}", reason="named")


def _configure(
    choice: _Choice,
    *,
    steps: int | None,
    seed: int | None,
    data: Path | None,
    overrides: Sequence[str],
) -> Config:
    config = read_config(choice.path, overrides=overrides)
    if steps is not None:
        config = with_train(config, steps=steps)
    if seed is not None:
        config = with_train(config, seed=seed)
    if data is not None:
        named = replace(config.data, data_path=str(data.expanduser().absolute()), task=CUSTOM_TASK)
        config = replace(config, data=named)
    if config.data.flow_mode != "none" and choice.path.parent == PRESETS:
        # Not the data of the preset's task.
        config = replace(config, data=replace(config.data, task=CUSTOM_TASK))
    return config


def _num_ranks(wanted: int | None) -> int:
    """Ranks of a CPU run: one process for each."""
    world = 1 if wanted is None else wanted
    if not 1 <= world <= MAX_RANKS:
        raise UsageError(f"got {world} CPU ranks, expected 1 to {MAX_RANKS}")
    return world


def _num_gpus(choice: _Choice, detection: Detection, wanted: int | None) -> int:
    if not detection.has_supported_gpu:
        problem = detection.problems[0] if detection.problems else None
        what = problem.what if problem else "no GPU is visible"
        fix = f"{problem.fix} Or train on the CPU" if problem else "Train on the CPU"
        raise MachineError(f"{choice.path.stem} needs a supported GPU: {what}", _cpu_fix(fix))
    here = min(detection.hardware.num_gpus, MAX_RANKS)
    world = here if wanted is None else wanted
    if world < 1:
        raise UsageError(f"--gpus: got {world}, expected at least 1")
    if world > here:
        raise MachineError(
            f"plan wants {world} GPUs of compute capability {detection.hardware.capability},"
            f" this host has {here}",
            f"Run: {choice.command} --gpus {here}",
        )
    return world


def _cpu_fix(fix: str) -> str:
    return f"{fix}: n speedrun {CPU_PRESET}"


def _check_split(choice: _Choice, config: Config, world: int) -> None:
    """Refuse a number of ranks over which batch or experts cannot be dealt evenly."""
    batch, experts = config.train.batch_size, config.experts.num_experts
    fitting = [n for n in range(1, world + 1) if batch % n == 0 and experts % n == 0]
    if world not in fitting:
        raise UsageError(
            f"{world} ranks cannot share {batch} sequences a step and {experts} experts evenly",
            f"Run: {choice.command} --gpus {fitting[-1]}",
        )


def _dtype(
    choice: _Choice, config: Config, hardware: Hardware, flag: Dtype | None
) -> tuple[Dtype, str]:
    """The dtype and why: what was named, else what suits the compute capability."""
    capability = hardware.capability or ""
    possible = GPU_DTYPES[capability] if hardware.gpu else (CPU_DTYPE,)
    machine = f"{hardware.gpu} (compute capability {capability})" if hardware.gpu else "the CPU"
    if flag is not None:
        dtype, reason = flag, "named with --dtype"
    elif config.train.dtype != "auto":
        dtype, reason = config.train.dtype, f"set by {choice.path.name} or --set"
    elif hardware.gpu:
        dtype, reason = DEFAULT_DTYPE[capability], f"the default of {machine}"
    else:
        dtype, reason = CPU_DTYPE, "the only one on the CPU"
    if dtype not in possible:
        raise MachineError(
            f"{machine} cannot train in {dtype}: expected {' or '.join(possible)}",
            f"Run: {choice.command} --dtype {possible[0]}",
        )
    return dtype, reason


def _announce(choice: _Choice, hardware: Hardware, world: int) -> str:
    where = f"{world} x {hardware.gpu}" if hardware.gpu else f"{world} rank(s) on {hardware.cpu}"
    return f"{choice.path.stem} on {where}: {choice.reason}"


def _data_digest(folder: Path, flow: Flow | None) -> str | None:
    """Digest over both splits, or None while either is not prepared; a flow is a train split."""
    try:
        train = flow.digest if flow else digest(read_manifest(folder / "train"))
        splits = [train, digest(read_manifest(folder / "val"))]
    except DataError:
        return None
    return hashlib.sha256("".join(splits).encode()).hexdigest()


def _bundle_digest(folder: Path) -> str | None:
    """Digest of the bundle's list of baselines, which every CORE score names; None without it."""
    try:
        return file_digest(folder / "eval_meta_data.csv")
    except OSError:
        return None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    cuda = re.search(r"\+cu(\d+)(\d)$", versions.get("torch", ""))
    return versions | (_cuda_versions(cuda[1], cuda[2]) if cuda else {})


def _cuda_versions(major: str, minor: str) -> dict[str, str]:
    """CUDA and what goes with it, as torch was built with them."""
    versions = {"cuda": f"{major}.{minor}"}
    for name, package in CUDA_PACKAGES.items():
        try:
            versions[name] = importlib.metadata.version(f"{package}{major}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
