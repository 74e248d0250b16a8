"""Trains one run: build -> fit -> finish.

    python -m nmoe.train CONFIG.toml [--set section.key=value …]
    torchrun --standalone --nproc_per_node=N -m nmoe.train CONFIG.toml
    python -m nmoe.train --run RUN_FOLDER          (a rank of a supervised run, or go on alone)

Exit codes: 0 target reached and CORE scored, 1 bug, 2 configuration, 4 data or bundle, 5 training
failed, 6 target not reached, 7 CORE failed, 130 stopped with a checkpoint.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch

from nmoe import dist, standalone
from nmoe.build import Run, agree, build, close, current_progress, peak_memory_bytes, save, settle
from nmoe.checkpoint import CheckpointError
from nmoe.config import ConfigError, Plan, read_plan
from nmoe.control import Control, StopReason
from nmoe.data.manifest import DataError
from nmoe.eval.core import CoreError, CoreResult, TaskScore
from nmoe.evaluate import score_core
from nmoe.events import OutcomeEvent, PhaseEvent, Status, StopAckEvent
from nmoe.metrics import is_collapsed, router_health
from nmoe.optim import peak_rates
from nmoe.paths import RunFolder, data_root
from nmoe.rdep import PeerError
from nmoe.report import Reporter
from nmoe.step import lacked_room, learning_rate_scale, train_step
from nmoe.validate import Validation, validate

EXIT_CODES: dict[Status, int] = {
    "done": 0,
    "missed": 6,
    "failed": 5,
    "diverged": 5,
    "interrupted": 130,
    "core-failed": 7,
}


class Diverged(RuntimeError):
    """Training cannot recover: a loss that is not finite, or a collapsed router."""


class Stopped(Exception):
    """A request to stop was honoured and everything needed to go on is saved."""


class _CutShort(Exception):
    """An interim evaluation gave way to a request to stop."""


def fit(run: Run) -> bool:
    """Train until a validation reaches the target (True) or the steps are used up (False).

    Raises Stopped after a request to stop, Diverged when training cannot recover.
    """
    plan = run.plan
    run.report.event(PhaseEvent(phase="training", note=f"from step {run.step}"))
    run.clock.start()
    run.meter.restart(train_s=run.clock.train_s)
    while run.step < plan.train.steps:
        train_step(run)  # on the clock
        is_last = run.step == plan.train.steps
        stop = StopReason.NONE
        if is_last or plan.log.is_due(run.step) or plan.checkpoint.is_due(run.step):
            stop = log_step(run)
        if is_last or plan.validation.is_due(run.step):
            result = validation_step(run)  # off the clock
            counts = is_last or plan.target.stop_rule == "first_crossing"
            if counts and result.loss <= plan.target.target_loss:
                run.reached = save(run, "target", loss=result.loss)
                return True
        if plan.eval.is_due(run.step):
            interim_step(run)  # off the clock
        if stop or plan.checkpoint.is_due(run.step):
            save(run, "step")
        if stop:
            leave(run, stop)
    return False


def log_step(run: Run) -> StopReason:
    """Publish the interval; ranks agree here on the loss, on whether to stop, on a checkpoint.

    Raises Diverged on every rank for a loss that is not finite or a collapsed router.
    """
    run.transport.check()
    losses = dist.all_reduce(run.meter.loss_share().clone())
    reason = agree(run)
    if reason:
        run.control.acknowledge()
    interval = run.meter.take(loss_sum=losses.item(), train_s=run.clock.read())
    scale = learning_rate_scale(run)
    rates = {name: scale * rate for name, rate in peak_rates(run.plan.optim).items()}
    run.report.step(
        run.step,
        interval,
        clock=run.clock,
        rates=rates,
        loader_wait_s=run.loader_wait.take(),
        flops_per_token=run.flops_per_token,
    )
    layers = run.model.moe_layers()
    health = [
        router_health(loads_E, layer.router.bias_E.cpu())
        for loads_E, (_, layer) in zip(interval.loads_LE, layers, strict=True)
    ]
    run.report.router(run.step, [index for index, _ in layers], health, interval.loads_LE)
    if not torch.isfinite(losses):
        raise Diverged(
            f"the loss is {losses.item()} at step {run.step}. Lower the learning rate or go on"
            " from an earlier checkpoint with another seed."
        )
    experts = run.plan.experts
    for (index, _), item in zip(layers, health, strict=True):
        if is_collapsed(item, num_experts=experts.num_experts, top_k=experts.top_k):
            raise Diverged(
                f"the router of layer {index} collapsed at step {run.step}: {item.experts_active}"
                f" of {experts.num_experts} experts are used. Raise experts.bias_rate or aux_coef."
            )
    return reason


def validation_step(run: Run) -> Validation:
    """Validate off the clock and publish the result."""
    run.report.event(PhaseEvent(phase="validating"))
    before_s = run.clock.eval_s
    with run.clock.paused("eval_s"):
        result = _validate(run)
        while lacked_room(run, run.transport.fits()):
            result = _validate(run)
        run.transport.check()
    seconds = run.clock.eval_s - before_s
    run.report.validation(run.step, result, train_s=run.clock.train_s, seconds=seconds)
    run.report.event(PhaseEvent(phase="training"))
    return result


def _validate(run: Run) -> Validation:
    return validate(
        run.model,
        run.windows_WS,
        run.tokenizer.byte_lengths(),
        world=run.world,
        batch=run.plan.train.micro_batch,
        device=run.device,
    )


def interim_step(run: Run) -> None:
    """Score CORE on a few items of each task, off the clock; training goes on from the same bits.

    What cannot be scored is an alert: the score after the target decides. A request to stop ends
    it after the task at hand and is honoured by the next log step.
    """
    run.report.event(PhaseEvent(phase="validating", note="interim CORE"))

    def on_task(index: int, count: int, score: TaskScore) -> None:
        run.report.core_task(run.step, index, count, score, is_interim=True)
        if agree(run):
            raise _CutShort

    try:
        with run.clock.paused("eval_s"):
            result = _score(run, cap=run.plan.eval.interim_cap, records=None, on_task=on_task)
        run.report.core(run.step, result, is_interim=True)
    except _CutShort:
        run.report.alert("interim-core", "interim CORE was cut short: asked to stop", level="info")
    except CoreError as error:
        run.report.alert("interim-core", f"no interim CORE after step {run.step}: {error}")
    run.model.train()
    run.report.event(PhaseEvent(phase="training"))


def leave(run: Run, reason: StopReason) -> NoReturn:
    """Say that the request is honoured, with everything on disk, and raise Stopped."""
    settle(run)
    why = reason.name.lower()
    run.report.event(StopAckEvent(step=run.step, reason=why))
    raise Stopped(f"stopped after step {run.step}: {why}")


def finish(run: Run) -> None:
    """Score CORE on the weights of the passing validation; raises CoreError, Stopped."""
    run.report.event(PhaseEvent(phase="core-eval"))

    def on_task(index: int, count: int, score: TaskScore) -> None:
        run.report.core_task(run.step, index, count, score)
        reason = agree(run)
        if reason:
            run.control.acknowledge()
            leave(run, reason)

    with run.clock.paused("eval_s"):
        result = _score(run, cap=run.plan.eval.cap, records=run.folder.core_items, on_task=on_task)
    run.report.core(run.step, result)


def _score(
    run: Run, *, cap: int, records: Path | None, on_task: Callable[[int, int, TaskScore], None]
) -> CoreResult:
    score = partial(
        score_core,
        run.plan,
        run.model,
        run.tokenizer,
        root=run.root,
        world=run.world,
        records=records,
        cap=cap,
        on_task=on_task,
        warn=lambda text: run.report.alert("core-cache", text),
    )
    result = score()
    while lacked_room(run, run.transport.fits()):
        result = score()
    run.transport.check()
    return result


def train(run: Run) -> tuple[Status, str]:
    """Fit and finish; what ends a run early becomes its status and a message."""
    try:
        if run.reached is None and not fit(run):
            return "missed", f"the target {run.plan.target.target_loss} was not reached"
        finish(run)
    except Stopped as stop:
        return "interrupted", str(stop)
    except Diverged as error:
        return "diverged", str(error)
    except CoreError as error:
        return "core-failed", str(error)
    return "done", ""


def conclude(run: Run, status: Status, message: str) -> None:
    """Publish how the attempt ended; with the target reached, as of the passing validation."""
    run.clock.stop()
    if message:
        run.report.alert(status, message, level="info" if status == "interrupted" else "error")
    settle(run)
    at = run.reached or current_progress(run)
    peak = peak_memory_bytes(run)
    run.report.event(
        OutcomeEvent(
            status=status,
            step=at.step,
            tokens=at.tokens,
            loss=at.loss,
            train_s=at.train_s,
            wall_s=at.wall_s,
            compile_s=at.compile_s,
            eval_s=at.eval_s,
            checkpoint_s=at.checkpoint_s,
            peak_memory_bytes=peak,
            params_total=run.parameters.total,
            params_active=run.parameters.active,
            message=message,
        )
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of a rank; returns the exit code."""
    args = _parse(argv)
    try:
        world = dist.read_world()
        dist.start(world)
        plan, folder = _open_run(args, world)
        is_alone = args.lock_fd is None and world.is_main
        with standalone.locked(folder) if is_alone else nullcontext():
            dist.barrier()
            pipe, attempt = args.supervisor_fd, args.attempt
            code = run_rank(plan, folder, world=world, attempt=attempt, pipe=pipe)
            if is_alone:
                standalone.record_exit(folder, rc=code, attempt=attempt)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 4
    dist.shutdown()
    return code


def run_rank(
    plan: Plan, folder: RunFolder, *, world: dist.World, attempt: int, pipe: int | None
) -> int:
    """Train one rank of an attempt to its end; returns the exit code."""
    control = Control(folder, supervisor_fd=pipe)
    report = Reporter(folder, plan, attempt=attempt, is_writer=world.is_main, say=_say)

    def on_lost(why: str) -> NoReturn:
        code = _fail(report, "peer", PeerError(f"{why} See its log, then resume."), code=5)
        if pipe is None and world.is_main:
            standalone.record_exit(folder, rc=code, attempt=attempt)
        os._exit(code)

    # CPU ranks see it where they wait
    is_watched = plan.device == "cuda" and world.size > 1
    try:
        with dist.watched(on_lost) if is_watched else nullcontext():
            run = build(plan, folder, data_root(), world=world, control=control, report=report)
            status, message = train(run)
            conclude(run, status, message)
            close(run)
        return EXIT_CODES[status]
    except ConfigError as error:
        return _fail(report, "configuration", error, code=2)
    except DataError as error:
        return _fail(report, "data", error, code=4)
    except PeerError as error:
        return _fail(report, "peer", error, code=5)
    except (CheckpointError, OSError, RuntimeError, ValueError) as error:
        traceback.print_exc()
        return _fail(report, "training", error, code=5)


def _open_run(args: argparse.Namespace, world: dist.World) -> tuple[Plan, RunFolder]:
    if args.run is not None:
        folder = RunFolder(root=args.run.absolute())
        plan = read_plan(folder.plan)
    else:
        plan = standalone.make_plan(args.config, overrides=args.set, world=world)
        root = data_root()
        folder = root.run(plan.run_id)
        if world.is_main:
            standalone.create_folder(plan, folder)
    if plan.world != world.size:
        raise ConfigError(f"got {world.size} ranks, the plan of {plan.run_id} wants {plan.world}")
    return plan, folder


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(report: Reporter, code_name: str, error: Exception, *, code: int) -> int:
    report.alert(code_name, str(error), level="error")
    print(f"error: {error}", file=sys.stderr, flush=True)
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m nmoe.train", description=__doc__)
    parser.add_argument("config", type=Path, nargs="?", help="a TOML file such as configs/…")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--run", type=Path, help="an existing run folder, instead of a TOML file")
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--lock-fd", type=int, help="the supervisor's lock, held by inheritance")
    parser.add_argument("--supervisor-fd", type=int, help="a pipe whose end means: stop")
    args = parser.parse_args(argv)
    if (args.config is None) == (args.run is None):
        parser.error("name either a TOML file or --run RUN_FOLDER")
    return args


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # all is written and closed; threads of the process group may abort a slower way out
    os._exit(exit_code)
