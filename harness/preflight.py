"""What stands between a plan and its run, found before anything is started: a list of problems."""

import os
import shutil
from pathlib import Path

from harness import bundle, dataset, leaderboard, runs
from harness import format as text
from harness.errors import BoardError, Problem
from harness.hardware import Detection
from nmoe.config import Plan
from nmoe.flops import (
    VOCAB_SIZE,
    Parameters,
    count_parameters,
    num_moe_layers,
    padded_vocab,
)
from nmoe.memory import USABLE, estimate
from nmoe.paths import DataRoot, existing

MOST_GPUS_RUN = 4  # of a training step that was measured; see bench/NOTES.md
BUILT_DTYPES = ("fp32", "bf16")
BUILT_ATTENTION = ("sdpa",)
BOARD_EXIT = 4
WARNING = 0
# fp32 weights and two AdamW moments; gradients are held in memory only.
SAVED_BYTES_PER_PARAMETER = 12
CPU_BYTES_PER_PARAMETER = 16
# Logs, events, metrics and data that the run makes itself.
SPARE_BYTES = 256 << 20
# A rank with torch loaded and a small model, measured at 0.4 to 0.6 GiB.
RANK_BYTES = 640 << 20
SHM = Path("/dev/shm")
# Peer buffers hold rows there and back, forward and backward.
PEER_REGIONS = 4


def problems(plan: Plan, detection: Detection, root: DataRoot) -> tuple[Problem, ...]:
    """Everything that is wrong or worth knowing, blocking problems first."""
    found = [
        *_version_problems(plan),
        *_root_problems(plan, root),
        *dataset.problems(plan, root),
        *bundle.problems(plan, root),
        *_board_problems(root),
        *_memory_problems(plan, detection),
        *_other_runs(root),
    ]
    return tuple(sorted(found, key=lambda problem: not problem.is_blocking))


def first_blocking(found: tuple[Problem, ...]) -> Problem | None:
    """The problem that refuses the run, if any."""
    return next((problem for problem in found if problem.is_blocking), None)


def checkpoint_bytes(plan: Plan) -> int:
    """What a checkpoint takes on disk, and in host memory while it is written."""
    return SAVED_BYTES_PER_PARAMETER * _parameters(plan).total


def disk_bytes(plan: Plan) -> int:
    """What a run writes: checkpoints, weights at the target, logs, events and metrics."""
    # The newest checkpoints, one more while it is written or on a stop.
    every = plan.checkpoint.every
    kept = min(plan.checkpoint.keep, plan.train.steps // every if every else 0)
    return checkpoint_bytes(plan) * (kept + 1) + 4 * _parameters(plan).total + SPARE_BYTES


def host_bytes(plan: Plan) -> int:
    """What a run takes of the host's memory: a checkpoint on its way, and ranks on the CPU."""
    needed = checkpoint_bytes(plan)
    if plan.device == "cpu":
        parameters = _parameters(plan)
        dense = parameters.total - parameters.expert
        per_rank = CPU_BYTES_PER_PARAMETER * (dense + parameters.expert // plan.world)
        needed += plan.world * (RANK_BYTES + per_rank)
    return needed


def peer_bytes(plan: Plan) -> int:
    """What the ranks of a CPU run put into /dev/shm; none on GPUs."""
    if plan.device != "cpu" or plan.world == 1 or num_moe_layers(plan) == 0:
        return 0
    row_bytes = 4 * plan.model.dim
    tokens = plan.train.micro_batch * plan.train.seq_len
    return plan.world * tokens * plan.experts.top_k * row_bytes * PEER_REGIONS


def _parameters(plan: Plan) -> Parameters:
    return count_parameters(plan, padded_vocab(VOCAB_SIZE.get(plan.data.tokenizer, 0)))


def _version_problems(plan: Plan) -> list[Problem]:
    """What this version has not built; a fake machine is only ever shown."""
    found: list[Problem] = []
    if plan.hardware.is_fake:
        what = f"the hardware is fake ({plan.hardware.gpu or plan.hardware.cpu}): shown only"
        found.append(Problem(what=what, fix="Leave out --fake-hardware to train."))
    if plan.dtype not in BUILT_DTYPES:
        what = f"{plan.dtype} experts are not built yet"
        found.append(Problem(what=what, fix=f"Run: n speedrun {plan.preset} --dtype bf16"))
    if plan.device == "cuda" and plan.world > MOST_GPUS_RUN:
        what = f"training on more than {MOST_GPUS_RUN} GPUs was never run"
        fix = f"Compare with fewer: n speedrun {plan.preset} --gpus {MOST_GPUS_RUN}"
        found.append(Problem(what=what, fix=fix, exit_code=WARNING))
    used = {plan.attention.attn}
    if plan.attention.attn_global_every > 1:
        used.add(plan.attention.attn_local)
    for name in sorted(used.difference(BUILT_ATTENTION)):
        what = f"attention {name} is not built yet, this version has {', '.join(BUILT_ATTENTION)}"
        fix = "Add: --set attention.attn=sdpa --set attention.attn_local=sdpa"
        found.append(Problem(what=what, fix=fix))
    return found


def _root_problems(plan: Plan, root: DataRoot) -> list[Problem]:
    place = existing(root.path)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = f"cannot write to {root.path} ({root.reason})"
        return [Problem(what=what, fix="Set DATA_DIR to a folder that this user can write.")]
    needed, free = disk_bytes(plan), shutil.disk_usage(place).free
    if free < needed:
        what = (
            f"the disk of {root.path} is nearly full: got {text.bytes_(free)} free,"
            f" expected {text.bytes_(needed)} for checkpoints and logs"
        )
        return [Problem(what=what, fix="Free space there, or set DATA_DIR to another disk.")]
    return []


def _board_problems(root: DataRoot) -> list[Problem]:
    try:
        leaderboard.boards(root)
    except BoardError as error:
        return [Problem(what=error.problem, fix=error.fix, exit_code=BOARD_EXIT)]
    return []


def _memory_problems(plan: Plan, detection: Detection) -> list[Problem]:
    found, needed = list[Problem](), host_bytes(plan)
    if plan.device == "cpu":
        found += _peer_problems(plan)
    elif (memory := detection.hardware.memory_bytes) is not None:
        step = estimate(plan, world=plan.world).total
        if step > USABLE * memory:
            what = (
                f"a step may not fit: about {text.bytes_(step)} on each GPU, which has"
                f" {text.bytes_(memory)}"
            )
            found.append(Problem(what=what, fix="Use more GPUs.", exit_code=WARNING))
    free = None if plan.hardware.is_fake else _available_bytes()
    if free is not None and free < needed:
        what = (
            f"host memory may not suffice: about {text.bytes_(needed)} needed,"
            f" {text.bytes_(free)} available"
        )
        found.append(Problem(what=what, fix="Close other programs.", exit_code=WARNING))
    return found


def _peer_problems(plan: Plan) -> list[Problem]:
    """Ranks of a CPU run meet in /dev/shm, which containers keep small."""
    needed = peer_bytes(plan)
    if not needed:
        return []
    free = shutil.disk_usage(SHM).free if SHM.is_dir() else 0
    if free >= needed:
        return []
    what = (
        f"{SHM} is too small for {plan.world} ranks: got {text.bytes_(free)} free,"
        f" expected {text.bytes_(needed)}"
    )
    return [Problem(what=what, fix="Enlarge it (docker run --shm-size), or use --gpus 1.")]


def _available_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    try:
        for line in meminfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return None


def _other_runs(root: DataRoot) -> list[Problem]:
    alive = [row.run_id for row in runs.list_runs(root) if row.is_alive]
    if not alive:
        return []
    what = f"another run is alive: {', '.join(alive[:3])}; both will be slower and time worse"
    return [Problem(what=what, fix=f"Stop it: n stop {alive[0]}", exit_code=WARNING)]
