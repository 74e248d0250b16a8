"""Whether values read from a file are of the kinds that a dataclass says: nothing is converted."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, NamedTuple

# What a column of a series can hold, and the largest unix time that is a date.
MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1
MAX_TIME = 253_402_300_799.0


class _Kinds(NamedTuple):
    """What one field takes: exact types, or these words, or a tuple of `item`, `length` of them."""

    plain: frozenset[type]
    words: frozenset[Any]
    item: "_Kinds | None"
    length: int | None


def misfit(cls: type, values: Mapping[str, Any]) -> str | None:
    """The first field of `values` that `cls` does not take, in words; None when all are fine."""
    kinds = _kinds_of(cls)
    for name, value in values.items():
        kind, known = type(value), kinds[name]
        if kind in known.plain and kind is not int:
            continue
        if not _fits(known, value):
            return f"{name}: got {kind.__name__} {str(value)[:40]!r}"
    return None


def count(value: Any) -> int:
    """The value if it counts something; TypeError otherwise."""
    if type(value) is not int or not 0 <= value <= MAX_INT:
        raise TypeError(f"got {str(value)[:40]!r}, expected a count")
    return value


def moment(value: Any) -> float:
    """The value if it is a unix time; TypeError otherwise."""
    if type(value) not in (int, float) or not 0 <= value <= MAX_TIME:
        raise TypeError(f"got {str(value)[:40]!r}, expected a unix time")
    return float(value)


def without_non_finite(value: Any, name: str, lost: list[str]) -> Any:
    """The value with None for every number that JSON cannot hold; then `lost` gets the name."""
    if isinstance(value, float) and not math.isfinite(value):
        lost.append(name)
        return None
    if isinstance(value, tuple):
        return [without_non_finite(item, name, lost) for item in value]
    return value


def with_non_finite(value: Any) -> Any:
    """What `without_non_finite` lost, as NaN."""
    if isinstance(value, list):
        return [with_non_finite(item) for item in value]
    return math.nan if value is None else value


def _fits(kinds: _Kinds, value: Any) -> bool:
    kind = type(value)
    if kind in kinds.plain:
        return _is_small(value)
    if kind is tuple and kinds.item is not None:
        if kinds.length not in (None, len(value)):
            return False
        found, plain = set(map(type, value)), kinds.item.plain
        if found <= plain:
            return int not in found or all(map(_is_small, value))
        return all(_fits(kinds.item, each) for each in value)
    return kind is str and value in kinds.words


def _is_small(value: Any) -> bool:
    return type(value) is not int or MIN_INT <= value <= MAX_INT


@cache
def _kinds_of(cls: type) -> dict[str, _Kinds]:
    hints = typing.get_type_hints(cls)
    return {item.name: _kinds(hints[item.name]) for item in fields(cls)}


def _kinds(hint: Any) -> _Kinds:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_union else (hint,)
    plain = {option for option in options if typing.get_origin(option) is None}
    words: set[Any] = set()
    item, length = None, None
    for option in options:
        if typing.get_origin(option) is Literal:
            words |= set(typing.get_args(option))
        elif typing.get_origin(option) is tuple:
            items = typing.get_args(option)
            item, length = _kinds(items[0]), None if Ellipsis in items else len(items)
    if float in plain:
        plain.add(int)
    return _Kinds(plain=frozenset(plain), words=frozenset(words), item=item, length=length)
