"""Damaged entries, event files and rules: refused or found, never a crash, never believed.

The examples in the suite are few; `make soak` looks for ten minutes.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import board_file, consistency, leaderboard, rules, score
from harness.entry import canonical
from harness.errors import BoardError, RunError
from nmoe.config import ConfigError, read_config
from nmoe.events import EventError, decode
from nmoe.paths import REPO_ROOT, DataRoot, RunFolder
from tests.harness.finished_run import make_plan, write_run

SOAK_S = 200.0  # of each of the three kinds
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1 << 63, 10**400])
    | st.floats()
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
SEEDS = st.integers(0, 2**32)
FEW = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRoot, RunFolder]:
    """A data root with a finished run that is on its board."""
    root = DataRoot(path=tmp_path_factory.mktemp("fuzz"), reason="test")
    for number in range(3):
        folder = write_run(root, plan=make_plan(f"pocket-{number}"))
        leaderboard.finish(folder, root)
    return root, folder


def damage(value: Any, draw: random.Random, replacement: Any) -> Any:
    """The value with one thing in it replaced, dropped or doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        changed = dict(value)
        if draw.random() < 0.15:
            del changed[key]
        elif draw.random() < 0.1:
            changed[f"{key}x"] = replacement
        else:
            changed[key] = damage(value[key], draw, replacement)
        return changed
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], damage(value[at], draw, replacement), *value[at + 1 :]]
    return replacement


# ---------------------------------------------------------------------------------------- boards


def check_board(base: tuple[DataRoot, RunFolder], path: Path, seed: int, replacement: Any) -> None:
    """Damage one entry: as a careless hand does it, and as one that computes the hashes anew."""
    draw = random.Random(seed)
    text = base[0].board.read_text()
    before = leaderboard.load(base[0].board)
    raw = json.loads(text)
    at = draw.randrange(len(raw["entries"]))
    raw["entries"][at] = damage(raw["entries"][at], draw, replacement)
    path.write_text(json.dumps(raw))
    try:
        board = leaderboard.load(path)
        problems = leaderboard.verify(board)
    except BoardError:
        pass
    else:
        assert problems or board.entries == before.entries
    try:
        line = canonical({k: v for k, v in raw["entries"][at].items() if k != "entry_id"})
    except (ValueError, AttributeError):
        return
    lines = list(before.lines)
    digest = hashlib.sha256(line.encode()).hexdigest()
    lines[at] = f'{{"entry_id":"{digest}",{line[1:]}'
    forged = board_file.Board(path=path, lines=tuple(lines), head=before.head)
    board_file.write(forged)
    try:
        problems = leaderboard.verify(leaderboard.load(path))
    except BoardError:
        return
    assert problems or lines == list(before.lines)


@FEW
@given(seed=SEEDS, replacement=VALUES)
def test_damaged_entry_is_refused_or_found(
    base: tuple[DataRoot, RunFolder], tmp_path: Path, seed: int, replacement: Any
) -> None:
    check_board(base, tmp_path / "LEADERBOARD.json", seed, replacement)


# ---------------------------------------------------------------------------------------- events


def check_events(
    base: tuple[DataRoot, RunFolder], place: Path, seed: int, replacement: Any
) -> None:
    """Damage lines of the trainer's events: every reader survives, and the ladder says so."""
    draw = random.Random(seed)
    root, source = base
    original = source.train.read_bytes()
    lines = original.split(b"\n")[:-1]
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind == 2:
            content = bytearray(lines[at])
            if content:
                content[draw.randrange(len(content))] = draw.randrange(256)
            lines[at] = bytes(content)
        else:
            try:
                raw = damage(json.loads(lines[at]), draw, replacement)
                lines[at] = json.dumps(raw).encode()
            except ValueError:
                continue
        if not lines:
            return
    damaged = b"\n".join(lines) + b"\n"
    folder = copy_run(source, place)
    folder.train.write_bytes(damaged)
    entry = leaderboard.load(root.board).of_run(source.run_id)
    assert entry is not None
    try:
        files = consistency.read(folder, root)
        checks = consistency.examine(files, entry)
        score.compute(folder, root)
    except RunError:
        return
    failed = [check.id for check in checks if check.verdict == "fail"]
    assert "V0.artifacts" in failed or damaged == original


def copy_run(source: RunFolder, place: Path) -> RunFolder:
    folder = RunFolder(root=place / source.run_id)
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.plan.write_bytes(source.plan.read_bytes())
    return folder


@FEW
@given(seed=SEEDS, replacement=VALUES)
def test_damaged_event_file_is_refused_or_found(
    base: tuple[DataRoot, RunFolder], tmp_path: Path, seed: int, replacement: Any
) -> None:
    check_events(base, tmp_path, seed, replacement)


@FEW
@given(raw=VALUES, name=st.sampled_from(["step", "val", "outcome", "gpu", "core_task", "phase"]))
def test_line_that_is_no_event_is_an_event_error(raw: Any, name: str) -> None:
    body = raw if isinstance(raw, dict) else {"step": raw}
    text = json.dumps({"v": 1, "s": 0, "t": 0.0, "a": 0, "k": name, **body})
    try:
        decode(text)
    except EventError:
        return


# ----------------------------------------------------------------------------------------- rules


def check_toml(text: str, parse: Callable[[str], object], seed: int, replacement: Any) -> None:
    """Damage a TOML file: it is read, or refused with a reason."""
    draw = random.Random(seed)
    lines = text.split("\n")
    at = draw.randrange(len(lines))
    kind = draw.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(at, lines[draw.randrange(len(lines))])
    elif kind == 2 and "=" in lines[at]:
        shown = json.dumps(replacement) if draw.random() < 0.7 else str(replacement)
        lines[at] = f"{lines[at].partition('=')[0]}= {shown}"
    else:
        where = draw.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:where] + chr(draw.randrange(1, 0x2FF)) + lines[at][where:]
    with suppress(ConfigError):
        parse("\n".join(lines))


@FEW
@given(seed=SEEDS, replacement=VALUES)
def test_damaged_rules_are_read_or_refused(seed: int, replacement: Any) -> None:
    check_toml(rules.FILE.read_text(), rules.parse, seed, replacement)


def read_preset(text: str, place: Path) -> object:
    path = place / "damaged.toml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return read_config(path)


@FEW
@given(seed=SEEDS, replacement=VALUES)
def test_damaged_preset_is_read_or_refused(tmp_path: Path, seed: int, replacement: Any) -> None:
    text = (REPO_ROOT / "configs" / "speedrun" / "super.toml").read_text()
    check_toml(text, lambda damaged: read_preset(damaged, tmp_path), seed, replacement)


# ------------------------------------------------------------------------------------------ soak


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["board", "events", "toml"])
def test_ten_minutes_of_damage(base: tuple[DataRoot, RunFolder], tmp_path: Path, kind: str) -> None:
    """The same properties over fresh seeds until the time is up; the seed is in the message."""
    checks: dict[str, Callable[[int, Any], None]] = {
        "board": lambda seed, value: check_board(base, tmp_path / "LEADERBOARD.json", seed, value),
        "events": lambda seed, value: check_events(base, tmp_path, seed, value),
        "toml": lambda seed, value: check_toml(rules.FILE.read_text(), rules.parse, seed, value),
    }
    end, tried = time.monotonic() + SOAK_S, 0

    @settings(
        max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(seed=SEEDS, replacement=VALUES)
    def look(seed: int, replacement: Any) -> None:
        checks[kind](seed, replacement)

    while time.monotonic() < end:
        look()
        tried += 200
    print(f"{kind}: {tried} damaged files")
    assert not leaderboard.verify(leaderboard.load(base[0].board))
