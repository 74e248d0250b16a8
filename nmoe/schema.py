"""Frozen dataclasses from mappings: every key and type is checked and named when wrong."""

import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says what to change."""


def build(cls: type[T], raw: object, *, where: str, section: str = "") -> T:
    """A frozen dataclass from a mapping, checking every key and type; ConfigError names both."""
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}: got {_typename(raw)} {_place(section)}, expected a table")
    known = _fields_of(cls)
    values: dict[str, Any] = {}
    for item in known:
        value = raw.get(item.name, MISSING)
        if type(value) in item.kinds:
            values[item.name] = value
        elif value is not MISSING:
            label = f"{section}.{item.name}" if section else item.name
            values[item.name] = _convert(item.hint, value, where=where, label=label)
        elif item.is_required:
            _refuse_unknown(raw, known, where=where, section=section)
            label = f"{section}.{item.name}" if section else item.name
            kind = "section" if is_dataclass(item.hint) else "key"
            raise ConfigError(f'{where}: missing {kind} "{label}"')
    if len(values) < len(raw):
        _refuse_unknown(raw, known, where=where, section=section)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if not section else str(error)) from None


class _Field(NamedTuple):
    """A field of a dataclass; values of exactly one of `kinds` need no closer look."""

    name: str
    hint: Any
    kinds: frozenset[type]
    is_required: bool


@cache
def _fields_of(cls: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls)
    plain = {str, int, float, bool, types.NoneType}
    return tuple(
        _Field(
            name=item.name,
            hint=hints[item.name],
            kinds=frozenset(kind for kind in _options(hints[item.name]) if kind in plain),
            is_required=item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(cls)
        if item.init
    )


def _refuse_unknown(
    raw: Mapping[Any, Any], known: Sequence[_Field], *, where: str, section: str
) -> None:
    names = [item.name for item in known]
    for key in raw:
        if key not in names:
            kind = "section" if isinstance(raw[key], Mapping) else "key"
            near = nearest(str(key), names)
            raise ConfigError(f'{where}: unknown {kind} "{key}" {_place(section)}.{near}')


def _place(section: str) -> str:
    return f"in [{section}]" if section else "at the top level"


def nearest(name: str, known: Sequence[str]) -> str:
    """A ` Did you mean "…"?` for the closest known name, or the list of all when none is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f' Did you mean "{close[0]}"?'
    return f" Known: {', '.join(known)}."


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Put the value of `section.key=value` into `raw`; ConfigError when it is not that."""
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) != 2 or not all(parts):
        raise ConfigError(f"--set: got {override!r}, expected section.key=value")
    section = raw.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise ConfigError(f"--set: {parts[0]!r} is not a section")
    section[parts[1]] = _parse_value(text.strip())


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        pass
    try:
        return float(text)  # TOML refuses forms such as 1E4 with a bare point: .5, 5.
    except ValueError:
        return text


def _convert(hint: Any, value: Any, *, where: str, label: str) -> Any:
    inner = next((option for option in _options(hint) if is_dataclass(option)), None)
    if inner is not None and not any(_fits(option, value) for option in _options(hint)):
        return build(typing.cast(type, inner), value, where=where, section=label)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(hint)[0]
        pairs = enumerate(value)
        return tuple(_convert(item, each, where=where, label=f"{label}.{i}") for i, each in pairs)
    choices = _choices(hint)
    if choices is not None:
        if value in choices:
            return value
        names = [str(choice) for choice in choices]
        raise ConfigError(f"{where}: {label}: got {value!r}.{nearest(str(value), names)}")
    for option in _options(hint):
        if _fits(option, value):
            return _as_float(value, where=where, label=label) if option is float else value
        if option is int and isinstance(value, float) and value.is_integer():
            return int(value)
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in _options(hint))
    raise ConfigError(f"{where}: {label}: got {_typename(value)} {value!r}, expected {wanted}")


def _as_float(value: Any, *, where: str, label: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{where}: {label}: got a number that is too large") from None


def _choices(hint: Any) -> tuple[Any, ...] | None:
    """What a union of literals, and perhaps None, admits; None for any other hint."""
    choices: list[Any] = []
    for option in _options(hint):
        if typing.get_origin(option) is not Literal and option is not types.NoneType:
            return None
        choices += typing.get_args(option) or [None]
    return tuple(choices)


def _options(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _fits(option: Any, value: Any) -> bool:
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(option) is dict:
        return isinstance(value, Mapping)
    return isinstance(value, typing.get_origin(option) or option)


def _typename(value: object) -> str:
    return type(value).__name__
