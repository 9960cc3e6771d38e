"""ml-opt: from a trained model to the fastest artifact that still meets your accuracy budget.

Every command is a function here, made from the same declaration::

    import optimizer

    fp32 = optimizer.export_onnx("path/to/model", name="minilm").artifact
    int8 = optimizer.quantize_dynamic(fp32.ref).artifact
    report = optimizer.verify(int8.ref, against="source", data="texts.jsonl")

Importing this package imports no heavy library.
"""

from __future__ import annotations

import functools
import pkgutil
from pathlib import Path
from typing import Any

from optimizer.artifact import Artifact
from optimizer.errors import (
    BadInput,
    Damaged,
    GateFailed,
    Inconclusive,
    MissingPiece,
    MlOptError,
    TooLarge,
    UnknownName,
)
from optimizer.manifest import Manifest
from optimizer.ref import Ref
from optimizer.store import Store

__version__ = "0.1.0"

_VALUES = [
    "Artifact",
    "BadInput",
    "Damaged",
    "GateFailed",
    "Inconclusive",
    "Manifest",
    "MissingPiece",
    "MlOptError",
    "Ref",
    "Store",
    "TooLarge",
    "UnknownName",
]


@functools.cache
def _function_names() -> frozenset[str]:
    """Names of the functions: a stage or check is spelled like its file, so that nothing need be imported to know."""
    folders = [str(Path(__file__).parent / package) for package in ("stages", "checks")]
    return frozenset(info.name for info in pkgutil.iter_modules(folders) if not info.name.startswith("_"))


def __getattr__(name: str) -> Any:
    # Stages and checks are discovered when one is first asked for, so that `import optimizer` stays instant.
    if name == "__all__":
        return sorted([*_VALUES, *_function_names(), "run_recipe"])
    if name == "run_recipe":
        from optimizer.recipe import run_recipe

        return run_recipe
    if name in _function_names():
        from optimizer.api import functions

        return functions()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
