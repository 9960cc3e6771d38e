"""Finding what a package holds: a new file in it is all that a new stage, check, runtime or task needs."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

__all__ = ["members"]


def members(package: str, attribute: str) -> dict[str, Any]:
    """Every value named ``attribute`` in the modules of a package, by its own name; private modules are left out."""
    root = importlib.import_module(package)
    found = {}
    for info in pkgutil.iter_modules(root.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        value = getattr(module, attribute, None)
        if value is not None:
            found[value.name] = value
    return found
