"""One line of an event file as JSON: what is checked of it, whatever the kind of event."""

import json
from dataclasses import MISSING, fields
from functools import cache
from typing import Any

from nmoe.kinds import misfit, with_non_finite, without_non_finite

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
    """The fields of the dataclass `event_type` in `raw`.

    EventError when one is missing or of another kind.
    """
    found: dict[str, Any] = {}
    lost = set(raw.get("nf", ()))
    for name, is_required in _fields_of(event_type):
        if name in raw:
            value = with_non_finite(raw[name]) if name in lost else raw[name]
            found[name] = tuple(value) if isinstance(value, list) else value
        elif is_required:
            raise EventError(f"{event_type.kind} event without {name!r}")
    wrong = misfit(event_type, found)
    if wrong is not None:
        raise EventError(f"broken {event_type.kind} event: {wrong}")
    return found


@cache
def _fields_of(event_type: type[Any]) -> tuple[tuple[str, bool], ...]:
    """The name of every field, and whether it must be there."""
    return tuple((field.name, field.default is MISSING) for field in fields(event_type))


def strict(event: Any) -> dict[str, Any]:
    """The fields of a dataclass as strict JSON can say them; `nf` names what is not finite."""
    lost = list[str]()
    body = {f.name: without_non_finite(getattr(event, f.name), f.name, lost) for f in fields(event)}
    return body | {"nf": sorted(set(lost))} if lost else body
