"""How rows of different lengths are put into batches: by count or by tokens, in their own order or by length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.errors import BadInput

__all__ = ["IN_ORDER", "ONE_BY_ONE", "SORTED", "Batching", "budgets", "padded"]

_WRITTEN = re.compile(r"(?:(?P<word>order|sorted|tokens):(?P<count>[1-9]\d{0,8}))\Z")


@dataclass(frozen=True)
class Batching:
    """A rule for batches. Padding is what it is about: every row of a batch costs as much as its longest.

    Attributes:
        rows: most rows in a batch; 0 for as many as ``tokens`` allows.
        tokens: most steps in a batch, padding included; 0 for no such limit. A single row may have more.
        sort: longest rows first, so that rows of like length share a batch.
    """

    rows: int = 0
    tokens: int = 0
    sort: bool = True

    @classmethod
    def parse(cls, text: str) -> Batching:
        """Read ``tokens:2048``, ``sorted:32`` or ``order:32``, as :meth:`spelled` writes them.

        Raises:
            BadInput: it is none of these.
        """
        found = _WRITTEN.match(text.strip().lower())
        if found is None:
            raise BadInput(f"{text!r} is no way to batch rows", "write tokens:2048, sorted:32 or order:32")
        count = int(found["count"])
        if found["word"] == "tokens":
            return cls(tokens=count)
        return cls(rows=count, sort=found["word"] == "sorted")

    @property
    def spelled(self) -> str:
        """As :meth:`parse` reads it."""
        if self.tokens:
            return f"tokens:{self.tokens}"
        return f"{'sorted' if self.sort else 'order'}:{self.rows}"

    def __str__(self) -> str:
        if self.rows == 1:
            return "one by one"
        limit = f"up to {self.tokens} tokens" if self.tokens else f"{self.rows}"
        return f"batches of {limit}, {'sorted by length' if self.sort else 'in the order of the data'}"

    def groups(self, lengths: Sequence[int], most: int | None = None) -> tuple[tuple[int, ...], ...]:
        """Every row once, in batches.

        Args:
            lengths: of each row.
            most: rows that the model takes at once, where it says so.

        Returns:
            places in ``lengths``, a tuple for each batch.
        """
        limit = min(self.rows or len(lengths), most or len(lengths))
        order = list(range(len(lengths)))
        if self.sort:
            order.sort(key=lambda place: -lengths[place])
        made: list[tuple[int, ...]] = []
        batch: list[int] = []
        longest = 0
        for place in order:
            grown = max(longest, lengths[place])
            if batch and (len(batch) >= limit or (self.tokens and grown * (len(batch) + 1) > self.tokens)):
                made.append(tuple(batch))
                batch, grown = [], lengths[place]
            batch.append(place)
            longest = grown
        if batch:
            made.append(tuple(batch))
        return tuple(made)


#: A request at a time; what a program does that does not care; and what sentence-transformers does.
ONE_BY_ONE = Batching(rows=1, sort=False)
IN_ORDER = Batching(rows=32, sort=False)
SORTED = Batching(rows=32)

#: Which budgets are tried when none is asked for: the best one depends on the caches and on the precision.
_SMALLEST_BUDGET, _BUDGETS = 512, 4


def budgets(longest: int) -> tuple[Batching, ...]:
    """Token budgets worth trying, each twice the one before; the smallest has room for the longest row."""
    least = max(_SMALLEST_BUDGET, longest)
    return tuple(Batching(tokens=least << doubled) for doubled in range(_BUDGETS))


def padded(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    """Steps that a model computes for these batches, padding included."""
    return sum(len(group) * max(lengths[place] for place in group) for group in groups)
