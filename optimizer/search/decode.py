"""From JSON back to the dataclasses that it was made from, by their type hints, every value's type looked at."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any

__all__ = ["decoded"]


def decoded(kind: Any, value: Any, where: str = "") -> Any:
    """A value as its type hint says.

    Args:
        kind: a dataclass, an enum, ``str``, ``int``, ``float``, ``bool``, ``X | None``, ``tuple[X, ...]``,
            ``Mapping[str, X]``, or :data:`~optimizer.types.JSON` for anything.
        value: what ``json.loads`` gave for it. Keys that a dataclass does not know are left out: a newer ml-opt may add
            some. Fields with a default may be missing: an older one did not know them. Null is what a field's
            ``metadata["null"]`` says, where it says something.
        where: the way to it, for errors.

    Raises:
        ValueError: it is something else; the message names the field.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (UnionType, typing.Union):
        if value is None and NoneType in inner:
            return None
        (other,) = (each for each in inner if each is not NoneType)
        return decoded(other, value, where)
    if origin is tuple:
        _is(value, list, where)
        return tuple(decoded(inner[0], each, f"{where}[{place}]") for place, each in enumerate(value))
    if origin is Mapping:
        _is(value, Mapping, where)
        return {key: decoded(inner[1], each, f"{where}.{key}") for key, each in value.items()}
    if is_dataclass(kind):
        return _made(kind, value, where)
    if issubclass(kind, Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError(f"{where} is {value!r}, which is no {kind.__name__.lower()}") from None
    _is(value, kind, where)
    return value


def _made(kind: Any, value: Any, where: str) -> Any:
    _is(value, Mapping, where)
    hints = typing.get_type_hints(kind)
    values = {}
    for field in fields(kind):
        inside = f"{where}.{field.name}" if where else field.name
        if field.name in value and value[field.name] is None and "null" in field.metadata:
            values[field.name] = field.metadata["null"]
        elif field.name in value:
            values[field.name] = decoded(hints[field.name], value[field.name], inside)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{inside} is missing")
    return kind(**values)


def _is(value: Any, kind: type, where: str) -> None:
    allowed = (int, float) if kind is float else kind
    # bool is an int to Python, and never one to a reader.
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where or 'the document'} is {type(value).__name__}, not {kind.__name__}")
