"""The rules as data: what the file says is true of the presets, and every rule is enforced."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import leaderboard, rules, score
from harness.rules import Declared
from nmoe.config import Config, ConfigError, Plan, read_config
from nmoe.events import OutcomeEvent, ValEvent
from nmoe.flops import count_parameters, padded_vocab
from nmoe.paths import REPO_ROOT, DataRoot
from tests.harness.finished_run import make_plan, write_dataset, write_run

PRESETS = sorted((REPO_ROOT / "configs" / "speedrun").glob("*.toml"))
VOCABULARY = {"byte": 257, "gpt2": 50257}


def facts(plan: Plan, **changes: Any) -> dict[str, Any]:
    """What a run of the plan tells that keeps all rules."""
    task = rules.task(plan.data.task)
    assert task is not None
    declared = task.parameters[plan.preset]
    kept = {
        "data_source": f"hf:{task.source}@1",
        "train_data": "a" * 64,
        "val_data": "b" * 64,
        "val_tokens": task.windows * task.seq_len,
        "params_total": declared.total,
        "params_active": declared.active,
    }
    return kept | changes


def preset(name: str) -> Config:
    return read_config(REPO_ROOT / "configs" / "speedrun" / f"{name}.toml")


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_declared_parameters_and_limits_are_those_of_the_presets(path: Path) -> None:
    config = read_config(path)
    task = rules.task(config.data.task)
    assert task is not None
    counted = count_parameters(config, padded_vocab(VOCABULARY[config.data.tokenizer]))
    declared = Declared(total=counted.total, active=counted.active)
    assert task.parameters[config.preset] == declared
    plan = make_plan(config=config, dtype="bf16")
    assert rules.breaches(plan, **facts(plan)) == ()


@pytest.mark.parametrize(
    ("section", "changes", "name"),
    [
        ("target", {"target_loss": 3.4}, "target"),
        ("validation", {"windows": 100}, "validation windows"),
        ("validation", {"every": 16}, "steps between validations"),
        ("train", {"seq_len": 1024}, "sequence length"),
        ("eval", {"cap": 10}, "items a CORE task"),
    ],
)
def test_plan_that_breaks_a_rule_is_named(section: str, changes: Any, name: str) -> None:
    config = preset("super")
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    plan = make_plan(config=config, dtype="bf16")
    (breach,) = rules.breaches(plan, **facts(plan))
    assert breach.startswith(f"{name}: got {next(iter(changes.values()))}, expected")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data_source": "hf:somebody/else@1"}, "source"),
        ({"data_source": None}, "source"),
        ({"val_tokens": 10}, "validated tokens"),
        ({"val_tokens": None}, "validated tokens"),
        ({"params_total": 1}, "parameters"),
        ({"params_active": None}, "active parameters"),
    ],
)
def test_run_that_breaks_a_rule_is_named(changes: Any, name: str) -> None:
    plan = make_plan(config=preset("super"), dtype="bf16")
    (breach,) = rules.breaches(plan, **facts(plan, **changes))
    assert breach.startswith(f"{name}: got ")


def test_measured_digest_is_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    text = rules.FILE.read_text().replace('val_data = "unmeasured"', f'val_data = "{"b" * 64}"')
    measured = rules.parse(text)
    monkeypatch.setattr(rules, "current", lambda: measured)
    plan = make_plan(config=preset("super"), dtype="bf16")
    assert rules.breaches(plan, **facts(plan)) == ()
    (breach,) = rules.breaches(plan, **facts(plan, val_data="c" * 64))
    assert breach.startswith("validation data: got ccc")


def test_official_digests_are_unmeasured_until_somebody_measures_them() -> None:
    assert not rules.is_measured("fineweb-edu")
    assert rules.is_measured("pocket")
    assert rules.is_measured("custom")


def test_run_that_breaks_a_rule_is_ranked_apart_and_the_entry_says_why(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    kept = write_run(root)
    broken = write_run(
        root, plan=make_plan("pocket-2"), changes={OutcomeEvent: {"params_total": 5}}
    )
    for folder in (kept, broken):
        leaderboard.finish(folder, root)
    ours, custom = leaderboard.standings(leaderboard.load(root.board))
    assert (ours.cohort.rules, custom.cohort.rules) == ("1", "custom")
    reason = custom.rows[0].entry.status_history[0].reason
    assert reason == "parameters: got 5, expected 304512"


def test_custom_data_is_a_task_of_its_own_on_the_board_of_the_data_root(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    config = preset("pocket")
    data = replace(config.data, task="custom", data_path="mine")
    write_dataset(root.dataset("mine") / "train", source="my notes")
    folder = write_run(root, plan=make_plan(config=replace(config, data=data)))
    event = leaderboard.finish(folder, root)
    assert event.board == str(root.board)
    cohort = leaderboard.load(root.board).entries[0].cohort
    assert (cohort.task, cohort.rules) == ("custom", "1")


def test_validation_of_fewer_tokens_than_planned_is_a_breach(tmp_path: Path) -> None:
    root = DataRoot(path=tmp_path, reason="test")
    scored = score.compute(write_run(root, changes={ValEvent: {"tokens": 7}}), root)
    assert scored.breaches == ("validated tokens: got 7, expected 32768",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("version =", "cannot be read as TOML"),
        (rules.FILE.read_text().replace("target = 3.28", f"target = 1{'0' * 400}"), "too large"),
        ('version = "1"', "missing section"),
        ("[tasks.x]\nofficial = true", "missing"),
        (rules.FILE.read_text().replace("target = 3.28", 'target = "low"'), "target"),
        (rules.FILE.read_text().replace("windows = 5120", ""), "tasks.fineweb-edu.windows"),
        (rules.FILE.read_text().replace(", active = 154_259_712", ""), "parameters.super.active"),
        (rules.FILE.read_text() + "[tasks.pocket.parameters.more]\n", "more"),
    ],
)
def test_file_that_holds_no_rules_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        rules.parse(text)
