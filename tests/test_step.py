"""One step: what is done again when rows find no room leaves no trace."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nmoe.build import Run, close
from nmoe.events import AlertEvent
from nmoe.rdep import Transport
from nmoe.step import train_step
from nmoe.train import validation_step
from tests import tiny


@dataclass
class Crowded:
    """Says of the first attempts that rows did not fit."""

    transport: Transport
    failures: int
    asked: list[bool] = field(default_factory=list)
    grown: int = 0

    def fits(self) -> Callable[[], bool]:
        def answer() -> bool:
            self.asked.append(self.grown >= self.failures)
            return self.asked[-1]

        return answer

    def grow(self) -> None:
        self.grown += 1

    def check(self) -> None:
        self.transport.check()

    def close(self) -> None:
        self.transport.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tiny.write_data(tmp_path / "root")
    return tmp_path / "root"


def two_steps(root: Path, *, failures: int) -> tuple[Run, Crowded, list[Tensor], float]:
    run = tiny.open_run(root)
    crowd = Crowded(transport=run.transport, failures=failures)
    run.transport = crowd  # type: ignore[assignment]
    for _ in range(2):
        train_step(run)
    loads = [layer.router.loads_E.sum() for _, layer in run.model.moe_layers()]
    assert not any(loads)
    weights = [value.clone() for value in run.model.state_dict().values()]
    loss = run.meter.loss_share().item()
    close(run)
    return run, crowd, weights, loss


def test_step_that_lacked_room_ends_like_one_that_did_not(root: Path) -> None:
    _, plain, wanted, loss = two_steps(root, failures=0)
    assert plain.asked == [True, True]
    run, crowd, got, again = two_steps(root, failures=2)
    assert crowd.asked == [False, False, True, True]
    assert again == loss
    assert run.step == 2
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one, other)
    alerts = [each.event for each in tiny.events(run.folder, AlertEvent)]
    assert [isinstance(each, AlertEvent) and each.code for each in alerts] == ["rows", "rows"]


def test_validation_that_lacked_room_is_done_again(root: Path) -> None:
    run = tiny.open_run(root)
    plain = validation_step(run)
    crowd = Crowded(transport=run.transport, failures=1)
    run.transport = crowd  # type: ignore[assignment]
    assert validation_step(run) == plain
    assert crowd.asked == [False, True]
    close(run)
