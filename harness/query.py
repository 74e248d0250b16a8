"""Filters of lists of runs: `dtype:fp8 val<3.3 state=failed super`, every term must hold.

`:` asks for a part of a text, `=` and `!=` for all of it, `< <= > >=` for numbers; a bare word is
looked for in the run's id, preset, machine, state and note. A number that is not known holds for
nothing.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from harness.errors import UsageError
from harness.runs import Summary

Value: TypeAlias = str | float | None
_TERM = re.compile(r"([A-Za-z_]+)(<=|>=|!=|[:=<>])(.*)", re.DOTALL)
TEXTS: Mapping[str, Callable[[Summary], str]] = {
    "id": lambda run: run.run_id,
    "state": lambda run: run.status,
    "preset": lambda run: run.preset,
    "task": lambda run: run.task,
    "dtype": lambda run: run.dtype,
    "hw": lambda run: run.machine,
    "created": lambda run: run.created,
    "note": lambda run: run.note,
}
NUMBERS: Mapping[str, Callable[[Summary], float | None]] = {
    "step": lambda run: run.step,
    "tokens": lambda run: run.tokens,
    "loss": lambda run: run.loss,
    "val": lambda run: run.val,
    "best": lambda run: run.best_val,
    "target": lambda run: run.target,
    "attempt": lambda run: run.attempt + 1,
    "train_s": lambda run: run.train_s,
}
_COMPARED: Mapping[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One condition; a bare word has no field."""

    field: str
    operator: str
    text: str

    def holds(self, run: Summary) -> bool:
        """Whether a run fulfils it."""
        wanted = self.text.lower()
        if not self.field:
            told = (run.run_id, run.preset, run.machine, run.status, run.dtype, run.note)
            return any(wanted in value.lower() for value in told)
        if self.field in NUMBERS:
            value = NUMBERS[self.field](run)
            if value is None or math.isnan(value):
                return False
            return _COMPARED[self.operator](value, float(wanted))
        value = TEXTS[self.field](run).lower()
        match self.operator:
            case ":":
                return wanted in value
            case "=":
                return value == wanted
            case _:
                return value != wanted


def parse(text: str) -> tuple[Term, ...]:
    """The terms of a query; UsageError for an unknown field or an operator that does not fit."""
    return tuple(_term(word) for word in text.split())


def select(runs: Sequence[Summary], terms: Sequence[Term]) -> list[Summary]:
    """The runs for which every term holds, in their order."""
    return [run for run in runs if all(term.holds(run) for term in terms)]


def _term(word: str) -> Term:
    match = _TERM.fullmatch(word)
    if match is None:
        return Term(field="", operator="", text=word)
    field, operator, text = match[1].lower(), match[2], match[3]
    names = [*TEXTS, *NUMBERS]
    if field not in names:
        near = difflib.get_close_matches(field, names, n=1)
        hint = f'Did you mean "{near[0]}"?' if near else f"There are: {', '.join(names)}."
        raise UsageError(f'unknown field "{field}" in {word!r}', hint)
    if field in NUMBERS:
        if operator == ":":
            operator = "="
        try:
            float(text)
        except ValueError:
            raise UsageError(
                f"{word!r}: got {text!r}, expected a number", f"Write {field}<3.3, for example."
            ) from None
    elif operator not in (":", "=", "!="):
        raise UsageError(f"{word!r}: {field} is a text", f"Write {field}:part or {field}=whole.")
    return Term(field=field, operator=operator, text=text)
