"""Where the seconds went: parts that add up, from events and then as the trainer says."""

from harness.ledger import ledger
from harness.run_state import RunState
from nmoe import events as ev


def step(at: int, train_s: float, wall_s: float) -> ev.StepEvent:
    return ev.StepEvent(
        step=at, tokens=at * 100, loss=5.0, lr=1e-3, grad_norm=1.0, ms=10.0, tok_s=1e4, mfu=None,
        train_s=train_s, wall_s=wall_s,
    )  # fmt: skip


def val(at: int, train_s: float, seconds: float) -> ev.ValEvent:
    return ev.ValEvent(step=at, loss=5.0, bpb=1.5, tokens=100, train_s=train_s, seconds=seconds)


def checkpoint(at: int, paused_s: float | None) -> ev.CheckpointEvent:
    return ev.CheckpointEvent(step=at, name="c", bytes=1, seconds=3.0, paused_s=paused_s)


STORY = (
    ev.CompileEvent(what="warm-up", seconds=20.0),
    step(10, 5.0, 26.0),
    val(10, 5.0, 2.0),
    checkpoint(10, 0.5),
    step(20, 10.0, 35.0),
    val(20, 10.0, 2.0),
    checkpoint(20, None),
    step(30, 15.0, 43.0),
)


def fold(*events: ev.Event, state: RunState | None = None, attempt: int = 0) -> RunState:
    state = state or RunState.of("r")
    for seq, event in enumerate(events, start=state.events):
        state = state.apply(ev.Record(seq=seq, time=float(seq), attempt=attempt, event=event))
    return state


def seconds(state: RunState) -> dict[str, float]:
    return {part.name: part.seconds for part in ledger(state)}


def test_parts_add_up_to_the_wall_clock():
    found = seconds(fold(*STORY))

    assert found == {
        "training": 15.0, "validation": 4.0, "compiling": 20.0, "checkpoints": 0.5, "CORE": 0.0,
        "other": 3.5,
    }  # fmt: skip
    assert sum(found.values()) == 43.0
    assert [part.name for part in ledger(fold(*STORY)) if part.is_counted] == ["training"]


def test_resume_throws_away_what_came_after_its_step():
    state = fold(ev.PhaseEvent(phase="training", resume_step=10), state=fold(*STORY), attempt=1)
    state = fold(step(20, 11.0, 60.0), state=state, attempt=1)

    assert seconds(state)["training"] == 11.0
    assert seconds(state)["validation"] == 2.0


def test_the_end_says_what_was_charged():
    outcome = ev.OutcomeEvent(
        status="done", step=30, tokens=3000, loss=3.2, train_s=15.0, wall_s=50.0, compile_s=21.0,
        eval_s=6.0, checkpoint_s=0.75, peak_memory_bytes=1, params_total=1, params_active=1,
    )  # fmt: skip
    task = ev.CoreTaskEvent(
        name="copa", index=1, count=1, items=10, acc=0.5, centered=0.0, seconds=9.0
    )
    found = seconds(fold(*STORY, task, outcome))

    assert found["validation"] == 6.0
    assert found["CORE"] == 9.0
    assert found["other"] == 7.25


def test_nothing_is_told_before_the_first_step():
    assert ledger(fold(STORY[0])) == ()
