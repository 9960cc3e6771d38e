"""A pass over rows that a fake model takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optimizer.benching.workload import Workload
from optimizer.data.batching import Batching
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row

INPUT = {"name": "x", "dtype": "float32", "shape": ["batch", "sequence"]}


class Long(Preprocessor):
    """Rows of three numbers, which it says are eight steps long."""

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        return [8] * len(rows)


def workload_of(folder: Path, rows: int, batching: Batching) -> Workload:
    """So many different rows, in these batches."""
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    np.savez(folder / "pass.npz", x=x)
    model = {"inputs": [INPUT]}
    return Workload.open(folder / "pass.npz", Long.open(folder, model), batching, model)
