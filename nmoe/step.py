"""One optimizer step of a run: gradients of its micro-batches, update, balance of the routers.

Legend: B sequences of this rank, N = S + 1 tokens of a window, L MoE layers, E experts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nmoe import dist
from nmoe.build import Run
from nmoe.optim.schedule import lr_scale


def train_step(run: Run) -> None:
    """One optimizer step on one global batch, `accumulation` micro-batches on each rank."""
    with run.loader_wait.running():
        batch_BN = dist.to_device(run.loader.next_batch(), run.device)
    for began in run.loader.began:
        run.report.began(run.step, began)
    mean_loss, fits = gradients(run, batch_BN)
    while lacked_room(run, fits):
        mean_loss, fits = gradients(run, batch_BN)
    norm = run.optimizer.reduce_gradients()
    run.optimizer.step(scale=learning_rate_scale(run), norm=norm)
    run.meter.add(loss=mean_loss, grad_norm=norm, loads_LE=balance(run))
    run.step += 1


def gradients(run: Run, batch_BN: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """(this rank's share of the mean loss, fp64, whether all rows fitted); gradients in `.grad`.

    Rows are asked about once, behind the last forward pass: whoever waits for the answer does so
    while the device still has the backward pass to do.
    """
    mean_loss = torch.zeros((), dtype=torch.float64, device=run.device)
    *earlier, last_BN = batch_BN.split(run.plan.train.micro_batch)
    for windows_BN in earlier:
        loss, objective = losses(run, windows_BN)
        mean_loss += loss
        objective.backward()
    loss, objective = losses(run, last_BN)
    fits = run.transport.fits()
    mean_loss += loss
    objective.backward()
    return mean_loss, fits


def losses(run: Run, windows_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of means over the global batch: (the loss without gradients, what is minimised)."""
    plan = run.plan
    nats, _, aux_sum = run.model.nats(windows_BN)
    loss = nats / (plan.train.batch_size * plan.train.seq_len)
    return loss.detach(), loss + plan.experts.aux_coef * aux_sum / plan.train.batch_size


def lacked_room(run: Run, fits: Callable[[], bool]) -> bool:
    """Whether rows did not fit on some rank, the same on all ranks: no row is ever dropped.

    Then nothing is left of the attempt, there is more room, and the work must be done again.
    """
    if fits():
        return False
    run.model.zero_grad(set_to_none=True)
    for _, layer in run.model.moe_layers():
        layer.router.loads_E.zero_()
    run.transport.grow()
    run.report.alert(
        "rows",
        f"more rows than expected chose the experts of one rank after step {run.step}: the work is"
        " done again with twice the room",
        level="info",
    )
    return True


def balance(run: Run) -> Tensor:
    """Move every router's bias by the step's loads, global int64 [L, E], and count anew."""
    routers = [layer.router for _, layer in run.model.moe_layers()]
    if not routers:
        return torch.zeros(0, run.plan.experts.num_experts, dtype=torch.int64, device=run.device)
    loads_LE = dist.all_reduce(torch.stack([router.loads_E for router in routers]))
    for router, loads_E in zip(routers, loads_LE, strict=True):
        router.update_bias(loads_E)
        router.loads_E.zero_()
    return loads_LE


def learning_rate_scale(run: Run) -> float:
    """The schedule's factor for the step that comes next."""
    train = run.plan.train
    return lr_scale(
        run.plan.schedule, tokens=run.tokens, tokens_per_step=train.batch_size * train.seq_len
    )
