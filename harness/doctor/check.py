"""One finding: what is, what was expected, and what to do unless all is well."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A `note` costs speed or trust, a `problem` refuses a run; `expected` is empty for facts."""

    name: str
    verdict: Verdict
    value: str
    expected: str = ""
    fix: str = ""


def judged(name: str, value: str, expected: str, fix: str, *, is_well: bool | None) -> Check:
    """Well, or a note with the fix; what cannot be told (None) is neither."""
    if is_well is None:
        return Check(name=name, verdict="ok", value=value)
    if is_well:
        return Check(name=name, verdict="ok", value=value, expected=expected)
    return Check(name=name, verdict="note", value=value, expected=expected, fix=fix)
