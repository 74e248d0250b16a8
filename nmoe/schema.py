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
        if type(value) in item.admitted.plain:
            values[item.name] = value
        elif value is not MISSING:
            label = f"{section}.{item.name}" if section else item.name
            values[item.name] = _convert(item.admitted, value, where=where, label=label)
        elif item.is_required:
            _refuse_unknown(raw, known, where=where, section=section)
            label = f"{section}.{item.name}" if section else item.name
            kind = "section" if item.admitted.table in item.admitted.options else "key"
            raise ConfigError(f'{where}: missing {kind} "{label}"')
    if len(values) < len(raw):
        _refuse_unknown(raw, known, where=where, section=section)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if not section else str(error)) from None


class _Admitted(NamedTuple):
    """What a hint admits, taken apart once: values of exactly a `plain` type need no closer look.

    `choices` are those of a union of literals, and perhaps None; None for any other hint.
    """

    options: tuple[Any, ...]
    kinds: tuple[type, ...]
    plain: frozenset[type]
    table: type | None
    items: Any
    choices: tuple[Any, ...] | None


class _Field(NamedTuple):
    """A field of a dataclass."""

    name: str
    admitted: _Admitted
    is_required: bool


@cache
def _fields_of(cls: type) -> tuple[_Field, ...]:
    hints = typing.get_type_hints(cls)
    return tuple(
        _Field(
            name=item.name,
            admitted=_admitted(hints[item.name]),
            is_required=item.default is MISSING and item.default_factory is MISSING,
        )
        for item in fields(cls)
        if item.init
    )


@cache
def _admitted(hint: Any) -> _Admitted:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    options = typing.get_args(hint) if is_union else (hint,)
    plain = {str, int, float, bool, types.NoneType}
    return _Admitted(
        options=options,
        kinds=tuple(map(_kind, options)),
        plain=frozenset(option for option in options if option in plain),
        table=next(
            (option for option in options if isinstance(option, type) and is_dataclass(option)),
            None,
        ),
        items=typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else None,
        choices=_choices(options),
    )


def _kind(option: Any) -> type:
    """What values of a hint without unions are instances of."""
    kind = typing.get_origin(option) or option
    return Mapping if kind is dict else kind


def _choices(options: Sequence[Any]) -> tuple[Any, ...] | None:
    choices: list[Any] = []
    for option in options:
        if typing.get_origin(option) is not Literal and option is not types.NoneType:
            return None
        choices += typing.get_args(option) or [None]
    return tuple(choices)


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


def _convert(admitted: _Admitted, value: Any, *, where: str, label: str) -> Any:
    choices = admitted.choices
    if admitted.table and not any(_fits(kind, value) for kind in admitted.kinds):
        return build(admitted.table, value, where=where, section=label)
    if admitted.items is not None and isinstance(value, list | tuple):
        item = _admitted(admitted.items)
        return tuple(
            each
            if type(each) in item.plain
            else _convert(item, each, where=where, label=f"{label}.{i}")
            for i, each in enumerate(value)
        )
    if choices is not None:
        if value in choices:
            return value
        names = [str(choice) for choice in choices]
        raise ConfigError(f"{where}: {label}: got {value!r}.{nearest(str(value), names)}")
    for kind in admitted.kinds:
        if _fits(kind, value):
            return _as_float(value, where=where, label=label) if kind is float else value
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in admitted.options)
    raise ConfigError(f"{where}: {label}: got {_typename(value)} {value!r}, expected {wanted}")


def _as_float(value: Any, *, where: str, label: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ConfigError(f"{where}: {label}: got a number that is too large") from None


def _fits(kind: type, value: Any) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def _typename(value: object) -> str:
    return type(value).__name__
