"""Rows of a data file as what is timed: a pass over them, every row with its own length."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.benching.shape import Shape
from optimizer.data.batching import Batching, padded
from optimizer.data.calibration import sample
from optimizer.data.preprocess import Preprocessor
from optimizer.data.readers import Row, read_rows
from optimizer.errors import BadInput
from optimizer.types import JSON

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Load", "Workload", "Writing", "name_of"]

_WRITING = re.compile(r"(\d+)x(\d+)\+(\d+)\Z")
#: Rows of a data file that a pass is made of; more would say the same of their lengths, and take longer.
_ROWS = 512


@dataclass(frozen=True)
class Workload:
    """A pass over rows of a data file: every row once, in batches as the rule says.

    Attributes:
        data: the file or folder.
        places: of these rows in it, in its order.
        lengths: of these rows as the model sees them.
        batching: how they are put into batches.
        most: rows that the model takes at once, where it says so.
    """

    data: Path
    places: tuple[int, ...]
    lengths: tuple[int, ...]
    batching: Batching
    most: int | None
    _rows: tuple[Row, ...] = field(repr=False, compare=False)
    _preprocessor: Preprocessor = field(repr=False, compare=False)

    @classmethod
    def open(
        cls, data: Path, preprocessor: Preprocessor, batching: Batching, model: Mapping[str, JSON], rows: int = _ROWS
    ) -> Workload:
        """Choose rows of a file by strata of their length, so that a pass has the lengths of the whole.

        Args:
            data: the file or folder.
            preprocessor: makes the model's inputs of its rows.
            batching: how they are put into batches.
            model: the manifest's ``model``.
            rows: how many at most.

        Raises:
            BadInput: a row cannot be fed, or rows of this model have no length.
        """
        found = read_rows(data)
        preprocessor.check(found)
        lengths = preprocessor.lengths(found)
        if lengths is None:
            raise BadInput(f"rows of {data} have no lengths for this model: all are alike", "time a --shape instead")
        places = sample(found, rows, content=preprocessor.content, lengths=lengths)
        return cls(
            data,
            tuple(places),
            tuple(lengths[place] for place in places),
            batching,
            model.get("max_batch"),
            tuple(found[place] for place in places),
            preprocessor,
        )

    @property
    def batch(self) -> int:
        """Rows in a pass."""
        return len(self.places)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Which rows share a batch: places in :attr:`lengths`."""
        return self.batching.groups(self.lengths, self.most)

    @property
    def padding(self) -> float:
        """Steps that are computed for every step of a row: 1 when nothing is padded."""
        return padded(self.lengths, self.groups) / max(1, sum(self.lengths))

    def batched(self, batching: Batching) -> Workload:
        """The same rows in other batches."""
        return replace(self, batching=batching)

    def feeds(self) -> list[dict[str, NDArray[np.generic]]]:
        """The inputs of a pass, batch by batch."""
        return [self._preprocessor.feeds([self._rows[place] for place in group]) for group in self.groups]

    def __str__(self) -> str:
        return f"{self.batch} rows of {self.data.name}"

    def to_json(self) -> dict[str, JSON]:
        """What a report says of it."""
        return {
            "rows": self.batch,
            "file": self.data.name,
            "batching": self.batching.spelled,
            "batches": len(self.groups),
            "padding": self.padding,
        }


@dataclass(frozen=True)
class Writing:
    """Texts that a generator writes at once.

    Attributes:
        batch: how many.
        prompt: tokens of each one's prompt.
        new: tokens that each writes.
    """

    batch: int
    prompt: int
    new: int

    @classmethod
    def parse(cls, text: str) -> Writing:
        """Read ``BxP+N``; raises :class:`BadInput` for anything else."""
        found = _WRITING.match(text.strip().lower())
        if found is None or "0" in found.groups():
            raise BadInput(f"{text!r} is no size of texts", "write texts × tokens of a prompt + new tokens: 8x128+64")
        return cls(*(int(each) for each in found.groups()))

    def __str__(self) -> str:
        return f"{self.batch}x{self.prompt}+{self.new}"


#: What is timed.
Load = Shape | Workload | Writing


def name_of(load: Load) -> str:
    """A name that no other load of the same measurement has."""
    return f"{load}, {load.batching}" if isinstance(load, Workload) else str(load)
