"""One line of an event file as JSON: what is checked of it, whatever the kind of event."""

import json
import math
from dataclasses import MISSING, fields
from typing import Any

VERSION = 1


class EventError(ValueError):
    """A line that cannot be read as an event."""


def parse(line: str | bytes) -> dict[str, Any]:
    """The object of a line: of this version, and with a kind; EventError for anything else."""
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise EventError(f"not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise EventError(f"got a JSON {type(raw).__name__}, expected an object")
    if raw.get("v") != VERSION:
        raise EventError(f"event version: got {raw.get('v')!r}, expected {VERSION}")
    if not isinstance(raw.get("k"), str):
        raise EventError(f"event kind: got {raw.get('k')!r}, expected a word")
    return raw


def values(event_type: type[Any], raw: dict[str, Any]) -> dict[str, Any]:
    """The fields of the dataclass `event_type` in `raw`; EventError when one is missing."""
    found: dict[str, Any] = {}
    lost = set(raw.get("nf", ()))
    for field in fields(event_type):
        if field.name in raw:
            value = _restore(raw[field.name]) if field.name in lost else raw[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.default is MISSING:
            raise EventError(f"{event_type.kind} event without {field.name!r}")
    return found


def finite(value: Any, name: str, non_finite: list[str]) -> Any:
    """The value as strict JSON can say it; `name` joins `non_finite` where it cannot."""
    if isinstance(value, float) and not math.isfinite(value):
        non_finite.append(name)
        return None
    if isinstance(value, tuple):
        return [finite(item, name, non_finite) for item in value]
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return math.nan if value is None else value
