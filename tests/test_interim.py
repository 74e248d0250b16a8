"""CORE during training: the same events, off the clock, and not a bit of the run is another."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nmoe import report
from nmoe.data.minibundle import write_mini_bundle
from nmoe.event_log import read_events
from nmoe.events import (
    AlertEvent,
    CoreEvent,
    CoreTaskEvent,
    Event,
    OutcomeEvent,
    StepEvent,
    ValEvent,
)
from nmoe.paths import RunFolder
from tests import tiny

PLAIN = ("train.seq_len=128", "train.steps=16", "checkpoint.every=8")
INTERIM = (*PLAIN, "eval.every=8", "eval.interim_cap=10")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with the tiny data set and the bundle in it."""
    tiny.write_data(tmp_path / "root")
    write_mini_bundle(tmp_path / "root" / "eval" / "pocket_bundle")
    return tmp_path / "root"


def train(root: Path, *overrides: str, world: int = 1, expect: int = 6) -> RunFolder:
    """Run the tiny preset to its end and check every rank's exit code; the newest run."""
    words = [word for override in overrides for word in ("--set", override)]
    args = [str(tiny.write_config(root)), *words]
    before = set((root / "runs").iterdir()) if (root / "runs").exists() else set()
    if world == 1:
        assert tiny.run_here(args, root) == expect
    else:
        assert tiny.finish(tiny.start_ranks(args, root, world=world)) == [expect] * world
    (path,) = set((root / "runs").iterdir()) - before
    return RunFolder(root=path)


def told(folder: RunFolder, kind: type[Event]) -> list[Event]:
    return [record.event for record in tiny.events(folder, kind)]


@pytest.mark.parametrize("world", [1, 2])
def test_run_ends_in_the_same_bits_when_it_is_scored_on_its_way(root: Path, world: int) -> None:
    plain, scored = train(root, *PLAIN, world=world), train(root, *INTERIM, world=world)
    name = "step_00000016"
    assert tiny.weights_digest(plain, name) == tiny.weights_digest(scored, name)
    for kind, fields in ((StepEvent, ("step", "loss", "grad_norm")), (ValEvent, ("step", "loss"))):
        curves = [
            [tuple(getattr(event, field) for field in fields) for event in told(folder, kind)]
            for folder in (plain, scored)
        ]
        assert curves[0] == curves[1]
    assert told(plain, CoreEvent) == []
    cores = [event for event in told(scored, CoreEvent) if isinstance(event, CoreEvent)]
    assert [(core.step, core.is_interim, core.cap) for core in cores] == [
        *((8, True, 10), (16, True, 10))
    ]
    tasks = [event for event in told(scored, CoreTaskEvent) if isinstance(event, CoreTaskEvent)]
    assert {(task.step, task.is_interim) for task in tasks} == {(8, True), (16, True)}
    assert len(tasks) == 2 * cores[0].tasks
    for core in cores:
        own = [task.centered for task in tasks if task.step == core.step]
        assert core.score == pytest.approx(sum(own) / len(own))
        assert core.ci95 is not None
        assert core.ci95[0] <= core.score <= core.ci95[1]
    assert not scored.core_items.exists()


def test_interim_scores_are_charged_to_the_evaluation(root: Path) -> None:
    scored = train(root, *INTERIM)
    (outcome,) = told(scored, OutcomeEvent)
    assert isinstance(outcome, OutcomeEvent)
    cores = [event for event in told(scored, CoreEvent) if isinstance(event, CoreEvent)]
    vals = [event for event in told(scored, ValEvent) if isinstance(event, ValEvent)]
    spent = sum(core.seconds for core in cores) + sum(val.seconds for val in vals)
    assert outcome.eval_s >= spent
    assert outcome.train_s + outcome.eval_s + outcome.checkpoint_s <= outcome.wall_s


def test_final_score_is_apart_from_the_interim_ones(root: Path) -> None:
    scored = train(root, *INTERIM, "target.target_loss=4.9", "eval.every=4", expect=0)
    *interim, final = [event for event in told(scored, CoreEvent) if isinstance(event, CoreEvent)]
    assert interim
    assert all(core.is_interim for core in interim)
    assert not final.is_interim
    assert final.items == len(scored.core_items.read_text().splitlines())
    assert final.cropped == 0
    result = json.loads(scored.result.read_text())
    assert result["status"] == "done"


def test_training_goes_on_with_an_alert_when_nothing_can_be_scored(root: Path) -> None:
    capped = train(root, *INTERIM, "eval.interim_cap=1")
    alerts = [event for event in told(capped, AlertEvent) if isinstance(event, AlertEvent)]
    alerts = [alert for alert in alerts if alert.code == "interim-core"]
    assert [alert.level for alert in alerts] == ["warning"] * 2
    assert "no interim CORE after step 8" in alerts[0].message
    assert "Use a larger cap" in alerts[0].message
    assert told(capped, CoreEvent) == []
    plain = train(root, *PLAIN)
    name = "step_00000016"
    assert tiny.weights_digest(plain, name) == tiny.weights_digest(capped, name)


def test_request_to_stop_cuts_an_interim_score_short(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish: Callable[..., None] = report.Reporter.core_task

    def publish_and_ask(self: report.Reporter, *args: object, **options: object) -> None:
        publish(self, *args, **options)
        (folder,) = (root / "runs").iterdir()
        stop = RunFolder(root=folder).stop_request
        stop.parent.mkdir(exist_ok=True)
        stop.write_text('{"mode": "checkpoint", "by": "test"}')

    monkeypatch.setattr(report.Reporter, "core_task", publish_and_ask)
    folder = train(root, *INTERIM, expect=130)
    assert len(told(folder, CoreTaskEvent)) == 1
    assert told(folder, CoreEvent) == []
    (alert,) = [
        event
        for event in told(folder, AlertEvent)
        if isinstance(event, AlertEvent) and event.code == "interim-core"
    ]
    assert "cut short" in alert.message
    (outcome,) = told(folder, OutcomeEvent)
    assert isinstance(outcome, OutcomeEvent)
    assert outcome.step == 12  # the next log step
    monkeypatch.setattr(report.Reporter, "core_task", publish)
    assert tiny.run_here(["--run", str(folder.root), "--attempt", "1"], root) == 6
    whole = train(root, *PLAIN)
    name = "step_00000016"
    assert tiny.weights_digest(whole, name) == tiny.weights_digest(folder, name)
    assert [
        record.event.step
        for record in read_events(folder.train)
        if isinstance(record.event, CoreEvent)
    ] == [16]
