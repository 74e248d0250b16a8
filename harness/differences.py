"""In what the plans of several runs differ, key by key."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from nmoe.config import Plan

MISSING = "none"
# What is another for every run, or follows from what is listed anyway.
_OWN = ("run_id", "created", "choice", "dtype_reason", "digests.config", "flow.digest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A key of the plan and its value in each run, as text."""

    key: str
    values: tuple[str, ...]


def differences(plans: Sequence[Plan]) -> tuple[Difference, ...]:
    """The keys whose values are not the same in all plans, in the order of the plan."""
    flat = [_flat(asdict(plan)) for plan in plans]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = [
        Difference(key=key, values=tuple(each.get(key, MISSING) for each in flat)) for key in keys
    ]
    return tuple(row for row in rows if row.key not in _OWN and len(set(row.values)) > 1)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            found |= _flat(cast("dict[str, Any]", value), f"{key}.")
        else:
            found[key] = _text(value)
    return found


def _text(value: object) -> str:
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value, default=str)
