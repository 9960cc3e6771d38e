"""One parameter, one spelling.

A stage writes each of its parameters once, as a field of a frozen dataclass::

    class ExportOnnx(Options):
        opset: int = opt(20, "ONNX opset to target.", ge=17, le=24)

The command's flag, the recipe's key and the Python argument are made from that line, and all three end in
the same constructor, so that a value is checked once and hashed the same whoever brought it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import re
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, dataclass_transform, get_args, get_origin

from optimizer.errors import BadInput, UnknownName
from optimizer.types import JSON, Kind

__all__ = ["Opt", "OptionField", "Options", "opt", "parse_size"]

_REQUIRED: Any = dataclasses.MISSING


@dataclass(frozen=True)
class Opt:
    """What a parameter carries beside its type and its default."""

    help: str
    ge: float | None = None
    le: float | None = None
    choices: tuple[str, ...] = ()
    #: a file or folder whose *content*, not its path, decides what comes out
    data: bool = False
    #: False for what cannot change the result (thread counts, progress): it stays out of the key
    key: bool = True
    #: a short alias such as ``-o``
    short: str = ""
    metavar: str = ""
    #: the value names an artifact; in a recipe it may be the id of an earlier step
    ref: bool = False
    #: a number of seconds, which may be written with a unit: 90s, 10m
    time: bool = False
    #: the value is a file, or else the reference of an artifact of this kind (see optimizer.located)
    kind: Kind | None = None
    #: on the command line it stands behind the reference, without a flag
    positional: bool = False
    #: a number, which may be written in percent: 2%
    share: bool = False


def opt(
    default: Any = _REQUIRED,
    help: str = "",
    *,
    ge: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] = (),
    data: bool = False,
    key: bool = True,
    short: str = "",
    metavar: str = "",
    ref: bool = False,
    kind: Kind | None = None,
    time: bool = False,
    share: bool = False,
    positional: bool = False,
) -> Any:
    """Declare one parameter of an :class:`Options` class.

    Args:
        default: the value when none is given; leave it out to make the parameter required.
        help: one sentence; it is the flag's help and the documentation's row.
        ge: smallest allowed number (of each element, when the type is a tuple).
        le: largest allowed number.
        choices: allowed strings (of each element, when the type is a tuple).
        data: the value is a path whose content goes into the cache key instead of its name.
        key: False when the value cannot change the result.
        short: a one-letter alias of the flag, with its dash.
        metavar: how the value is named in ``--help``.
        ref: the value names an artifact; in a recipe it may be the id of an earlier step.
        kind: the value is a file, or else the reference of an artifact of this kind; in a recipe it may be the id of
            an earlier step.
        time: the value is a number of seconds, which may be written with a unit (``500ms``, ``90s``, ``10m``, ``1h``).
        share: the value is a number, which may be written in percent (``2%`` is 0.02).
        positional: on the command line the value stands behind the reference, without a flag; in Python too.
    """
    meta = {"opt": Opt(help, ge, le, choices, data, key, short, metavar, ref, time, kind, positional, share)}
    if default is _REQUIRED:
        return dataclasses.field(metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


@dataclass(frozen=True)
class OptionField:
    """One parameter as the three doors see it."""

    name: str
    type: Any
    default: Any
    opt: Opt

    @property
    def required(self) -> bool:
        return self.default is _REQUIRED

    @property
    def flag(self) -> str:
        """``per_channel`` → ``--per-channel``."""
        return "--" + self.name.replace("_", "-")

    @property
    def optional(self) -> bool:
        """Whether ``None`` is allowed."""
        return type(None) in get_args(self.type)

    @property
    def bare(self) -> Any:
        """The type without its ``| None``."""
        if self.optional:
            (inner,) = [a for a in get_args(self.type) if a is not type(None)]
            return inner
        return self.type

    @property
    def many(self) -> bool:
        """Whether the value is a tuple (the flag may be repeated)."""
        return get_origin(self.bare) is tuple

    @property
    def element(self) -> Any:
        """The type of one value: of the tuple's elements, or the bare type itself."""
        return get_args(self.bare)[0] if self.many else self.bare


O = TypeVar("O", bound="Options")  # noqa: E741 - the conventional letter here is the word itself


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(opt,))
class Options:
    """Base of every parameter set: subclasses become frozen, keyword-only dataclasses, checked when built.

    Attributes:
        panels: heading → names of parameters that ``--help`` shows under it; those under none come first.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for field in type(self).fields():
            value = getattr(self, field.name)
            object.__setattr__(self, field.name, _checked(type(self), field, value))
        self.check()

    def check(self) -> None:
        """Refuse combinations that no single field can see. Raises :class:`BadInput`."""

    @classmethod
    def fields(cls) -> tuple[OptionField, ...]:
        """The declared parameters, in the order they were written."""
        return _fields(cls)  # type: ignore[arg-type]  # mypy takes the __hash__ of instances for that of the class

    @classmethod
    def panel(cls, name: str) -> str | None:
        """The heading of a parameter; None where it has none of its own."""
        return next((heading for heading, names in cls.panels.items() if name in names), None)

    @classmethod
    def from_mapping(cls: type[O], values: Mapping[str, Any], where: str = "") -> O:
        """Build from a recipe's table or a call's keywords; an unknown or missing name is an error.

        Args:
            values: option names (``per_channel`` or ``per-channel``) to values.
            where: what an error calls this place ("quantize-static", "step 3 of recipe.toml").

        Raises:
            UnknownName: a key that no option has.
            BadInput: a required option is missing or a value is not allowed.
        """
        known = {f.name for f in cls.fields()}
        given: dict[str, Any] = {}
        for raw, value in values.items():
            name = raw.replace("-", "_")
            if name not in known:
                raise UnknownName(f"option of {where or cls.__name__}", raw, known)
            if name in given:
                raise BadInput(f"{where or cls.__name__}: option {name!r} is given twice")
            given[name] = value
        for field in cls.fields():
            if field.required and field.name not in given:
                raise BadInput(f"{where or cls.__name__} needs {field.flag}: {field.opt.help}")
        return cls(**given)

    def to_json(self) -> dict[str, JSON]:
        """Every value in JSON's own types, as a manifest records it."""
        return {f.name: _plain(getattr(self, f.name)) for f in type(self).fields()}

    def for_key(self, digest_of: typing.Callable[[Path], str], without: Collection[str] = ()) -> dict[str, JSON]:
        """The values that decide the result: data options by content, those with ``key=False`` left out.

        Args:
            digest_of: a data file's content.
            without: names of options that something else stands for.
        """
        out: dict[str, JSON] = {}
        for field in type(self).fields():
            value = getattr(self, field.name)
            if not field.opt.key or field.name in without:
                continue
            if field.opt.data and value is not None:
                out[field.name] = [digest_of(v) for v in value] if field.many else digest_of(value)
            else:
                out[field.name] = _plain(value)
        return out

    def changed(self) -> dict[str, Any]:
        """The values that differ from their defaults: what a command line has to say."""
        return {
            f.name: getattr(self, f.name)
            for f in type(self).fields()
            if f.required or getattr(self, f.name) != f.default
        }

    def to_flags(self) -> list[str]:
        """The command-line words that build this value again (defaults left out)."""
        words: list[str] = []
        by_name = {f.name: f for f in type(self).fields()}
        for name, value in self.changed().items():
            field = by_name[name]
            if isinstance(value, bool):
                words.append(field.flag if value else "--no-" + field.flag[2:])
            elif value is not None:
                for one in value if field.many else (value,):
                    words += [str(_plain(one))] if field.opt.positional else [field.flag, str(_plain(one))]
        return words


@functools.cache
def _fields(cls: type[Options]) -> tuple[OptionField, ...]:
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # every subclass is a dataclass
        if "opt" not in field.metadata:
            raise TypeError(f"{cls.__name__}.{field.name} must be declared with opt()")
        made = OptionField(field.name, hints[field.name], field.default, field.metadata["opt"])
        if made.optional and not made.required and made.default is not None:
            # A command line says None by saying nothing, so that this None could be said by two doors of the three.
            raise TypeError(f"{cls.__name__}.{field.name} may be None, so its default must be None")
        found.append(made)
    return tuple(found)


def _plain(value: Any) -> JSON:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _checked(owner: type, field: OptionField, value: Any) -> Any:
    """The value in its declared type and range, or :class:`BadInput` naming the flag."""
    if value is None:
        if field.optional:
            return None
        raise BadInput(f"{field.flag} may not be empty: {field.opt.help}")
    if isinstance(field.bare, types.UnionType) or get_origin(field.bare) is Union:
        raise TypeError(f"{owner.__name__}.{field.name}: unions other than `| None` are not supported")
    if field.many:
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise BadInput(f"{field.flag} takes a list, not {value!r}")
        if not value and (field.required or field.default):
            raise BadInput(f"{field.flag} needs at least one value: {field.opt.help}")
        return tuple(_element(field, v) for v in value)
    return _element(field, value)


def _element(field: OptionField, value: Any) -> Any:
    value = _converted(field, value)
    allowed = field.opt.choices
    if allowed and value not in allowed:
        raise UnknownName(f"value of {field.flag}", str(value), allowed)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not math.isfinite(value):
            raise BadInput(f"{field.flag} must be a finite number, not {value}")
        low, high = field.opt.ge, field.opt.le
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = f"{'' if low is None else f'{low:g} ≤ '}{field.name}{'' if high is None else f' ≤ {high:g}'}"
            raise BadInput(f"{field.flag} is out of range: {value} (allowed: {bounds})")
    return value


_TIME = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h)?\Z")
_UNITS: Mapping[str | None, float] = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(field: OptionField, text: str) -> float:
    found = _TIME.match(text.strip().lower())
    if found is None:
        raise BadInput(f"{field.flag} {text!r} is no time", "write 500ms, 90s, 10m or 1h")
    return float(found["number"]) * _UNITS[found["unit"]]


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMG]i?B|B)?\Z", re.IGNORECASE)
_BYTES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_size(text: str, flag: str) -> int:
    """Bytes of a size as it is typed: ``2GiB``, ``1.5GB``, ``1000``; raises :class:`BadInput` for none, and for 0."""
    found = _SIZE.match(text.strip())
    size = int(float(found["number"]) * _BYTES[(found["unit"] or "").lower()]) if found is not None else 0
    if size < 1:
        raise BadInput(f"{flag} {text!r} is no size", f"write a number with a unit, such as {flag} 2GiB")
    return size


def _share(field: OptionField, text: str) -> float:
    number = text.strip().removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        raise BadInput(f"{field.flag} {text!r} is no number", "write 0.02 or 2%") from None
    return value / 100 if number != text.strip() else value


def _converted(field: OptionField, value: Any) -> Any:
    want = field.element
    if field.opt.time and isinstance(value, str):
        value = _seconds(field, value)
    if field.opt.share and isinstance(value, str):
        value = _share(field, value)
    if isinstance(want, type) and issubclass(want, enum.Enum):
        try:
            return want(value)
        except ValueError:
            raise UnknownName(f"value of {field.flag}", str(value), [str(m.value) for m in want]) from None
    if want is Path and isinstance(value, (str, Path)):
        if str(value) == "":
            raise BadInput(f"{field.flag} may not be empty: {field.opt.help}")
        return Path(value)
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if want is int and isinstance(value, bool):
        raise BadInput(f"{field.flag} takes a whole number, not {value!r}")
    if isinstance(value, want):
        return value
    word = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
    raise BadInput(f"{field.flag} takes {word.get(want, want)}, not {value!r}")
