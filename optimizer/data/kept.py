"""Rows written down so that they stand by themselves: nothing that they need lies anywhere else.

A calibration set is a folder of ``rows.jsonl`` (texts, numbers and lists; pictures and sounds lie under ``files/``), or
of ``rows.npz`` where rows have arrays. Columns are called what they are to the model, and those that it never sees are
left out. :func:`optimizer.data.readers.read_rows` reads it like any other data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.artifact import ROWS_NAMES
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row

__all__ = ["write_rows"]

#: What a file begins with, and what its name should end in; readers look at nothing but the bytes.
_SUFFIXES = ((b"\x89PNG", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"BM", ".bmp"))
_RIFF = {b"WAVE": ".wav", b"WEBP": ".webp"}


def write_rows(rows: Sequence[Row], preprocessor: Preprocessor, folder: Path) -> None:
    """Write what a model is given of these rows, in their order.

    Args:
        rows: at least one; they must all be fit to be fed.
        preprocessor: of the model.
        folder: an empty one.
    """
    found = [preprocessor.values(row) for row in rows]
    plain, arrays = (folder / name for name in ROWS_NAMES)
    if any(_is_array(value) for values in found for value in values.values()):
        _write_arrays(found, arrays)
        return
    with open(plain, "w", encoding="utf-8") as handle:
        for number, values in enumerate(found, 1):
            written = {name: _written(value, number, folder) for name, value in values.items()}
            handle.write(json.dumps(written) + "\n")


def _is_array(value: Any) -> bool:
    """Whether it is numpy's and no text: JSON would lose its type."""
    return hasattr(value, "dtype") and not isinstance(value, str)


def _write_arrays(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    import numpy as np

    stacked = {name: np.stack([np.asarray(values[name]) for values in found]) for name in found[0]}
    np.savez(path, **stacked)  # type: ignore[arg-type]


def _written(value: Any, number: int, folder: Path) -> Any:
    """A value as JSON can say it; bytes become a file, which is named from the folder on."""
    if not isinstance(value, bytes):
        return value
    suffix = next((suffix for head, suffix in _SUFFIXES if value.startswith(head)), "")
    if value.startswith(b"RIFF"):
        suffix = _RIFF.get(value[8:12], "")
    path = folder / "files" / f"{number:06d}{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(value)
    return str(path.relative_to(folder))
