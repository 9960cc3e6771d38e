"""How this machine's roofs are measured while tests run: where what is benchmarked is tiny, they cost more than it."""

from __future__ import annotations

from typing import Any

import pytest

from optimizer.benching import roofline

__all__ = ["SMALL", "USUAL", "measured_with"]

#: Products and copies that take no time; a GPU's stay as they are.
SMALL: dict[str, Any] = {
    "_GEMMS": {**roofline._GEMMS, False: ((64, 256), 256)},
    "_SETS": (1, 4),
    "last_cache_bytes": lambda: 0,
    "_SECONDS": 0.03,
    "_WARM_S": 0.05,
}
#: What everyone else measures with.
USUAL: dict[str, Any] = {name: getattr(roofline, name) for name in SMALL}


def measured_with(values: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Measure roofs with :data:`SMALL` or :data:`USUAL` until the patch is undone."""
    for name, value in values.items():
        patch.setattr(roofline, name, value)
