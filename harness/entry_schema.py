"""The JSON Schema of a scoreboard entry, made from its dataclasses.

python -m harness.entry_schema > LEADERBOARD.schema.json
"""

import json
import sys
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, cast

from harness.entry import SCHEMA_VERSION, Entry


def entry_schema() -> dict[str, Any]:
    """The JSON Schema of a scoreboard entry, from the classes of `harness.entry`."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Entry"}
    schema = _of_class(Entry)
    schema["properties"]["schema_version"] = {"const": SCHEMA_VERSION}
    schema["properties"]["entry_id"] = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
    return head | schema


def _of_class(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    items = fields(cls)
    required = [i.name for i in items if i.default is MISSING and i.default_factory is MISSING]
    return {
        "type": "object",
        "description": (cls.__doc__ or "").partition("\n")[0],
        "properties": {item.name: _of_hint(hints[item.name]) for item in items},
        "required": required,
        "additionalProperties": False,
    }


def _of_hint(hint: Any) -> dict[str, Any]:
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _of_class(cast(type, hint))
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _of_hint(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of_hint(arguments[1])}
    if origin in (typing.Union, types.UnionType):
        options = [_of_hint(each) for each in arguments if each is not types.NoneType]
        return {"anyOf": [*options, {"type": "null"}]}
    return {"type": names[hint]}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(entry_schema(), indent=1) + "\n")
