"""What OpenVINO's exceptions mean, in one table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from optimizer.errors import BadInput, MissingPiece
from optimizer.vendor_rules import Rule, translated

__all__ = ["openvino_errors"]

#: Looked through from the top; the first match wins. The texts are those of OpenVINO 2026.4.
_TABLE = (
    Rule(
        r"No conversion rule found for operations: (?P<ops>[^\n]+)",
        BadInput,
        "{path} uses operators that OpenVINO does not have: {ops}",
        "use the provider cpu, or another variant of the model",
    ),
    Rule(
        r"Failed to allocate|bad_alloc|MemoryError|[Oo]ut of memory|Can not clone \w+MemoryDesc with dims",
        MissingPiece,
        "not enough memory to run {path}",
        "use a smaller batch or a shorter sequence",
    ),
    Rule(r"Unsupported property (?P<name>\w+)", BadInput, "OpenVINO's processor plugin has no property {name}"),
    Rule(
        r"incompatible|[Mm]ismatch|broadcast|not equal|Inconsistent",
        BadInput,
        "{path} cannot take inputs of these shapes: {text}",
        "inputs of different lengths, or a row longer than the model's longest sequence",
    ),
    Rule(r"", BadInput, "OpenVINO cannot run {path}: {text}"),
)


@contextlib.contextmanager
def openvino_errors(path: Path, provider: str) -> Iterator[None]:
    """Turn what OpenVINO raises inside into an :class:`MlOptError` that names the file.

    It raises nothing but ``RuntimeError``: only calls of OpenVINO belong inside.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise translated(error, _TABLE, path, provider, _plain) from error


def _plain(text: str) -> str:
    """The sentence in a message: the last line that is not the place in the source where a check failed."""
    lines = [re.sub(r"^.*?Check '.*?' failed at \S+:\d+:?", "", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    return (said[-1] if said else text.strip())[:300]
