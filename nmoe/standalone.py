"""A run without the harness: its plan, its folder and lock, its exit record and result."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path

import torch

from nmoe import dist
from nmoe.config import (
    Config,
    ConfigError,
    Device,
    Digests,
    Hardware,
    Plan,
    config_digest,
    read_config,
)
from nmoe.data.mixture import make_flow
from nmoe.event_log import EventLog, read_events
from nmoe.events import ExitEvent, OutcomeEvent
from nmoe.memory import fit_micro_batch
from nmoe.paths import (
    CONSTRAINTS,
    RunFolder,
    code_version,
    data_root,
    file_digest,
    new_run_id,
    take_lock,
    write_atomic,
)


def make_plan(path: Path, *, overrides: Sequence[str], world: dist.World) -> Plan:
    """Resolve a TOML file for this machine; the dtype must be explicit. Raises ConfigError."""
    config = read_config(path, overrides=overrides)
    dtype = config.train.dtype
    if dtype == "auto":
        raise ConfigError(
            f'{path.name}: train.dtype: got "auto", expected a dtype. The trainer alone does not'
            " choose: add --set train.dtype=bf16, or start it with n speedrun."
        )
    # the same rule as everywhere: kernels mean the GPU, the reference means the CPU
    device: Device = "cuda" if config.model.impl == "triton" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f'{path.name}: model.impl = "triton" needs a GPU and torch sees none. Mend the driver,'
            " or add --set model.impl=reference for the CPU."
        )
    hardware = _hardware(device)
    config = fit_micro_batch(config, world.size, hardware.memory_bytes)
    code = code_version()
    return Plan(
        **{item.name: getattr(config, item.name) for item in fields(Config)},
        run_id=dist.broadcast(new_run_id(config.preset)),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        world=world.size,
        device=device,
        dtype=dtype,
        dtype_reason="named in the configuration",
        choice=f"{path.name}, trainer alone",
        hardware=hardware,
        digests=Digests(
            config=config_digest(config),
            constraints=file_digest(CONSTRAINTS) if CONSTRAINTS.exists() else None,
            commit=code.commit,
            is_dirty=code.is_dirty,
        ),
        flow=make_flow(config, data_root()),
        versions={"python": sys.version.split()[0], "torch": torch.__version__},
    )


def create_folder(plan: Plan, folder: RunFolder) -> None:
    """Make the run folder with its plan in it."""
    folder.root.mkdir(parents=True, exist_ok=False)
    write_atomic(folder.plan, plan.to_json())


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder's lock; ConfigError when another process does."""
    fd = take_lock(folder.lock)
    if fd is None:
        raise ConfigError(
            f"run {folder.run_id} is alive: another process holds its lock."
            f" Stop it first: n stop {folder.run_id}"
        )
    try:
        folder.stop_request.unlink(missing_ok=True)
        yield
    finally:
        os.close(fd)


def record_exit(folder: RunFolder, *, rc: int, attempt: int) -> None:
    """Append the exit event and write result.json from the outcome of `attempt`, if it has one."""
    outcome = None
    for record in read_events(folder.train):
        if isinstance(record.event, OutcomeEvent) and record.attempt == attempt:
            outcome = record.event
    log = EventLog(folder.train, attempt=attempt)
    log.write(ExitEvent(status=outcome.status if outcome else "failed", rc=rc))
    log.close()
    if outcome:
        result = {"run_id": folder.run_id, **asdict(outcome)}
        write_atomic(folder.result, json.dumps(result, indent=1) + "\n")


def _hardware(device: Device) -> Hardware:
    cores = len(os.sched_getaffinity(0))
    if device == "cpu":
        return Hardware(cores=cores)
    properties = torch.cuda.get_device_properties(0)
    return Hardware(
        gpu=properties.name,
        num_gpus=torch.cuda.device_count(),
        capability=f"{properties.major}.{properties.minor}",
        memory_bytes=properties.total_memory,
        cores=cores,
    )
