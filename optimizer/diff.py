"""What differs between two manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from optimizer.manifest import Manifest
from optimizer.types import JSON

__all__ = ["Difference", "differences"]


@dataclass(frozen=True)
class Difference:
    """One field that is not the same.

    Attributes:
        field: its dotted path (``facts.ops.MatMul``).
        first: its value in the first manifest; None when it is not there.
        second: its value in the second.
    """

    field: str
    first: JSON
    second: JSON


#: What always differs and says nothing about the model.
_NOISE = ("created", "seconds", "command", "key", "environment.cpu.mhz")


def differences(first: Manifest, second: Manifest) -> list[Difference]:
    """Every field that differs, in the order of the manifest; times and commands are left out."""
    return list(_walk("", first.to_json(), second.to_json()))


def _walk(path: str, a: JSON, b: JSON) -> Iterator[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in [*a, *(k for k in b if k not in a)]:
            inner = f"{path}.{name}" if path else name
            if inner not in _NOISE:
                yield from _walk(inner, a.get(name), b.get(name))
    elif a != b:
        yield Difference(path, a, b)
