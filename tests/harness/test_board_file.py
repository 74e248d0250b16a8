"""The file of a scoreboard: what its chain finds, what may be added, its schema, format 1."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import board_file, leaderboard, score
from harness.board_file import Board
from harness.entry import Check, Entry, StatusChange, Verification, sealed, to_line
from harness.entry_schema import entry_schema
from harness.errors import BoardError
from nmoe.paths import REPO_ROOT, DataRoot
from tests.harness.finished_run import write_run

OLD_BOARD = Path(__file__).with_name("board_format_1.json")
UTC = "2026-01-02T00:00:00+00:00"


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    root = DataRoot(path=tmp_path_factory.mktemp("entry"), reason="test")
    return leaderboard.make_entry(score.compute(write_run(root), root))


def another(entry: Entry, number: int) -> Entry:
    return replace(entry, result=replace(entry.result, run_id=f"pocket-{number}"))


@pytest.fixture
def path(tmp_path: Path, entry: Entry) -> Path:
    """A board of five runs."""
    path = tmp_path / "LEADERBOARD.json"
    for number in range(5):
        leaderboard.append(path, another(entry, number))
    return path


def verified(entry: Entry) -> Entry:
    """A later record of a run, after a verification that passed."""
    return replace(
        entry,
        status="verified",
        status_history=(
            *entry.status_history,
            StatusChange(status="verified", utc=UTC, reason="all checks passed"),
        ),
        verification=Verification(
            checks=(Check(id="V1.tokens", verdict="pass", reason="200 steps"),), utc=UTC
        ),
    )


# ----------------------------------------------------------------------------------- tampering


def edit(change: Callable[[list[str]], object]) -> Callable[[Path], None]:
    """A change to the lines of the entries, with the commas put right again."""

    def apply(path: Path) -> None:
        lines = path.read_text().split("\n")
        end = lines.index('],"published":[')
        entries = [line.removesuffix(",") for line in lines[1:end]]
        change(entries)
        entries = [*(f"{line}," for line in entries[:-1]), *entries[-1:]]
        path.write_text("\n".join([lines[0], *entries, *lines[end:]]))

    return apply


def faster(entries: list[str]) -> None:
    assert '"train_s":60.0' in entries[2]
    entries[2] = entries[2].replace('"train_s":60.0', '"train_s":59.0')


def forge(entries: list[str]) -> None:
    """An edit with a new id, which the links behind it do not know."""
    raw: dict[str, Any] = json.loads(entries[2])
    raw["result"]["train_s"] = 1.0
    made = board_file.build(Entry, raw, where="entry")
    entries[2] = to_line(sealed(made, prev=made.prev_entry_id))


def repeat(entries: list[str]) -> None:
    entries.insert(3, entries[3])


def reformat(path: Path) -> None:
    """The same content in another layout, with one number changed."""
    raw = json.loads(path.read_text())
    raw["entries"][1]["result"]["loss"] = 0.5
    path.write_text(json.dumps(raw, indent=2))


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (edit(faster), "entry 3: it was changed"),
        (edit(forge), "entry 4: the one before it was"),
        (edit(lambda entries: entries.pop(2)), "entry 3: the one before it was removed"),
        (edit(lambda entries: entries.pop(0)), "entry 1: the one before it was removed"),
        (edit(lambda entries: entries.pop()), "the file says it was"),
        (edit(lambda entries: entries.clear()), None),
        (edit(lambda entries: entries.reverse()), "moved"),
        (edit(repeat), "entry 5: the one before it was"),
        (reformat, "entry 2: it was changed"),
    ],
)
def test_verify_finds_what_was_done_to_the_file(
    path: Path, tamper: Callable[[Path], None], problem: str | None
) -> None:
    assert not leaderboard.verify(leaderboard.load(path))
    tamper(path)
    if problem is None:
        with pytest.raises(BoardError, match="the head"):
            leaderboard.load(path)
        return
    problems = leaderboard.verify(leaderboard.load(path))
    assert any(problem in each for each in problems), problems
    assert leaderboard.verify_chain(leaderboard.load(path))


def test_verify_finds_nothing_when_only_the_layout_changed(path: Path) -> None:
    entries = leaderboard.load(path).entries
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    board = leaderboard.load(path)
    assert board.entries == entries
    assert not leaderboard.verify(board)


def test_removed_names_the_run_whose_entry_is_gone(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    folder = write_run(root)
    leaderboard.finish(folder, root)
    assert not leaderboard.removed(leaderboard.load(root.board), root)
    board_file.write(Board(path=root.board))
    (problem,) = leaderboard.removed(leaderboard.load(root.board), root)
    assert folder.run_id in problem


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_change_of_a_byte_goes_unseen(
    tmp_path_factory: pytest.TempPathFactory, entry: Entry, seed: int
) -> None:
    path = tmp_path_factory.mktemp("byte") / "LEADERBOARD.json"
    for number in range(2):
        leaderboard.append(path, another(entry, number))
    before = leaderboard.load(path)
    content, draw = bytearray(path.read_bytes()), random.Random(seed)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    try:
        after = leaderboard.load(path)
        problems = leaderboard.verify(after)
    except BoardError:
        return
    assert problems or after.lines == before.lines


# ------------------------------------------------------------------------------- later records


def test_amend_adds_a_record_and_the_last_one_counts(path: Path) -> None:
    first = leaderboard.load(path).of_run("pocket-2")
    board_file.amend(path, "pocket-2", verified)
    board = leaderboard.load(path)
    assert len(board.entries) == 6
    assert board.of_run("pocket-2") == board.entries[-1] != first
    assert [e.status for e in board.current] == [
        *("provisional", "provisional", "verified", "provisional", "provisional")
    ]
    assert not leaderboard.verify(board)
    (standing,) = leaderboard.standings(board)
    assert len(standing.rows) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: replace(entry, result=replace(entry.result, train_s=1.0)),
        lambda entry: replace(entry, cohort=replace(entry.cohort, machine="other")),
        lambda entry: replace(entry, selection=replace(entry.selection, evals_seen=1)),
    ],
)
def test_amend_refuses_to_change_what_a_run_achieved(path: Path, change: Any) -> None:
    content = path.read_bytes()
    with pytest.raises(BoardError, match="may not change its"):
        board_file.amend(path, "pocket-2", change)
    assert path.read_bytes() == content


def test_verify_finds_a_later_record_that_changes_what_a_run_achieved(path: Path) -> None:
    board = leaderboard.load(path)
    better = verified(replace(board.entries[1], result=replace(board.entries[1].result, step=1)))
    chain = [*board.entries, sealed(better, prev=board.head)]
    (problem,) = leaderboard.verify(Board.of(path, chain))
    assert problem == "pocket-1: a later record changes its result"


def test_amend_refuses_a_run_that_has_no_entry(path: Path) -> None:
    with pytest.raises(BoardError, match="no entry of run pocket-9"):
        board_file.amend(path, "pocket-9", verified)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"status": "verified"}, "not the last of its history"),
        (
            {"status": "verified", "status_history": "verified"},
            "without a verification that passed",
        ),
        (
            {"status": "replicated", "status_history": "replicated"},
            "fewer than 3 repeats that finished",
        ),
    ],
)
def test_verify_finds_a_status_that_nothing_supports(
    entry: Entry, changes: dict[str, Any], problem: str
) -> None:
    if "status_history" in changes:
        change = StatusChange(status=changes["status"], utc=UTC, reason="because")
        changes = changes | {"status_history": (*entry.status_history, change)}
    forged = sealed(replace(entry, **changes), prev=None)
    problems = leaderboard.verify(Board.of(Path("x"), [forged]))
    assert any(problem in each for each in problems), problems


# --------------------------------------------------------------------------------------- schema


def complaints(schema: dict[str, Any], value: Any, place: str = "") -> list[str]:
    """What of the JSON Schema a value breaks, as far as the schema of entries uses it."""
    kinds = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
    if "const" in schema:
        return [] if value == schema["const"] else [f"{place}: not {schema['const']}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{place}: none of {schema['enum']}"]
    if "anyOf" in schema:
        found = [complaints(each, value, place) for each in schema["anyOf"]]
        return [] if not all(found) else found[0]
    kind = schema["type"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in ("number", "integer"):
        holds = is_number and (kind == "number" or isinstance(value, int))
        return [] if holds else [f"{place}: no {kind}"]
    if not isinstance(value, kinds[kind]):
        return [f"{place}: no {kind}"]
    if kind == "array":
        return [p for i, v in enumerate(value) for p in complaints(schema["items"], v, f"{i}")]
    if kind != "object":
        return []
    known = schema.get("properties", {})
    rest = schema.get("additionalProperties")
    problems = [f"{place}: no {name}" for name in schema.get("required", ()) if name not in value]
    for name, item in value.items():
        if name in known or rest:
            problems += complaints(known.get(name, rest), item, f"{place}.{name}")
        else:
            problems.append(f"{place}: unknown {name}")
    return problems


def test_schema_in_the_repository_is_that_of_the_code() -> None:
    written = json.loads((REPO_ROOT / "LEADERBOARD.schema.json").read_text())
    assert written == entry_schema(), "Run: python -m harness.entry_schema"


def test_entries_follow_the_schema_and_edits_do_not(path: Path) -> None:
    board_file.amend(path, "pocket-2", verified)
    for raw in json.loads(path.read_text())["entries"]:
        assert complaints(entry_schema(), raw) == []
        for section in ("result", "cohort", "core"):
            name = next(iter(raw[section]))
            assert complaints(entry_schema(), raw | {section: {**raw[section], name: []}})
            assert complaints(entry_schema(), raw | {section: {**raw[section], "more": 1}})
        assert complaints(entry_schema(), {k: v for k, v in raw.items() if k != "timing"})


def test_what_the_files_do_not_tell_is_null(entry: Entry) -> None:
    assert entry.telemetry is None
    assert entry.result.energy_j is None
    assert entry.result.mfu is None
    assert (entry.env.cuda, entry.env.ecc, entry.env.power_limit_w) == (None, None, None)
    assert entry.artifacts.checkpoint_sha is None  # this run has none
    assert entry.model.params_expert == 196_608


# ------------------------------------------------------------------------------------- format 1


def test_board_of_format_1_is_migrated_and_keeps_what_it_told(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / "LEADERBOARD.json"
    path.write_bytes(OLD_BOARD.read_bytes())
    old = json.loads(OLD_BOARD.read_text())["entries"][0]
    leaderboard.append(path, another(entry, 1))
    assert json.loads(path.read_text())["format"] == 2
    board = leaderboard.load(path)
    migrated = asdict(board.entries[0])
    assert not leaderboard.verify(board)
    for name in ("run_id", "train_s", "loss", "step", "tokens", "seed", "core"):
        assert migrated["result"][name] == old["result"][name]
    assert migrated["core"]["tasks"] == old["result"]["core_tasks"]
    assert migrated["code"]["git_commit"] == old["result"]["digests"]["commit"]
    assert migrated["env"]["torch_version"] == old["result"]["versions"]["torch"]
    assert migrated["cohort"] == old["cohort"]
    assert migrated["selection"]["evals_seen"] is None
    assert old["entry_id"] in migrated["status_history"][0]["reason"]


def test_entry_of_format_1_that_was_edited_is_not_migrated(tmp_path: Path, entry: Entry) -> None:
    path = tmp_path / "LEADERBOARD.json"
    raw = json.loads(OLD_BOARD.read_text())
    raw["entries"][0]["result"]["train_s"] = 1.0
    path.write_text(json.dumps(raw))
    content = path.read_bytes()
    with pytest.raises(BoardError, match="changed after it was made"):
        leaderboard.append(path, another(entry, 1))
    assert path.read_bytes() == content
