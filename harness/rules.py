"""The rules of the scoreboards as data: what an official task is, and what of it a run broke.

`rules.toml` beside this file is the only place that states a target, a digest or a parameter count.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from nmoe.config import ConfigError, Plan, build

UNMEASURED = "unmeasured"
BY_COHORT = "cohort"
FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """Parameters of a preset, in total and active for one token."""

    total: int
    active: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a run of this task is held to; digests are those of dataset manifests.

    `validate_every` is the finest spacing of validations in steps, `max_overlap` the share of the
    validation tokens that may stand in the training text, too. `sigma` is the spread of the
    final loss between seeds, None where only a cohort's own repeats can tell it.
    """

    is_official: bool
    target: float
    windows: int
    seq_len: int
    validate_every: int
    source: str
    train_data: str
    val_data: str
    max_overlap: float
    parameters: dict[str, Any]
    sigma: float | None = None

    @property
    def is_measured(self) -> bool:
        """Whether somebody measured the digests, or the cohort tells data apart."""
        return UNMEASURED not in (self.train_data, self.val_data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """What the clock of the score is, where it waits for the device, what it charges."""

    name: str
    sync_points: tuple[str, ...]
    included: tuple[str, ...]
    excluded: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All of rules.toml."""

    version: str
    clock: Clock
    tasks: dict[str, Any]


@cache
def current() -> Rules:
    """The rules of this version of the code; ConfigError when the file was broken."""
    return parse(FILE.read_text(encoding="utf-8"))


def parse(text: str) -> Rules:
    """Rules from TOML; ConfigError names what is unusable in it."""
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise ConfigError(f"{FILE.name}: cannot be read as TOML: {error}") from None
    rules = build(Rules, raw, where=FILE.name)
    tasks = {name: _task(name, table) for name, table in rules.tasks.items()}
    return replace(rules, tasks=tasks)


def task(name: str) -> Task | None:
    """The rules of a task; None for one that is nobody's but its own."""
    return cast("Task | None", current().tasks.get(name))


def is_measured(name: str) -> bool:
    """Whether entries of a task may become more than provisional."""
    found = task(name)
    return found is None or found.is_measured


def breaches(
    plan: Plan,
    *,
    data_source: str | None,
    train_data: str | None,
    val_data: str | None,
    val_tokens: int | None,
    params_total: int | None,
    params_active: int | None,
) -> tuple[str, ...]:
    """What of its task's rules a run broke; empty also for a task without rules.

    None is what the run did not tell, and then it broke the rule.
    """
    found = task(plan.data.task)
    if found is None:
        return ()
    declared = found.parameters.get(plan.preset)
    facts: Iterator[tuple[str, object, object, bool]] = iter(
        (
            _equal("target", plan.target.target_loss, found.target),
            _equal("validation windows", plan.validation.windows, found.windows),
            _equal("sequence length", plan.train.seq_len, found.seq_len),
            _equal("validated tokens", val_tokens, found.windows * found.seq_len),
            _equal("items a CORE task", plan.eval.cap or "all", "all"),
            (
                *("steps between validations", plan.validation.every),
                f"at least {found.validate_every}",
                plan.validation.every >= found.validate_every,
            ),
            ("source", data_source, found.source, found.source in (data_source or "")),
            _digest("training data", train_data, found.train_data),
            _digest("validation data", val_data, found.val_data),
            *_parameters(declared, params_total, params_active),
        )
    )
    return tuple(
        f"{name}: got {got}, expected {wanted}" for name, got, wanted, holds in facts if not holds
    )


def _equal(name: str, got: object, wanted: object) -> tuple[str, object, object, bool]:
    return name, got, wanted, got == wanted


def _digest(name: str, got: str | None, wanted: str) -> tuple[str, object, object, bool]:
    return name, got, wanted, wanted in (UNMEASURED, BY_COHORT, got)


def _parameters(
    declared: Declared | None, total: int | None, active: int | None
) -> list[tuple[str, object, object, bool]]:
    if declared is None:
        return []
    return [
        _equal("parameters", total, declared.total),
        _equal("active parameters", active, declared.active),
    ]


def _task(name: str, table: object) -> Task:
    made = build(Task, table, where=FILE.name, section=f"tasks.{name}")
    parameters = cast("Mapping[str, object]", made.parameters)
    declared = {
        preset: build(Declared, each, where=FILE.name, section=f"tasks.{name}.parameters.{preset}")
        for preset, each in parameters.items()
    }
    return replace(made, parameters=declared)
