"""Tails, the fold, the list of runs: what is on disk is what is known, whatever happened to it."""

import fcntl
import json
import math
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import run_state, runs
from harness.errors import RunError
from harness.run_state import RunState
from harness.runs import RunReader
from harness.tails import Tail
from nmoe import events as ev
from nmoe.event_log import EventLog
from nmoe.events import Record, encode
from nmoe.paths import DataRoot, RunFolder, write_atomic
from tests.harness.finished_run import make_plan, write_run

T0 = 1_700_000_000.0
STATUSES = set(runs.RunStatus.__args__)


def step_event(step: int, loss: float = 3.0, **changes: Any) -> ev.StepEvent:
    event = ev.StepEvent(
        step=step,
        tokens=step * 1024,
        loss=loss,
        lr=1e-3,
        grad_norm=1.0,
        ms=100.0,
        tok_s=1e4,
        mfu=None,
        train_s=step * 0.1,
        wall_s=step * 0.1 + 1,
    )
    return replace(event, **changes)


def val_event(step: int, loss: float) -> ev.ValEvent:
    return ev.ValEvent(
        step=step, loss=loss, bpb=loss / 0.7, tokens=64, train_s=step * 0.1, seconds=0.1
    )


def exit_event(status: ev.Status = "failed", rc: int = 5) -> ev.ExitEvent:
    return ev.ExitEvent(status=status, rc=rc)


def records(*events: ev.Event, attempt: int = 0, start: float = T0, seq: int = 0) -> list[Record]:
    return [
        Record(seq=seq + i, time=start + i, attempt=attempt, event=event)
        for i, event in enumerate(events)
    ]


def fold(stream: list[Record], state: RunState | None = None) -> RunState:
    state = state or RunState.of("r")
    for record in stream:
        state = state.apply(record)
    return state


def facts(state: RunState) -> RunState:
    """The state without what depends on the order in which two files were read."""
    return replace(
        state, lines=(), alerts=tuple(sorted(state.alerts, key=repr)), started=0.0, seen={}
    )


def write_lines(path: Path, stream: list[Record], *, end: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(encode(record) + "\n" for record in stream) + end)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = DataRoot(path=tmp_path, reason="test").run("r-1")
    folder.root.mkdir(parents=True)
    write_atomic(folder.plan, make_plan("r-1").to_json())
    return folder


# ------------------------------------------------------------------------- made-up histories

finite = st.floats(min_value=0.1, max_value=9, allow_nan=False)
drift = st.floats(min_value=-3600, max_value=3600)  # a clock that is set while the run goes on


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Record], list[Record]]:
    """What trainer and supervisor write over up to three attempts, each file in its order."""
    trainer: list[Record] = []
    supervisor: list[Record] = []
    clock, step, saved = T0, 0, 0

    def write(file: list[Record], event: ev.Event) -> None:
        nonlocal clock
        clock += draw(drift) if draw(st.integers(0, 19)) == 0 else 0.5
        file.append(Record(seq=len(file), time=clock, attempt=attempt, event=event))

    for attempt in range(draw(st.integers(1, 3))):
        write(supervisor, ev.PhaseEvent(phase="checking"))
        write(supervisor, ev.PrepEvent(job="pocket/train", done=5, total=10, unit="bytes"))
        write(supervisor, ev.LaunchEvent(pids=(1,), command=("x",)))
        write(trainer, ev.PhaseEvent(phase="compiling"))
        if attempt:
            step = saved
            write(trainer, ev.PhaseEvent(phase="training", resume_step=saved))
        else:
            write(trainer, ev.PhaseEvent(phase="training"))
        for _ in range(draw(st.integers(0, 6))):
            step += 10
            write(trainer, step_event(step, draw(finite)))
            match draw(st.sampled_from(("nothing", "val", "ckpt", "alert", "stop"))):
                case "val":
                    write(trainer, val_event(step, draw(finite)))
                case "ckpt":
                    saved = step
                    write(trainer, ev.CheckpointEvent(step=step, name="c", bytes=1, seconds=0.1))
                case "alert":
                    write(supervisor, ev.AlertEvent(code="x", level="info", message=f"{clock}"))
                case "stop":
                    write(supervisor, ev.StopRequestEvent(by="me", action="checkpoint"))
        if draw(st.booleans()):
            write(supervisor, exit_event())
    return trainer, supervisor


def interleave(draw: st.DrawFn, *files: list[Record]) -> list[Record]:
    queues = [list(file) for file in files]
    merged: list[Record] = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        merged.append(queue.pop(0))
    return merged


@given(histories(), st.data())
@settings(max_examples=60, deadline=None)
def test_fold_is_the_same_when_files_interleave_in_any_order(
    history: tuple[list[Record], list[Record]], data: st.DataObject
) -> None:
    one = fold(interleave(data.draw, *history))
    other = fold([*history[0], *history[1]])
    assert facts(one) == facts(other)


SAMPLES = st.lists(
    st.tuples(
        st.integers(0, 12),  # sequence numbers come twice, too
        st.integers(0, 2),
        st.floats(0, 50),
        st.builds(ev.GpuEvent, index=st.integers(0, 3), power_w=st.floats(1, 999)),
    ),
    max_size=12,
)


@given(histories(), SAMPLES, st.data())
@settings(max_examples=60, deadline=None)
def test_fold_of_all_is_that_of_one_by_one(
    history: tuple[list[Record], list[Record]],
    samples: list[tuple[int, int, float, ev.GpuEvent]],
    data: st.DataObject,
) -> None:
    gpus = [
        Record(seq=seq, time=T0 + time, attempt=attempt, event=event)
        for seq, attempt, time, event in samples
    ]
    stream = interleave(data.draw, *history, gpus)
    cut = data.draw(st.integers(0, len(stream)))
    at_once = RunState.of("r").apply_all(stream[:cut]).apply_all(stream[cut:])
    assert at_once == fold(stream)


@given(histories(), st.data())
@settings(max_examples=60, deadline=None)
def test_fold_is_valid_and_never_changes_when_it_is_any_prefix(
    history: tuple[list[Record], list[Record]], data: st.DataObject
) -> None:
    stream = interleave(data.draw, *history)
    state, before = RunState.of("r"), []
    for record in stream:
        state = state.apply(record)
        before.append((state, list(state.losses), list(state.vals)))
        steps = list(state.losses.steps)
        assert steps == sorted(set(steps))
        assert state.updated >= state.started
        assert runs.status(state, data.draw(st.booleans()), state.updated) in STATUSES
    for earlier, losses, vals in before:
        assert list(earlier.losses) == losses
        assert list(earlier.vals) == vals


@given(histories(), st.data())
@settings(max_examples=40, deadline=None)
def test_fold_is_idempotent_when_records_come_again(
    history: tuple[list[Record], list[Record]], data: st.DataObject
) -> None:
    stream = interleave(data.draw, *history)
    state = fold(stream)
    assert fold(stream, state) == state


@given(histories(), st.data())
@settings(max_examples=30, deadline=None)
def test_reader_sees_live_what_a_replay_sees_when_lines_arrive_in_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    history: tuple[list[Record], list[Record]],
    data: st.DataObject,
) -> None:
    folder = RunFolder(root=tmp_path_factory.mktemp("live"))
    live = RunReader(folder)
    paths = (folder.train, folder.supervisor)
    pending = ["".join(encode(record) + "\n" for record in file) for file in history]
    while any(pending):
        which = data.draw(st.sampled_from([i for i, text in enumerate(pending) if text]))
        size = data.draw(st.integers(1, 700))
        with paths[which].open("a") as file:
            file.write(pending[which][:size])
        pending[which] = pending[which][size:]
        live.read(max_bytes=data.draw(st.integers(1, 500)))
    while live.read():
        pass
    assert facts(live.state) == facts(runs.load(folder))
    assert live.state.events == sum(map(len, history))
    assert live.state.bad_lines == 0


# ------------------------------------------------------------------------------- the fold


def test_resume_drops_later_points_when_training_goes_back() -> None:
    first = records(
        ev.PhaseEvent(phase="training"),
        step_event(10, 4.0),
        val_event(10, 3.5),
        ev.CheckpointEvent(step=10, name="step_00000010", bytes=1, seconds=0.1),
        step_event(20, 3.0),
        val_event(20, 2.5),
    )
    old = fold(first)
    resumed = records(
        ev.PhaseEvent(phase="training", resume_step=10), attempt=1, start=T0 + 60, seq=6
    )
    state = fold(resumed, old)
    assert (state.attempt, state.step, state.loss) == (1, 10, 4.0)
    assert (state.tokens, state.train_s) == (10_240, 1.0)
    assert (state.val, state.best_val) == (val_event(10, 3.5), 3.5)
    later = fold(records(step_event(20, 2.0), attempt=1, start=T0 + 70, seq=7), state)
    assert list(later.losses.values) == [4.0, 2.0]
    assert list(old.losses.values) == [4.0, 3.0]
    assert list(old.vals.values) == [3.5, 2.5]


def interim(step: int, *names: str, score: float | None = None) -> list[ev.Event]:
    """Interim tasks after a step, and their score."""
    tasks: list[ev.Event] = [
        ev.CoreTaskEvent(
            name=name, index=index, count=2, items=9, acc=0.5, centered=0.1, seconds=0.1,
            step=step, is_interim=True,
        )
        for index, name in enumerate(names, start=1)
    ]  # fmt: skip
    if score is None:
        return tasks
    core = ev.CoreEvent(
        score=score, tasks=2, items=18, bundle="b", seconds=0.2, step=step, is_interim=True
    )
    return [*tasks, core]


def test_interim_scores_are_the_newest_and_apart_from_the_final_one() -> None:
    stream = records(*interim(10, "a", "b", score=0.1), step_event(20), *interim(20, "a"))
    state = fold(stream)
    assert [(task.name, task.step) for task in state.interim_tasks] == [("a", 20)]
    assert state.interim_core is None
    first = fold(stream[:4])
    assert [task.name for task in first.interim_tasks] == ["a", "b"]
    assert first.interim_core is not None
    assert first.interim_core.score == 0.1
    assert (state.core_tasks, state.core, first.core_tasks, first.core) == ((), None, (), None)
    assert any("step 10: interim CORE 0.1000" in line for _, line in state.lines)


def test_interim_scores_are_dropped_when_training_goes_back_before_them() -> None:
    stream = records(step_event(10), *interim(10, "a", "b", score=0.1), step_event(20))
    kept = records(ev.PhaseEvent(phase="training", resume_step=10), attempt=1, seq=9)
    gone = records(ev.PhaseEvent(phase="training", resume_step=5), attempt=1, seq=9)
    assert fold(stream + kept).interim_core is not None
    assert (fold(stream + gone).interim_core, fold(stream + gone).interim_tasks) == (None, ())


def test_energy_is_that_of_the_attempt() -> None:
    energy = [ev.EnergyEvent(step=s, tokens=s * 1000, joules=s * 500.0) for s in (10, 20)]
    state = fold(records(*energy))
    assert (state.energy, state.joules_per_token) == (energy[1], 0.5)
    state = fold(records(ev.PhaseEvent(phase="checking"), attempt=1, seq=2), state)
    assert (state.energy, state.joules_per_token) == (None, None)
    late = fold(records(energy[1], seq=5), state)
    assert late.energy is None


@pytest.mark.parametrize(
    ("nvlinks", "paths", "line"),
    [
        ((18, 18), ("self", "nvlink", "nvlink", "self"),
         "2 GPU(s), joined by nvlink, 18 NVLinks each"),
        ((18, 17), ("self", None, "nvlink", "self"),
         "2 GPU(s), joined by N/A, nvlink, 17 or 18 NVLinks each"),
        ((None, None), ("self", "node", "node", "self"), "2 GPU(s), joined by node"),
        ((None,), ("self",), "1 GPU(s)"),
    ],
)  # fmt: skip
def test_topology_is_one_line(
    nvlinks: tuple[int | None, ...], paths: tuple[str | None, ...], line: str
) -> None:
    nothing = (None,) * len(nvlinks)
    topology = ev.TopologyEvent(
        indices=tuple(range(len(nvlinks))), nvlinks=nvlinks, paths=paths, pcie_gens=nothing,
        pcie_widths=nothing, pcie_max_widths=nothing,
    )  # fmt: skip
    state = fold(records(topology))
    assert state.topology == topology
    assert [text for _, text in state.lines] == [line]


def test_marks_are_those_of_what_happened_when_training_goes_back() -> None:
    saved = [ev.CheckpointEvent(step=s, name="c", bytes=1, seconds=0.1) for s in (10, 20, 30)]
    state = fold(records(*saved))
    resumed = ev.PhaseEvent(phase="training", resume_step=20)
    state = fold(records(resumed, saved[2], saved[2], attempt=1, seq=3), state)

    assert state.marks == (
        (10, "checkpoint"), (20, "checkpoint"), (20, "resume"), (30, "checkpoint")
    )  # fmt: skip


def test_wall_time_is_beside_each_loss() -> None:
    state = fold(records(step_event(10), step_event(20)))

    assert list(state.losses.wall_s) == [2.0, 3.0]
    assert list(state.losses.since(1).wall_s) == [3.0]


def test_resume_drops_later_points_when_its_phase_event_is_lost() -> None:
    state = fold(records(step_event(10, 4.0), step_event(20, 3.0), step_event(30, 2.0)))
    state = fold(records(step_event(20, 9.0), attempt=1, seq=3), state)
    assert [(p.step, p.value) for p in state.losses] == [(10, 4.0), (20, 9.0)]


def test_attempt_forgets_how_the_last_one_ended_when_it_begins() -> None:
    state = fold(
        records(
            ev.StopRequestEvent(by="me", action="checkpoint"),
            exit_event("interrupted", 130),
        )
    )
    assert state.stop_requested
    state = fold(records(ev.PhaseEvent(phase="checking"), attempt=1, seq=2), state)
    assert (state.exit, state.stop_requested, state.phase) == (None, False, "checking")
    late = fold(records(exit_event(), attempt=0, seq=9), state)
    assert late.exit is None


def test_durations_are_never_negative_when_the_clock_is_set_back() -> None:
    stream = records(ev.PhaseEvent(phase="training"), step_event(10))
    stream += records(step_event(20), start=T0 - 86_400, seq=2)
    state = fold(stream)
    assert state.updated >= state.started
    assert list(state.losses.steps) == [10, 20]
    assert runs.status(state, True, T0 - 86_400) == "training"


def test_merge_keeps_the_order_of_a_file_when_the_clock_is_set_back(folder: RunFolder) -> None:
    write_lines(folder.train, records(step_event(10), start=T0))
    with folder.train.open("a") as file:
        file.write(encode(records(step_event(20), start=T0 - 999, seq=1)[0]) + "\n")
    write_lines(folder.supervisor, records(exit_event(), start=T0 - 500))
    seen = [r.event.step for r in RunReader(folder).read() if isinstance(r.event, ev.StepEvent)]
    assert seen == [10, 20]


def test_nan_loss_stays_out_of_the_best_when_validation_diverges() -> None:
    state = fold(records(val_event(10, 3.0), step_event(20, math.nan), val_event(20, math.nan)))
    assert state.best_val == 3.0
    assert math.isnan(state.losses.values[-1])


def test_markup_is_text_when_it_is_in_a_message() -> None:
    bold = "[/bold] [red]{0}\x1b[1m"
    alert = ev.AlertEvent(code="c", level="error", message=bold)
    note = ev.PhaseEvent(phase="checking", note=bold)
    state = fold(records(alert, note))
    assert state.alerts == (alert,)
    assert state.lines[0][1] == f"error: {bold}"
    assert bold in state.lines[1][1]


def test_lines_and_alerts_are_bounded_when_there_are_many() -> None:
    stream = records(*(ev.AlertEvent(code="c", level="info", message=str(i)) for i in range(2000)))
    state = fold(stream)
    assert len(state.lines) == run_state.MAX_LINES
    assert len(state.alerts) == run_state.MAX_ALERTS
    assert state.lines[-1][1].endswith("1999")


def test_lines_can_be_written_for_every_kind_of_event(tmp_path: Path) -> None:
    state = runs.load(write_run(DataRoot(path=tmp_path, reason="test")))
    text = "\n".join(line for _, line in state.lines)
    assert "validation loss 1.290" in text
    assert "CORE 3/3 close" in text


# ------------------------------------------------------------------------------- status


def training(ms: float = 100.0) -> RunState:
    plan = make_plan("r")
    stream = records(ev.PhaseEvent(phase="training"), step_event(10, ms=ms))
    return fold(stream, RunState.of("r", plan))


@pytest.mark.parametrize(
    ("event", "alive", "expected"),
    [
        (ev.PhaseEvent(phase="preparing"), True, "preparing"),
        (ev.PhaseEvent(phase="preparing"), False, "interrupted"),
        (ev.PhaseEvent(phase="core-eval"), True, "core-eval"),
        (ev.PhaseEvent(phase="scoring"), True, "core-eval"),
        (ev.StopRequestEvent(by="me", action="checkpoint"), True, "stopping"),
        (exit_event("failed"), True, "failed"),
        (exit_event("diverged"), False, "diverged"),
        (exit_event("missed", 6), False, "missed"),
        (exit_event("done", 0), False, "done"),
        (exit_event("core-failed", 7), False, "failed"),
        (exit_event("interrupted", 130), False, "interrupted"),
    ],
)
def test_status_is_told_by_the_last_event_and_the_lock(
    event: ev.Event, alive: bool, expected: str
) -> None:
    state = fold(records(event))
    assert runs.status(state, alive, T0 + 1) == expected


def test_status_is_idle_when_nothing_was_ever_said() -> None:
    assert runs.status(RunState.of("r"), False, T0) == "idle"


def test_status_is_stalled_when_training_is_silent_for_too_long() -> None:
    state = training()
    assert runs.status(state, True, T0 + 50) == "training"
    assert runs.status(state, True, T0 + 70) == "stalled"
    assert runs.status(state, False, T0 + 70) == "interrupted"


def test_status_is_training_when_slow_steps_explain_the_silence() -> None:
    state = training(ms=20_000.0)  # ten steps of 20 s lie between two step events
    assert runs.status(state, True, T0 + 1900) == "training"
    assert runs.status(state, True, T0 + 2100) == "stalled"


# -------------------------------------------------------------------------------- tails


def test_tail_waits_when_the_last_line_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    first, second = map(encode, records(step_event(10), step_event(20)))
    path.write_text(first + "\n" + second[:40])
    tail = Tail(path)
    assert [r.seq for r in tail.read()] == [0]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(second[40:] + "\n")
    assert [r.seq for r in tail.read()] == [1]
    assert tail.bad_lines == 0


def test_tail_counts_one_bad_line_when_a_writer_died_in_mid_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    first, second = map(encode, records(step_event(10), step_event(20)))
    path.write_text(first + "\n" + second[:40])
    log = EventLog(path, attempt=1)
    log.write(step_event(20))
    log.close()
    tail = Tail(path)
    assert [r.event for r in tail.read()] == [step_event(10), step_event(20)]
    assert tail.bad_lines == 1


@pytest.mark.parametrize(
    "line",
    ["", "{", "[1]", "null", '{"v":1,"k":"step","s":0}', '{"k":"step"}', "\x00\x01"]
    + ['{"v":"1"}', "9" * 5000, "[" * 5000, '{"v":1,"s":[],"t":{},"a":0,"k":"epoch"}'],
)
def test_tail_counts_and_passes_a_line_when_it_is_no_event(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(line + "\n" + encode(records(step_event(10))[0]) + "\n")
    tail = Tail(path)
    assert [r.event for r in tail.read()] == [step_event(10)]
    assert tail.bad_lines == 1


def test_tail_passes_a_kind_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"v":1,"s":0,"t":1.0,"a":0,"k":"weather","sky":"blue"}\n')
    tail = Tail(path)
    assert tail.read() == []
    assert tail.bad_lines == 0


def test_tail_refuses_a_version_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"v":2,"s":0,"t":1.0,"a":0,"k":"step"}\n')
    with pytest.raises(RunError, match="got event version 2, expected 1"):
        Tail(path).read()


def test_tail_reads_on_when_a_line_is_longer_than_a_read(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    long = ev.AlertEvent(code="c", level="info", message="x" * 10_000)
    write_lines(path, records(long, step_event(10)))
    tail = Tail(path)
    seen: list[Record] = []
    for _ in range(2):
        seen += tail.read(max_bytes=100)
    assert [r.seq for r in seen] == [0, 1]


def test_reader_starts_anew_when_a_file_is_replaced(folder: RunFolder) -> None:
    write_lines(folder.train, records(step_event(10), step_event(20)))
    reader = RunReader(folder)
    reader.read()
    write_atomic(folder.train, encode(records(step_event(10, 1.0))[0]) + "\n")
    reader.read()
    assert list(reader.state.losses.values) == [1.0]
    assert reader.state.plan is not None


def test_load_refuses_when_there_is_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run nope"):
        runs.load(DataRoot(path=tmp_path, reason="test").run("nope"))


# ----------------------------------------------------------------------------- lists of runs


def hold(folder: RunFolder) -> int:
    fd = os.open(folder.lock, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def write_snapshot(folder: RunFolder, **changes: Any) -> None:
    snapshot = runs.Snapshot(
        status="training",
        is_over=False,
        attempt=0,
        phase="training",
        step=70,
        tokens=700,
        loss=2.0,
        val=2.1,
        best_val=2.1,
        train_s=7.0,
        pid=1,
        pid_start=1,
        boot_id="b",
        heartbeat=T0,
    )
    write_atomic(folder.state, json.dumps(asdict(replace(snapshot, **changes))))


def test_is_alive_only_while_the_lock_is_held(folder: RunFolder) -> None:
    assert not runs.is_alive(folder)
    fd = hold(folder)
    assert runs.is_alive(folder)
    os.close(fd)
    assert not runs.is_alive(folder)


def test_summary_comes_from_the_snapshot_when_the_run_is_alive(folder: RunFolder) -> None:
    write_snapshot(folder)
    fd = hold(folder)
    row = runs.summarize(folder)
    os.close(fd)
    assert (row.status, row.step, row.val, row.is_alive) == ("training", 70, 2.1, True)
    assert (row.preset, row.target, row.machine) == ("pocket", 1.3, "Some CPU")


def test_summary_is_interrupted_when_the_supervisor_was_killed(folder: RunFolder) -> None:
    write_snapshot(folder)
    write_lines(folder.supervisor, records(ev.PhaseEvent(phase="launching")))
    row = runs.summarize(folder)
    assert (row.status, row.step, row.is_alive) == ("interrupted", 70, False)


def test_summary_has_the_exit_record_when_the_last_snapshot_was_lost(folder: RunFolder) -> None:
    write_snapshot(folder)
    write_lines(folder.supervisor, records(ev.PhaseEvent(phase="launching"), exit_event()))
    assert runs.summarize(folder).status == "failed"


def test_summary_comes_from_the_events_when_the_trainer_ran_alone(folder: RunFolder) -> None:
    write_lines(folder.train, records(*(step_event(i) for i in range(1, 3000))))
    (folder.state).write_text("{broken")
    row = runs.summarize(folder)
    assert (row.status, row.step) == ("interrupted", 2999)


def test_list_has_a_row_with_the_problem_when_a_folder_is_broken(folder: RunFolder) -> None:
    folder.plan.write_text("{")
    root = DataRoot(path=folder.root.parent.parent, reason="test")
    (root.runs / ".hidden").mkdir()
    [row] = runs.list_runs(root)
    assert (row.run_id, row.status) == ("r-1", "failed")
    assert "plan.json cannot be read" in row.problem


def test_list_is_fast_when_there_are_hundreds_of_runs(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    text = make_plan("r").to_json()
    stream = "".join(encode(record) + "\n" for record in records(*map(step_event, range(999))))
    for index in range(300):
        folder = root.run(f"r-{index}")
        folder.root.mkdir(parents=True)
        folder.plan.write_text(text)
        folder.train.write_text(stream)
        write_snapshot(folder, is_over=True, status="done")
    began = time.process_time()  # of this process: other tests may be using the cores
    rows = runs.list_runs(root)
    assert time.process_time() - began < 0.5
    assert {row.status for row in rows} == {"done"}
    assert len(rows) == 300


def test_find_takes_a_unique_beginning_and_refuses_the_rest(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    for name in ("pocket-1", "pocket-12", "dense-1"):
        root.run(name).root.mkdir(parents=True)
    assert runs.find(root, "dense").run_id == "dense-1"
    assert runs.find(root, "pocket-1").run_id == "pocket-1"
    with pytest.raises(RunError, match="could be 2 runs"):
        runs.find(root, "pock")
    with pytest.raises(RunError, match="no run '../x'"):
        runs.find(root, "../x")
