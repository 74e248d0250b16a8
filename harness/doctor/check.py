"""One finding of the doctor: what is, what was expected, and what to do unless all is well."""

from dataclasses import dataclass
from typing import Literal

from harness.terminal import safe

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A `note` costs speed or trust, a `problem` stands in the way of a run.

    `value` is n/a where the machine does not tell; `expected` is empty where nothing is; `fix` says
    what to do unless all is well.
    """

    name: str
    verdict: Verdict
    value: str
    expected: str = ""
    fix: str = ""


def judged(
    name: str,
    value: str,
    *,
    is_well: bool | None,
    expected: str = "",
    fix: str = "",
    otherwise: Verdict = "note",
) -> Check:
    """A check that is well or `otherwise`; what cannot be judged (None) asks for nothing."""
    verdict: Verdict = otherwise if is_well is False else "ok"
    return Check(
        name=name,
        verdict=verdict,
        value=value,
        expected=expected,
        fix=fix if is_well is False else "",
    )


def harmless(text: object, *, most: int = 60) -> str:
    """The text of a stranger on one line, without control characters, and not too long."""
    shown = safe(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
