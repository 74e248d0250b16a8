"""A plan made real: model, transport, optimizer, data, clock; its state to and from checkpoints."""

import hashlib
import os
import resource
import time
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nmoe import checkpoint, dist
from nmoe.checkpoint import Progress, Saved, Stage, Writer
from nmoe.config import ConfigError, Plan, config_digest
from nmoe.control import Control, StopReason
from nmoe.data.loader import Cursor, FlowData, Loader, validation_windows
from nmoe.data.manifest import DataError, digest, verify_sizes
from nmoe.data.tokenizer import Tokenizer, open_tokenizer
from nmoe.events import CompileEvent, PhaseEvent, RankEvent
from nmoe.flops import (
    Parameters,
    count_parameters,
    flops_per_token,
    num_moe_layers,
    padded_vocab,
)
from nmoe.metrics import Clock, Meter, Stopwatch
from nmoe.model import Transformer, init_weights, parameter_groups
from nmoe.optim import Optimizer
from nmoe.paths import DataRoot, RunFolder
from nmoe.rdep import Transport, open_transport
from nmoe.report import Reporter
from nmoe.snapshot import Snapshot

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SLOW_SAVE_S = 1.0  # training that waits longer for the disk is worth a word
WIDEST_ITEM = 8  # rows of one CORE item that go through together; the widest has 5 options


@dataclass(slots=True, kw_only=True)
class Run:
    """Everything a rank holds while it trains; `step` counts finished steps.

    `reached` is the progress at the passing validation once the target is hit.
    """

    plan: Plan
    folder: RunFolder
    root: DataRoot
    world: dist.World
    device: torch.device
    tokenizer: Tokenizer
    transport: Transport
    model: Transformer
    optimizer: Optimizer
    loader: Loader
    windows_WS: np.ndarray
    clock: Clock
    meter: Meter
    loader_wait: Stopwatch
    report: Reporter
    control: Control
    fingerprint: str
    writer: Writer
    parameters: Parameters
    flops_per_token: int
    snapshot: Snapshot = field(default_factory=Snapshot)
    step: int = 0
    reached: Progress | None = None

    @property
    def tokens(self) -> int:
        """Training tokens so far, over all ranks."""
        return self.step * self.plan.train.batch_size * self.plan.train.seq_len


def build(
    plan: Plan,
    folder: RunFolder,
    root: DataRoot,
    *,
    world: dist.World,
    control: Control,
    report: Reporter,
) -> Run:
    """Make everything for one rank, restore the newest checkpoint if there is one, warm up.

    Raises ConfigError, DataError or CheckpointError for what cannot be trained on.
    """
    began = time.perf_counter()
    set_up_torch(plan)
    device = dist.own_device(world, plan.device)
    clock = Clock(sync=torch.cuda.synchronize) if device.type == "cuda" else Clock()
    tokenizer = open_tokenizer(plan.data.tokenizer)
    data = root.dataset(plan.data.data_path)
    fingerprint = _fingerprint(plan, _train_digest(plan, root), digest(verify_sizes(data / "val")))
    transport = make_transport(plan, world, device)
    model = make_model(plan, transport, vocab_size=tokenizer.vocab_size, device=device)
    init_weights(model, seed=plan.train.seed)
    saved = checkpoint.newest(folder.checkpoints)
    run = Run(
        plan=plan,
        folder=folder,
        root=root,
        world=world,
        device=device,
        tokenizer=tokenizer,
        transport=transport,
        model=model,
        optimizer=Optimizer(plan.optim, parameter_groups(model), impl=plan.model.impl),
        loader=_open_loader(plan, root, world, Cursor()),
        windows_WS=validation_windows(
            data / "val", seq_len=plan.train.seq_len, max_windows=plan.validation.windows
        ),
        clock=clock,
        meter=Meter(
            num_layers=num_moe_layers(plan), num_experts=plan.experts.num_experts, device=device
        ),
        loader_wait=Stopwatch(),
        report=report,
        control=control,
        fingerprint=fingerprint,
        writer=Writer(
            folder.checkpoints, fingerprint=fingerprint, world=world, keep=plan.checkpoint.keep
        ),
        parameters=count_parameters(plan, padded_vocab(tokenizer.vocab_size)),
        flops_per_token=flops_per_token(plan, padded_vocab(tokenizer.vocab_size)),
    )
    _warm_up(run)
    if saved is not None:
        restore(run, saved)
    run.clock.compile_s += time.perf_counter() - began
    report.event(CompileEvent(what="build and warm-up", seconds=time.perf_counter() - began))
    report.event(RankEvent(rank=world.rank, pid=os.getpid(), is_ready=True))
    return run


def set_up_torch(plan: Plan) -> None:
    """Seed, determinism and threads of this process, as the plan wants them."""
    torch.manual_seed(plan.train.seed)
    # One thread gives the same bits every time. On a CPU a second one gains a fifth on these small
    # matrices and stalls as soon as other processes want the cores; beside a GPU there is little to
    # do, and four ranks with a thread for each of 64 cores took 67 ms for a log step instead of 5.
    torch.set_num_threads(1)
    if plan.device == "cuda":
        torch.use_deterministic_algorithms(plan.train.deterministic)


def make_transport(plan: Plan, world: dist.World, device: torch.device) -> Transport:
    """The expert transport that carries a micro-batch of training and an item of CORE."""
    rows = max(plan.train.micro_batch, WIDEST_ITEM)
    return open_transport(
        rank=world.rank,
        world=world.size,
        num_experts=plan.experts.num_experts,
        top_k=plan.experts.top_k,
        dim=plan.model.dim,
        max_tokens=rows * plan.train.seq_len,
        num_layers=num_moe_layers(plan),
        dtype=_dtype(plan),
        device=device,
        impl=plan.model.impl,
    )


def make_model(
    plan: Plan, transport: Transport, *, vocab_size: int, device: torch.device
) -> Transformer:
    """The model of one rank on its device, its weights not drawn yet. Raises ConfigError."""
    with device:
        return Transformer(plan, transport, vocab_size=vocab_size, dtype=_dtype(plan))


def save(run: Run, kind: Literal["step", "target"], *, loss: float | None = None) -> Progress:
    """Copy the state off the clock; it is written while training goes on, until `settle`.

    At the target only weights, with the passing `loss`, and they are waited for. Raises OSError on
    all ranks when one could not write.
    """
    waited_s = settle(run)
    if waited_s > SLOW_SAVE_S:
        run.report.alert(
            "slow-checkpoint",
            f"training waited {waited_s:.1f} s at step {run.step}: the checkpoint before was still"
            " being written. Save less often (checkpoint.every) or to a faster disk.",
        )
    run.transport.check()
    with run.clock.paused("checkpoint_s"):
        progress = current_progress(run, loss=loss)
        state = run.snapshot.take(_state(run, kind))
    # a part of the metrics ends with the checkpoint, before rows of later steps come
    run.report.flush()
    run.writer.start(kind, progress, replicated=state["replicated"], local=state["local"])
    if kind == "target":
        settle(run)
    return progress


def settle(run: Run) -> float:
    """Wait off the clock until no checkpoint is being written; the seconds it took.

    Raises OSError on all ranks when one could not write.
    """
    if not run.writer.is_busy:
        return 0.0
    before_s = run.clock.checkpoint_s
    with run.clock.paused("checkpoint_s"):
        saved = run.writer.wait()
    _publish(run, saved)
    return run.clock.checkpoint_s - before_s


def agree(run: Run) -> StopReason:
    """Why to stop, if any rank was asked to, the same on all ranks.

    A checkpoint that every rank has written goes on to be whole. Raises OSError on all ranks when
    one could not write.
    """
    own = torch.tensor([int(run.control.reason()), int(run.writer.stage)])
    reason, stage = dist.all_reduce(own, "max").tolist()
    saved = run.writer.advance(Stage(stage))
    if saved is not None:
        _publish(run, saved)
    return StopReason(reason)


def current_progress(run: Run, *, loss: float | None = None) -> Progress:
    """How far the run is; its clock must be stopped or paused."""
    clock = run.clock
    return Progress(
        step=run.step,
        tokens=run.tokens,
        train_s=clock.train_s,
        wall_s=clock.wall_s,
        compile_s=clock.compile_s,
        eval_s=clock.eval_s,
        checkpoint_s=clock.checkpoint_s,
        loss=loss,
    )


def restore(run: Run, saved: Saved) -> None:
    """Take a checkpoint's state over, clock included; the loader is opened again at its cursor."""
    replicated, local = checkpoint.load(saved, fingerprint=run.fingerprint, world=run.world)
    run.model.load_state_dict(replicated["model"] | local["model"])
    progress = saved.manifest.progress
    run.step = progress.step
    for name in ("train_s", "wall_s", "compile_s", "eval_s", "checkpoint_s"):
        setattr(run.clock, name, getattr(progress, name))
    run.report.resume(progress.step)
    run.report.event(
        PhaseEvent(phase="compiling", note=f"from {saved.path.name}", resume_step=progress.step)
    )
    if saved.manifest.kind == "target":
        run.reached = progress
        return
    run.optimizer.load_state(replicated["optimizer"], is_expert=False)
    run.optimizer.load_state(local["optimizer"], is_expert=True)
    torch.set_rng_state(local["rng"])
    epoch, index = local["cursor"]
    run.loader.close()
    run.loader = _open_loader(run.plan, run.root, run.world, Cursor(epoch=epoch, index=index))


def close(run: Run) -> None:
    """Let go of threads, files and shared memory."""
    run.loader.close()
    run.writer.close()
    run.snapshot.close()
    run.transport.close()
    run.report.close()


def peak_memory_bytes(run: Run) -> int:
    """Peak memory: of the fullest GPU, or of all CPU ranks together."""
    if run.device.type == "cuda":
        peak = torch.tensor(float(torch.cuda.max_memory_allocated(run.device)))
        return int(dist.all_reduce(peak, "max").item())
    peak = torch.tensor(1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return int(dist.all_reduce(peak).item())


def _dtype(plan: Plan) -> torch.dtype:
    if plan.dtype not in DTYPES:
        raise ConfigError(
            f"{plan.dtype} experts are not built yet, this version has {', '.join(DTYPES)}."
            " Use --dtype bf16."
        )
    return DTYPES[plan.dtype]


def _train_digest(plan: Plan, root: DataRoot) -> str:
    """Digest of the training data; DataError when a source is not the one of the plan's flow."""
    if plan.flow is None:
        return digest(verify_sizes(root.dataset(plan.data.data_path) / "train"))
    for source in plan.flow.sources:
        folder = root.below(source.path)
        found = digest(verify_sizes(folder))
        if found != source.digest:
            raise DataError(
                f"source {source.name} has changed since the plan was made: got {found[:12]}… in"
                f" {folder}, expected {source.digest[:12]}…. Start a new run."
            )
    return plan.flow.digest


def _open_loader(plan: Plan, root: DataRoot, world: dist.World, cursor: Cursor) -> Loader:
    data = root.dataset(plan.data.data_path) / "train"
    if plan.flow is not None:
        folders = tuple(root.below(source.path) for source in plan.flow.sources)
        data = FlowData(flow=plan.flow, folders=folders)
    return Loader(
        data,
        seq_len=plan.train.seq_len,
        batch_size=plan.train.batch_size,
        seed=plan.train.seed,
        rank=world.rank,
        world=world.size,
        cursor=cursor,
    )


def _fingerprint(plan: Plan, *data_digests: str) -> str:
    parts = [config_digest(plan), plan.dtype, *data_digests]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _state(run: Run, kind: Literal["step", "target"]) -> dict[str, dict[str, Any]]:
    """What this rank writes at a checkpoint; all ranks call it together, as the optimizer asks."""
    replicated: dict[str, Any] = {"model": _model_state(run.model, is_expert=False)}
    local: dict[str, Any] = {"model": _model_state(run.model, is_expert=True)}
    if kind == "step":
        replicated["optimizer"] = run.optimizer.state(is_expert=False)
        local["optimizer"] = run.optimizer.state(is_expert=True)
        local["cursor"] = [run.loader.cursor.epoch, run.loader.cursor.index]
        local["rng"] = torch.get_rng_state()
    return {"replicated": replicated if run.world.is_main else {}, "local": local}


def _publish(run: Run, saved: Saved) -> None:
    """Say that a checkpoint is whole; its progress is as of the moment its pause began."""
    run.clock.read()
    began = saved.manifest.progress
    run.report.checkpoint(
        saved,
        seconds=run.clock.wall_s - began.wall_s,
        paused_s=run.clock.checkpoint_s - began.checkpoint_s,
    )


def _model_state(model: Transformer, *, is_expert: bool) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in model.state_dict().items()
        if (".experts." in name) == is_expert
    }


def _warm_up(run: Run) -> None:
    """Compile and load what a step and a validation need, on validation text, before the clock.

    The effects are thrown away; the optimizer has rehearsed by itself.
    """
    run.report.event(PhaseEvent(phase="compiling", note="warm-up"))
    windows_BN = dist.to_device(
        run.windows_WS[: run.plan.train.micro_batch].astype(np.int64), run.device
    )
    for _ in range(2):
        nats, _, aux_sum = run.model.nats(windows_BN)
        (nats / windows_BN.numel() + run.plan.experts.aux_coef * aux_sum).backward()
    run.model.zero_grad(set_to_none=True)
    for _, layer in run.model.moe_layers():
        layer.router.loads_E.zero_()
    run.model.eval()
    with torch.no_grad():
        run.model.nats(windows_BN)
    run.model.train()
    if not run.transport.fits()():
        run.transport.grow()
    run.transport.check()
