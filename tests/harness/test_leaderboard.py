"""The scoreboard: what is entered and where, ranks, refusals, a file that loses nothing."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import leaderboard, score
from harness.entry import sealed
from harness.errors import BoardError, RunError
from harness.leaderboard import Board, Entry
from harness.pins import BundleRecord, write_record
from nmoe.config import Hardware, Plan, read_config
from nmoe.event_log import EventLog
from nmoe.events import (
    CoreEvent,
    CoreTaskEvent,
    OutcomeEvent,
    PhaseEvent,
    StepEvent,
    TopologyEvent,
    ValEvent,
)
from nmoe.paths import REPO_ROOT, DataRoot
from tests.harness.finished_run import RUN_ID, events_of, make_plan, write_dataset, write_run


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    return DataRoot(path=tmp_path / "data", reason="test")


@pytest.fixture
def repo_board(tmp_path: Path) -> Path:
    return tmp_path / "repo" / "LEADERBOARD.json"


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    root = DataRoot(path=tmp_path_factory.mktemp("entry"), reason="test")
    return leaderboard.make_entry(score.compute(write_run(root), root))


def another(entry: Entry, number: int, **changes: Any) -> Entry:
    """The entry of another run, with its own id."""
    changes = {"run_id": f"pocket-{number}", **changes}
    return sealed(replace(entry, result=replace(entry.result, **changes)), prev=None)


def chained(*entries: Entry) -> Board:
    """A board whose chain is whole."""
    chain: list[Entry] = []
    for entry in entries:
        chain.append(sealed(entry, prev=chain[-1].entry_id if chain else None))
    return Board.of(Path("x"), chain)


def official_plan() -> Plan:
    config = read_config(REPO_ROOT / "configs/speedrun/pocket.toml")
    return make_plan(
        "open-20260101-000000-abcd",
        config=replace(
            config,
            preset="open-recipe",
            data=replace(config.data, task="fineweb-edu", data_path="speedrun"),
            train=replace(config.train, seq_len=2048, batch_size=256),
            validation=replace(config.validation, every=128, windows=5120),
            target=replace(config.target, target_loss=3.28),
        ),
        device="cuda",
        hardware=Hardware(gpu="NVIDIA H200", num_gpus=8),
        dtype="bf16",
    )


# ------------------------------------------------------------------------------ what is entered


def test_finish_enters_the_run_when_it_reached_the_target_and_has_core(
    root: DataRoot, repo_board: Path
) -> None:
    folder = write_run(root)
    event = leaderboard.finish(folder, root, repo_board=repo_board)
    board = leaderboard.load(root.board)
    assert event.reached
    assert event.status == "done"
    assert event.rank == 1
    assert event.board == str(root.board)
    assert [entry.entry_id for entry in board.entries] == [event.entry_id]
    assert board.entries[0].result.core == pytest.approx(0.25)
    assert board.entries[0].core.tasks["copy"]["items"] == 50
    assert not leaderboard.verify(board)
    assert not repo_board.exists()
    written = json.loads(folder.result.read_text())
    assert written["entry_id"] == event.entry_id
    assert written["train_s"] == event.train_s == 60.0
    assert written["tok_s"] == written["tokens"] / 60.0
    assert written["attempts"] == 1
    assert written["digests"]["commit"] == "c" * 40


def test_entry_names_firmware_libraries_and_what_joins_the_gpus(root: DataRoot) -> None:
    hardware = Hardware(gpu="H200", num_gpus=2, vbios="96.00.B1", is_ecc=True, is_mig=False)
    versions = {"torch": "2.13.0+cu130", "cuda": "13.0", "cudnn": "9.15.1", "nccl": "2.28.9"}
    plan = replace(official_plan(), hardware=hardware, versions=versions, world=2)
    folder = write_run(root, plan=plan)
    log = EventLog(folder.gpus, attempt=0)
    log.write(
        TopologyEvent(
            indices=(0, 1), nvlinks=(18, 18), paths=("self", "nvlink", "nvlink", "self"),
            pcie_gens=(5, 5), pcie_widths=(16, 16), pcie_max_widths=(16, 16),
        )
    )  # fmt: skip
    log.close()
    env = leaderboard.make_entry(score.compute(folder, root)).env

    assert (env.vbios, env.ecc, env.mig) == ("96.00.B1", True, False)
    assert (env.cuda, env.cudnn, env.nccl) == ("13.0", "9.15.1", "2.28.9")
    assert env.topology == "2 GPU(s), joined by nvlink, 18 NVLinks each"


def test_finish_enters_a_run_once_when_it_is_scored_again(root: DataRoot) -> None:
    folder = write_run(root)
    first = leaderboard.finish(folder, root)
    content = root.board.read_bytes()
    assert leaderboard.finish(folder, root) == first
    assert root.board.read_bytes() == content


def test_finish_uses_the_tracked_board_when_the_task_is_official(
    root: DataRoot, repo_board: Path
) -> None:
    source = "hf:karpathy/fineweb-edu-100b-shuffle"
    for split in ("train", "val"):
        write_dataset(root.path / "speedrun" / split, source=source)
    write_bundle_record(root, is_official=True)
    folder = write_run(root, plan=official_plan(), steps=256)
    event = leaderboard.finish(folder, root, repo_board=repo_board)
    assert event.board == str(repo_board)
    assert not root.board.exists()
    cohort = leaderboard.load(repo_board).entries[0].cohort
    assert (cohort.machine, cohort.devices, cohort.python) == ("NVIDIA H200", 1, None)


def write_bundle_record(root: DataRoot, *, is_official: bool) -> None:
    record = BundleRecord(
        is_official=is_official, differs=("core.yaml",), source="x", archive_sha256="y", files={}
    )
    write_record(root.bundle(official_plan().data.bundle), record)


@pytest.mark.parametrize("is_official", [True, False, None])
def test_finish_uses_the_tracked_board_only_when_the_bundle_is_recorded_as_official(
    root: DataRoot, repo_board: Path, is_official: bool | None
) -> None:
    source = "hf:karpathy/fineweb-edu-100b-shuffle"
    for split in ("train", "val"):
        write_dataset(root.path / "speedrun" / split, source=source)
    plan = official_plan()
    if is_official is not None:
        write_bundle_record(root, is_official=is_official)
    event = leaderboard.finish(write_run(root, plan=plan, steps=256), root, repo_board=repo_board)
    assert event.board == str(repo_board if is_official else root.board)


def test_finish_marks_the_cohort_custom_when_official_rules_are_not_kept(
    root: DataRoot, repo_board: Path
) -> None:
    folder = write_run(root, plan=official_plan(), steps=256)  # data of another source
    event = leaderboard.finish(folder, root, repo_board=repo_board)
    assert event.board == str(root.board)
    assert leaderboard.load(root.board).entries[0].cohort.rules == "custom"
    assert not repo_board.exists()


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({OutcomeEvent: {"status": "missed", "loss": None}}, "missed", "did not reach"),
        ({OutcomeEvent: {"status": "diverged", "loss": None}}, "diverged", "did not reach"),
        ({ValEvent: {"loss": math.nan}}, "done", "did not reach"),
        ({ValEvent: {"loss": 1.0}}, "done", "loss: the outcome says"),
        ({OutcomeEvent: {"tokens": 7}}, "done", "tokens: got 7"),
        ({OutcomeEvent: {"train_s": 1.0}}, "done", "time: validation at 60.0 s"),
        ({OutcomeEvent: {"train_s": math.nan}}, "done", "time: "),
        ({OutcomeEvent: {"wall_s": 2.0}}, "done", "time: "),
        ({StepEvent: {"train_s": 0.5}}, "done", "clock: the step events run backwards"),
        ({StepEvent: {"tokens": 5}}, "done", "tokens: got 5 at step 200"),
        ({CoreEvent: {"score": 0.9}}, "done", "CORE: got 0.9"),
        ({CoreEvent: {"tasks": 22}}, "done", "expected 22"),
        ({CoreTaskEvent: {"centered": math.nan}}, "done", "CORE: got 0.25"),
    ],
)
def test_finish_writes_only_the_result_when_the_run_may_not_be_entered(
    root: DataRoot, changes: Any, status: str, reason: str
) -> None:
    folder = write_run(root, changes=changes)
    event = leaderboard.finish(folder, root)
    assert event.status == status
    assert event.entry_id is None
    assert reason in event.reason
    assert not root.board.exists()
    assert json.loads(folder.result.read_text())["reason"] == event.reason


def test_finish_writes_only_the_result_when_core_failed(root: DataRoot) -> None:
    events = [
        event
        for event in events_of(make_plan())
        if not isinstance(event, CoreEvent | CoreTaskEvent)
    ]
    folder = write_run(root, events=events, changes={OutcomeEvent: {"status": "core-failed"}})
    event = leaderboard.finish(folder, root)
    assert event.reached
    assert event.core is None
    assert event.reason == "the run has no CORE score"


def test_finish_reports_a_failure_when_the_trainer_died_without_a_word(root: DataRoot) -> None:
    events = events_of(make_plan())[:-1]
    event = leaderboard.finish(write_run(root, events=events), root)
    assert (event.reached, event.status, event.step) == (False, "failed", 200)


def test_finish_scores_the_attempt_that_counts_when_the_run_was_resumed(root: DataRoot) -> None:
    plan = make_plan()
    events = events_of(plan)
    folder = write_run(root, plan=plan, events=[events[0], *events_of(plan, loss=2.5)[1:3]])
    log = EventLog(folder.train, attempt=1)
    log.write(PhaseEvent(phase="training", resume_step=0))
    for event in events[1:]:
        log.write(event)
    log.close()
    event = leaderboard.finish(folder, root)
    assert event.entry_id
    assert json.loads(folder.result.read_text())["attempts"] == 2


def test_finish_says_failed_when_only_an_older_attempt_reported(root: DataRoot) -> None:
    folder = write_run(root)
    log = EventLog(folder.train, attempt=1)
    log.write(PhaseEvent(phase="training", resume_step=100))
    log.close()
    event = leaderboard.finish(folder, root)
    assert (event.reached, event.status) == (False, "failed")


@pytest.mark.parametrize(
    ("hardware", "reason"),
    [
        (Hardware(cpu="Some CPU", cores=2, is_fake=True), "not there"),
        (Hardware(cpu="", cores=2), "not known by name"),
    ],
)
def test_finish_enters_nothing_when_the_machine_is_fake_or_unknown(
    root: DataRoot, hardware: Hardware, reason: str
) -> None:
    event = leaderboard.finish(write_run(root, plan=make_plan(hardware=hardware)), root)
    assert event.entry_id is None
    assert reason in event.reason


def test_finish_enters_nothing_when_the_data_cannot_be_identified(root: DataRoot) -> None:
    folder = write_run(root)
    (root.dataset(make_plan().data.data_path) / "val" / "manifest.json").unlink()
    assert "cannot be identified" in leaderboard.finish(folder, root).reason


def test_finish_refuses_when_the_folder_has_no_plan(root: DataRoot) -> None:
    with pytest.raises(RunError, match="no plan"):
        leaderboard.finish(root.run(RUN_ID), root)


def test_finish_keeps_the_score_when_the_board_is_broken(root: DataRoot) -> None:
    folder = write_run(root)
    root.board.write_text("{ broken")
    event = leaderboard.finish(folder, root)
    assert event.reached
    assert event.entry_id is None
    assert "is not JSON" in event.reason
    assert root.board.read_text() == "{ broken"
    assert json.loads(folder.result.read_text())["train_s"] == 60.0


def test_entry_is_the_same_when_the_folder_is_scored_elsewhere(root: DataRoot) -> None:
    folder = write_run(root)
    first = leaderboard.make_entry(score.compute(folder, root))
    assert leaderboard.make_entry(score.compute(folder, root)) == first


# ------------------------------------------------------------------------------------- cohorts


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": Hardware(cpu="Some CPU", cores=4)},
        {"hardware": Hardware(cpu="Other CPU", cores=2)},
        {"versions": {"python": "3.12.1"}},
        {"dtype": "bf16"},
        {"target": replace(make_plan().target, target_loss=2.9)},
        {"validation": replace(make_plan().validation, windows=8)},
    ],
)
def test_cohort_differs_when_times_cannot_be_compared(root: DataRoot, changes: Any) -> None:
    plan = make_plan()
    ours = score.compute(write_run(root, plan=plan), root)
    theirs = score.compute(
        write_run(root, plan=make_plan("pocket-20260101-000000-0001", **changes)), root
    )
    assert ours.cohort != theirs.cohort
    assert ours.cohort.label != theirs.cohort.label or "validation" in changes


def test_cohort_differs_when_the_validation_text_does(root: DataRoot) -> None:
    folder = write_run(root)
    before = score.compute(folder, root).cohort
    write_dataset(root.dataset(make_plan().data.data_path) / "val", sha256="9" * 64)
    assert score.compute(folder, root).cohort != before


def test_cohort_is_shared_when_only_seed_and_steps_differ(root: DataRoot) -> None:
    plan = make_plan()
    other = make_plan("pocket-20260101-000000-0001", train=replace(plan.train, seed=5, steps=9000))
    first = score.compute(write_run(root, plan=plan), root)
    assert score.compute(write_run(root, plan=other), root).cohort == first.cohort


# --------------------------------------------------------------------------------------- ranks

times = st.floats(min_value=1e-3, max_value=1e6)


@given(runs=st.lists(st.tuples(times, st.integers(1, 9), st.sampled_from("ab")), max_size=12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_standings_rank_by_time_then_steps_within_a_cohort(entry: Entry, runs: Any) -> None:
    entries = tuple(
        replace(
            another(entry, i, train_s=train_s, step=step),
            cohort=replace(entry.cohort, machine=machine),
        )
        for i, (train_s, step, machine) in enumerate(runs)
    )
    standings = leaderboard.standings(Board.of(Path("x"), entries))
    placed = [row.entry for standing in standings for row in standing.rows]
    assert sorted(e.result.run_id for e in placed) == sorted(e.result.run_id for e in entries)
    for standing in standings:
        keys = [(row.entry.result.train_s, row.entry.result.step) for row in standing.rows]
        assert keys == sorted(keys)
        assert [row.rank for row in standing.rows] == [
            1 + sum(other < key for other in keys) for key in keys
        ]
        assert {row.entry.cohort for row in standing.rows} == {standing.cohort}


# ------------------------------------------------------------------------------ the file itself


def test_load_gives_an_empty_board_when_there_is_none(tmp_path: Path) -> None:
    board = leaderboard.load(tmp_path / "none.json")
    assert (board.entries, board.published) == ((), ())


def test_repository_board_holds_the_published_rows_marked_as_such() -> None:
    board = leaderboard.load(REPO_ROOT / "LEADERBOARD.json")
    assert not leaderboard.verify(board)
    assert len(board.published) == 5
    for row in board.published:
        assert row.status == leaderboard.PUBLISHED_MARK
        assert row.tokens == row.step * 524_288
        assert row.loss <= row.target


VALID = {"format": 2, "entries": [], "published": [], "head": None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"format": 2',
        json.dumps({**VALID, "format": 3}),
        json.dumps({**VALID, "format": 1}),
        json.dumps({**VALID, "head": "0" * 64}),
        '{"format":2,"entries":[\n{},\n],"published":[\n],"head":null}',
        '{"format":2,"entries":[\n{}\n{}\n],"published":[\n],"head":null}',
        json.dumps({**VALID, "more": 1}),
        json.dumps({"entries": [], "published": []}),
        json.dumps({**VALID, "entries": {}}),
        json.dumps({**VALID, "entries": [1]}),
        json.dumps({**VALID, "entries": [{}]}),
        json.dumps({**VALID, "published": [{"source": "x"}]}),
        "[" * 100_000,
        '{"format": 2, "entries": [], "published": NaN, "head": null}',
        "\xff\xfe",
    ],
)
def test_append_leaves_the_file_alone_when_it_is_not_a_board(
    tmp_path: Path, entry: Entry, text: str
) -> None:
    path = tmp_path / "LEADERBOARD.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BoardError, match="left as it is"):
        leaderboard.append(path, entry)
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("result", "train_s"), "fast"),
        (("result", "train_s"), None),
        (("core", "tasks"), {"copy": 1}),
        (("selection", "stop_rule"), "best"),
        (("status",), "approved"),
        (("schema_version",), 3),
        (("result", "surprise"), 1),
        (("cohort", "devices"), 1.5),
        (("entry_id",), 7),
    ],
)
def test_load_refuses_an_entry_of_another_shape(
    tmp_path: Path, entry: Entry, place: tuple[str, ...], value: object
) -> None:
    raw = asdict(entry)
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "LEADERBOARD.json"
    path.write_text(json.dumps({**VALID, "entries": [raw]}))
    with pytest.raises(BoardError):
        leaderboard.load(path)


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity", "1" + "0" * 400])
def test_load_refuses_a_number_that_is_none(tmp_path: Path, entry: Entry, number: str) -> None:
    path = tmp_path / "LEADERBOARD.json"
    leaderboard.append(path, another(entry, 0, train_s=123.25))
    assert "123.25" in path.read_text()
    path.write_text(path.read_text().replace("123.25", number))
    with pytest.raises(BoardError):
        leaderboard.load(path)


@given(
    train_s=times,
    text=st.text(max_size=20),
    core=st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
def test_append_and_load_give_the_entry_back(
    tmp_path: Path, entry: Entry, train_s: float, text: str, core: float | None
) -> None:
    path = tmp_path / "LEADERBOARD.json"
    path.unlink(missing_ok=True)
    added = another(entry, 0, train_s=train_s, preset=text, core=core)
    leaderboard.append(path, added)
    board = leaderboard.load(path)
    assert board.entries == (added,)
    assert not leaderboard.verify(board)


def test_append_keeps_published_rows_and_earlier_entries(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / "LEADERBOARD.json"
    path.write_bytes((REPO_ROOT / "LEADERBOARD.json").read_bytes())
    before = leaderboard.load(path)
    for number in range(3):
        leaderboard.append(path, another(entry, number))
    after = leaderboard.load(path)
    assert after.published == before.published
    assert [e.result.run_id for e in after.entries[-3:]] == ["pocket-0", "pocket-1", "pocket-2"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_s": 1.0}, "changed after"),
        ({"loss": 0.1}, "changed after"),
        ({"seed": 9}, "changed after"),
    ],
)
def test_verify_finds_an_entry_that_was_edited(entry: Entry, change: Any, problem: str) -> None:
    edited = replace(entry, result=replace(entry.result, **change))
    problems = leaderboard.verify(Board.of(Path("x"), (edited,)))
    assert len(problems) == 1
    assert problem in problems[0]


def test_verify_finds_what_cannot_be_when_the_id_is_right(entry: Entry) -> None:
    missed = another(entry, 1, loss=9.0)
    moved = replace(entry, cohort=replace(entry.cohort, dtype="bf16"))
    board = chained(entry, entry, missed, moved)
    text = "\n".join(leaderboard.verify(board))
    assert "entered twice" in text
    assert "did not reach" in text
    assert "not its own" in text


def test_append_refuses_when_the_file_is_read_only(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / "LEADERBOARD.json"
    leaderboard.append(path, entry)
    content = path.read_bytes()
    path.chmod(0o444)
    with pytest.raises(BoardError, match="read-only"):
        leaderboard.append(path, another(entry, 1))
    assert path.read_bytes() == content


def test_append_writes_through_a_link(tmp_path: Path, entry: Entry) -> None:
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real.json")
    leaderboard.append(link, entry)
    assert link.is_symlink()
    assert leaderboard.load(tmp_path / "real.json").entries == (entry,)


# ------------------------------------------------------------------------- other processes

WRITER = textwrap.dedent(
    """
    import json, resource, sys
    from dataclasses import replace
    from pathlib import Path
    from harness import leaderboard
    from harness.errors import BoardError

    source, path, name, count, limit, first = sys.argv[1:]
    entry = leaderboard.load(Path(source)).entries[0]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    for number in range(int(first), int(count)):
        new = replace(entry, result=replace(entry.result, run_id=f"{name}-{number}"))
        try:
            leaderboard.append(Path(path), new)
        except BoardError as error:
            sys.exit(f"refused: {error}")
        print(number, flush=True)
    """
)


def start_writer(
    source: Path, path: Path, *, name: str, count: int, limit: int = 0, first: int = 0
) -> subprocess.Popen[str]:
    arguments = [str(source), str(path), name, str(count), str(limit), str(first)]
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def source(tmp_path: Path, entry: Entry) -> Path:
    path = tmp_path / "source.json"
    leaderboard.append(path, entry)
    return path


def test_append_loses_nothing_when_two_processes_write_and_others_are_killed(
    tmp_path: Path, source: Path
) -> None:
    path = tmp_path / "LEADERBOARD.json"
    writers = [start_writer(source, path, name=name, count=40) for name in ("one", "two")]
    reported = 0
    for victim in range(4):
        process = start_writer(source, path, name=f"victim{victim}", count=1000)
        assert process.stdout is not None
        for _ in range(victim + 1):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.communicate(timeout=60)[0].splitlines()
        reported += victim + 1 + len(rest)
    for writer in writers:
        output, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors
        assert len(output.split()) == 40
    board = leaderboard.load(path)
    names = [e.result.run_id for e in board.entries]
    assert not leaderboard.verify(board)
    assert {f"{name}-{i}" for name in ("one", "two") for i in range(40)} <= set(names)
    # A victim may have died between its last write and the word about it, never the other way.
    num_victims = sum(name.startswith("victim") for name in names)
    assert reported <= num_victims <= reported + 4
    leaderboard.append(path, leaderboard.load(source).entries[0])
    assert sorted(os.listdir(tmp_path)) == sorted(
        [".LEADERBOARD.json.lock", "LEADERBOARD.json", ".source.json.lock", "source.json"]
    )


@pytest.mark.soak
def test_append_loses_nothing_in_a_thousand_appends_with_random_kills(
    tmp_path: Path, source: Path
) -> None:
    """Two writers of 500 entries each; a writer that was killed goes on where it was."""
    path, draw, kills = tmp_path / "LEADERBOARD.json", random.Random(1), 0
    lanes = dict.fromkeys(("one", "two"), 0)
    writers: dict[str, subprocess.Popen[str]] = {}
    while any(done < 500 for done in lanes.values()):
        for name, done in lanes.items():
            if done < 500 and name not in writers:
                writers[name] = start_writer(source, path, name=name, count=500, first=done)
        time.sleep(draw.uniform(0.3, 2.0))
        name = draw.choice(sorted(writers))
        writers[name].send_signal(signal.SIGKILL)
        for name in [each for each in writers if writers[each].poll() is not None]:
            output, errors = writers.pop(name).communicate(timeout=60)
            assert not errors, errors
            told = [int(line) for line in output.splitlines()]
            lanes[name] = max([lanes[name], *(number + 1 for number in told)])
            kills += 1
    board = leaderboard.load(path)
    assert not leaderboard.verify(board)
    names = sorted(entry.result.run_id for entry in board.entries)
    assert names == sorted(f"{name}-{i}" for name in lanes for i in range(500))
    assert kills >= 10


def test_append_loses_nothing_when_the_disk_is_full(tmp_path: Path, source: Path) -> None:
    content = source.read_bytes()
    # A limit on file size makes the write fail half-way, as a full disk does.
    writer = start_writer(source, source, name="new", count=1, limit=len(content) + 100)
    _, errors = writer.communicate(timeout=60)
    assert "refused: cannot write" in errors
    assert "The board is as it was" in errors
    assert source.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == [".source.json.lock", "source.json"]


# ------------------------------------------------------------------------------------- CORE


def test_result_tells_interval_crops_and_the_score_without_boolq(root: DataRoot) -> None:
    told = {"ci95": (0.2, 0.3), "without_boolq": 0.26, "cropped": 7, "empty_regions": 2}
    folder = write_run(root, changes={CoreEvent: told})
    leaderboard.finish(folder, root)
    written = json.loads(folder.result.read_text())
    assert (written["core_low"], written["core_high"]) == (0.2, 0.3)
    assert written["core_without_boolq"] == 0.26
    assert (written["core_cropped"], written["core_empty_regions"]) == (7, 2)
    assert not leaderboard.verify(leaderboard.load(root.board))


def test_interim_scores_enter_nothing(root: DataRoot) -> None:
    plan = make_plan()
    final = events_of(plan)
    interim = [
        replace(event, step=100, is_interim=True, **changes)
        for event in final
        for kind, changes in ((CoreTaskEvent, {"acc": 0.9}), (CoreEvent, {"score": 0.9}))
        if isinstance(event, kind)
    ]
    folder = write_run(root, plan=plan, events=[*final[:3], *interim, *final[3:]])
    leaderboard.finish(folder, root)
    written = json.loads(folder.result.read_text())
    assert written["core"] == pytest.approx(0.25)
    assert written["core_tasks"]["copy"]["acc"] == 0.75
    assert written["reason"] == ""


def test_run_with_interim_scores_alone_has_no_core(root: DataRoot) -> None:
    plan = make_plan()
    events = [
        replace(event, step=100, is_interim=True)
        if isinstance(event, CoreEvent | CoreTaskEvent)
        else event
        for event in events_of(plan)
    ]
    event = leaderboard.finish(write_run(root, plan=plan, events=events), root)
    assert event.core is None
    assert event.entry_id is None
    assert "no CORE score" in event.reason
