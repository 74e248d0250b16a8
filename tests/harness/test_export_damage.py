"""Damaged run folders: every export is made of what can be read, or refused with a reason."""

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness import curves, export, mllog, report, runs, svg
from harness.errors import HarnessError
from nmoe.paths import DataRoot, RunFolder
from tests.harness import mllog_rules
from tests.harness.test_fuzz import SEEDS, VALUES, damage
from tests.tui import races

FILES = ("plan.json", "train.jsonl", "supervisor.jsonl", "gpus.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataRoot, RunFolder]:
    """A short run with everything that a report tells of."""
    root = DataRoot(path=tmp_path_factory.mktemp("damaged"), reason="test")
    race = races.Race(root, races.RUN_ID)
    race.begin()
    race.train(*race.steps(20), seconds=0.1)
    race.attempt = 1
    race.train(races.ev.PhaseEvent(phase="compiling", resume_step=10))
    race.train(races.ev.PhaseEvent(phase="training"), *race.steps(130, start=100), seconds=0.1)
    race.samples()
    race.core(3)
    race.train(races._outcome("done", 130))
    race.supervisor(races.ev.ExitEvent(status="done", rc=0, tail=("last words",)))
    return root, race.folder


def damaged(source: RunFolder, place: Path, draw: random.Random, value: Any) -> RunFolder:
    """A copy of a run with up to six things wrong in its files."""
    folder = RunFolder(root=place / source.run_id)
    folder.root.mkdir(exist_ok=True)
    lines = {name: (source.root / name).read_bytes().split(b"\n") for name in FILES}
    # The plan is one object, not a line an object.
    lines["plan.json"] = [json.dumps(json.loads(source.plan.read_bytes())).encode()]
    for _ in range(draw.randint(1, 6)):
        found = lines[draw.choice(FILES)]
        at = draw.randrange(len(found))
        kind = draw.randrange(5)
        if kind == 0 and len(found) > 1:
            del found[at]
        elif kind == 1:
            found.insert(draw.randrange(len(found)), found[at])
        elif kind == 2 and found[at]:
            content = bytearray(found[at])
            content[draw.randrange(len(content))] = draw.randrange(256)
            found[at] = bytes(content)
        elif found[at]:
            try:
                found[at] = json.dumps(damage(json.loads(found[at]), draw, value)).encode()
            except ValueError:
                continue
    for name in FILES:
        (folder.root / name).write_bytes(b"\n".join(lines[name]))
    return folder


def exported(folder: RunFolder, root: DataRoot) -> Iterator[str]:
    """Every export of the folder, as far as none is refused."""
    found = export.gather(str(folder.root), root, repo_board=root.path / "none.json")
    yield report.html(found)
    ElementTree.fromstring(svg.document(curves.loss_chart(found.state)))
    yield curves.sheet(runs.load(folder)).csv()
    text = export.to_json(found)
    json.loads(text, parse_constant=pytest.fail)
    yield text
    text = mllog.text(found, root)
    mllog_rules.parse(text)
    yield text


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(seed=SEEDS, value=VALUES)
@example(seed=0, value=10**400)
@example(seed=0, value=float("nan"))
@example(seed=0, value=-(1 << 62))
def test_damaged_run_is_exported_or_refused(
    base: tuple[DataRoot, RunFolder], tmp_path: Path, seed: int, value: Any
) -> None:
    root, source = base
    folder = damaged(source, tmp_path, random.Random(seed), value)
    try:
        made = list(exported(folder, root))
    except HarnessError:
        return
    assert all(made)


@pytest.mark.parametrize(
    ("file", "kind", "change"),
    [
        ("plan.json", None, {"world": 0}),
        ("plan.json", None, {"world": -1}),
        ("train.jsonl", "val", {"seconds": 1e308}),
        ("train.jsonl", "val", {"seconds": -1e308}),
        ("train.jsonl", "val", {"step": (1 << 63) - 1, "tokens": (1 << 63) - 1}),
        ("train.jsonl", "core_task", {"step": None, "count": 0}),
        ("gpus.jsonl", "gpu", {"power_w": 1e308, "energy_j": -1e308}),
    ],
)
def test_value_that_cannot_be_is_exported_or_refused(
    base: tuple[DataRoot, RunFolder], tmp_path: Path, file: str, kind: str | None, change: Any
) -> None:
    root, source = base
    folder = damaged(source, tmp_path, random.Random(0), 0)
    for name in FILES:
        (folder.root / name).write_bytes((source.root / name).read_bytes())
    path = folder.root / file
    if kind is None:
        path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
    else:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | (change if line["k"] == kind else {}) for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with suppress(HarnessError):
        assert all(exported(folder, root))


def test_plan_with_a_date_that_is_none_and_routers_that_differ_are_exported(
    base: tuple[DataRoot, RunFolder], tmp_path: Path
) -> None:
    root, source = base
    folder = RunFolder(root=tmp_path / source.run_id)
    folder.root.mkdir()
    plan = json.loads(source.plan.read_bytes()) | {"created": "yesterday"}
    folder.plan.write_text(json.dumps(plan))
    lines = [json.loads(line) for line in source.train.read_text().splitlines()]
    lines = [line | ({"cv": [1.0]} if line["k"] == "router" else {}) for line in lines]
    folder.train.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(list(exported(folder, root))) == 4


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=400))
def test_noise_is_exported_or_refused(
    base: tuple[DataRoot, RunFolder], tmp_path: Path, noise: bytes
) -> None:
    folder = RunFolder(root=tmp_path / "noise")
    folder.root.mkdir(exist_ok=True)
    for name in FILES:
        (folder.root / name).write_bytes(noise)
    with suppress(HarnessError):
        assert all(exported(folder, base[0]))
