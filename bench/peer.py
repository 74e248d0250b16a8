"""A peer that trains on from where a live run stands, and must find there what the run finds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from bench.layers import MOST_GROUPS
from bench.plain_trainer import PlainTrainer
from bench.rows import right
from nmoe.build import Run
from nmoe.event_log import read_events
from nmoe.events import StepEvent
from nmoe.train import log_step, train_step


@dataclass(slots=True, kw_only=True)
class Peer:
    """Plain torch with the run's weights, the tokens of the run's next step, and what it found.

    errors: relative differences of loss and gradient norm; empty until `check`.
    """

    trainer: PlainTrainer
    windows: list[Tensor]  # a micro-batch each, [B, S + 1]
    loss: float
    norm: float
    errors: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Take the same step."""
        loss, norm = (found.item() for found in self.trainer.step(self.windows))
        self.errors = {
            "loss": abs(loss - self.loss) / abs(self.loss),
            "gradient norm": abs(norm - self.norm) / self.norm,
        }

    @property
    def is_right(self) -> bool:
        """Whether it does the same work."""
        return bool(self.errors) and right(self.errors)

    def step(self) -> None:
        """One more step on these tokens."""
        self.trainer.step(self.windows)


def peer_of(run: Run) -> Peer:
    """Copy the weights and let the run take one step; ValueError for what plain torch cannot do."""
    if run.plan.experts.num_experts >= MOST_GROUPS:
        raise ValueError(f"torch's grouped product takes fewer than {MOST_GROUPS} groups.")
    trainer = PlainTrainer(run.plan, run.model, is_compiled=run.device.type == "cuda")
    log_step(run)
    with _recorded(run) as windows:
        train_step(run)
    log_step(run)
    records = read_events(run.folder.train)
    found = [record.event for record in records if isinstance(record.event, StepEvent)][-1]
    assert found.grad_norm is not None
    return Peer(trainer=trainer, windows=windows, loss=found.loss, norm=found.grad_norm)


@contextmanager
def _recorded(run: Run) -> Iterator[list[Tensor]]:
    """The windows of every micro-batch that the model sees meanwhile."""
    seen: list[Tensor] = []
    nats = run.model.nats

    def recording(windows_BN: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(windows_BN.clone())
        return nats(windows_BN, *args, **kwargs)

    run.model.nats = recording
    try:
        yield seen
    finally:
        del run.model.nats
