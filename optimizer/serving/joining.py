"""Several requests in one run of a model, and each one's answer out of it again.

Rows are joined along the first dimension where every input and every output counts its rows there. Rows of different
lengths are joined only where the model has an ``attention_mask``, which hides what they are padded with, and where
every output says by the names of its dimensions where its padding is, so that it can be cut off. All other requests
share a run with those of their own shape, or with none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optimizer.data.golden import counts_rows, is_batch, is_sequence
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[np.generic]]

__all__ = ["Plan", "Size", "choose", "plan_of"]

_MASK = "attention_mask"
#: Of those that wait, so many times a run's rows are looked at: the nearest in length to the oldest.
_LOOKED_AT = 4
#: Tokens that stand for a run that costs more than any padding.
_DEAREST = 1e9


@dataclass(frozen=True)
class Size:
    """How large a request is.

    Attributes:
        rows: in its first dimension.
        length: steps of its longest sequence, padding of its own included; 1 for a model without sequences.
        like: requests that have the same can share a run; None for one that shares with nobody.
    """

    rows: int
    length: int
    like: tuple[Any, ...] | None

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Plan:
    """How a model's requests are joined.

    Attributes:
        joins: whether rows of several requests can share a run.
        pads: whether those of different lengths can.
        inputs: input → axes that count steps.
        outputs: output → axes that count steps of the same sequence; empty where none do.
        fill: input → what it is padded with; 0 where nothing is said.
        multiple: lengths are padded up to a multiple of this, where rows can be padded.
        longest: which no padding goes beyond; 0 where that is not known.
    """

    joins: bool
    pads: bool
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    fill: Mapping[str, int] = field(default_factory=dict)
    multiple: int = 1
    longest: int = 0

    @property
    def _rounds(self) -> bool:
        return self.pads and self.multiple > 1

    def padded(self, length: int) -> int:
        """The length that a run of rows of at most this length has."""
        if not self._rounds:
            return length
        up = -(-length // self.multiple) * self.multiple
        return max(length, min(up, self.longest)) if self.longest else up

    def as_run(self, size: Size) -> Size:
        """A request as large as it is in a run that is its own."""
        return replace(size, length=self.padded(size.length)) if self._rounds else size

    def size(self, feeds: Arrays) -> Size:
        """Rows, length and kin of a request whose arrays fit the model."""
        first = next(iter(feeds.values()), None)
        rows = int(first.shape[0]) if first is not None and first.ndim else 1
        length = max((feeds[name].shape[axis] for name, axes in self.inputs.items() for axis in axes), default=1)
        if not self.joins or not rows:
            return Size(max(rows, 1), max(length, 1), None)
        like = []
        for name, array in feeds.items():
            steps = self.inputs[name] if self.pads else ()
            like.append((name, *(-1 if axis in steps else size for axis, size in enumerate(array.shape) if axis)))
        return Size(rows, max(length, 1), tuple(sorted(like)))

    def join(self, requests: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
        """One run's inputs: the rows of every request in their order, padded to the longest."""
        import numpy as np

        if len(requests) == 1 and not self._rounds:
            return dict(requests[0])
        joined: dict[str, Any] = {}
        for name, first in requests[0].items():
            arrays = [request[name] for request in requests]
            shapes = {array.shape[1:] for array in arrays}
            steps = self.inputs[name] if self.pads else ()
            inner = tuple(
                self.padded(max(sizes)) if axis in steps else max(sizes)
                for axis, sizes in enumerate(zip(*shapes, strict=True), 1)
            )
            if shapes == {inner}:
                joined[name] = np.concatenate(arrays)
                continue
            rows = sum(len(array) for array in arrays)
            padded = np.full((rows, *inner), self.fill.get(name, 0), first.dtype)
            row = 0
            for array in arrays:
                padded[(slice(row, row + len(array)), *map(slice, array.shape[1:]))] = array
                row += len(array)
            joined[name] = padded
        return joined

    def whole(self, answers: Sequence[Arrays]) -> dict[str, NDArray[np.generic]]:
        """The answer to a request of the answers to its pieces, in their order."""
        import numpy as np

        if len(answers) == 1:
            return dict(answers[0])
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def split(self, outputs: Arrays, sizes: Sequence[Size]) -> list[dict[str, NDArray[np.generic]]]:
        """Each request's own answer, without its padding.

        Raises:
            ValueError: an output does not count the rows of the run: the model's requests cannot be joined.
        """
        longest = self.padded(max(size.length for size in sizes))
        if len(sizes) == 1 and sizes[0].length == longest:
            return [dict(outputs)]
        rows = sum(size.rows for size in sizes)
        if wrong := [name for name, array in outputs.items() if not array.ndim or len(array) != rows]:
            raise ValueError(f"output {wrong[0]!r} does not count the rows of a batch")
        answers, row = [], 0
        for size in sizes:
            mine: dict[str, Any] = {}
            for name, array in outputs.items():
                part = array[row : row + size.rows]
                if size.length != longest:
                    for axis in self.outputs[name]:
                        part = part[(slice(None),) * axis + (slice(size.length),)]
                mine[name] = part
            answers.append(mine)
            row += size.rows
        return answers


def plan_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    fill: Mapping[str, int],
    multiple: int = 1,
    longest: int = 0,
) -> Plan:
    """How requests to a model with these inputs and outputs can be joined.

    Args:
        inputs: of the session.
        outputs: of the session.
        fill: what inputs are padded with.
        multiple: of which lengths are to be.
        longest: that the model takes; 0 where that is not known.
    """
    rows = [spec.shape[0] if spec.shape else 1 for spec in (*inputs, *outputs)]
    joins = bool(rows) and all(counts_rows(dim, 0) for dim in rows)
    steps = {spec.name: _axes(spec) for spec in inputs}
    cuts = {spec.name: _axes(spec) for spec in outputs}
    mask = next((spec for spec in inputs if spec.name == _MASK and len(spec.shape) == 2), None)
    names = {spec.shape[axis] for spec in inputs for axis in steps[spec.name]}
    said = all(
        isinstance(dim, int) or dim in names or (place == 0 and is_batch(dim))
        for spec in outputs
        for place, dim in enumerate(spec.shape)
    )
    # One sequence, by one name, and a mask over it: then what is behind a row's end is hidden from the row.
    pads = joins and mask is not None and is_sequence(mask.shape[1]) and len(names) == 1 and said
    return Plan(joins, pads, steps, cuts, dict(fill), multiple, longest)


def _axes(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(axis for axis, dim in enumerate(spec.shape) if axis and is_sequence(dim))


def choose(sizes: Sequence[Size], max_rows: int, max_tokens: int, overhead: float) -> list[int]:
    """Which of those that wait share the next run.

    The one that has waited longest is always among them, so that nobody waits for ever. It and its kin, in the order
    of their lengths, are divided into runs so that all of them together take the least time (dynamic programming over
    where each run begins), and its run is the next. A request that is beyond the limits by itself runs alone.

    Args:
        sizes: of all that wait, the oldest first.
        max_rows: of a run.
        max_tokens: of a run, padding included.
        overhead: tokens that are computed in the time that a run takes beside its tokens.

    Returns:
        places in ``sizes``, ascending.
    """
    first = sizes[0]
    if first.like is None:
        return [0]
    kin = [place for place in range(len(sizes)) if sizes[place].like == first.like]
    if len(kin) > (most := _LOOKED_AT * max_rows):
        kin = sorted(kin, key=lambda place: (abs(sizes[place].length - first.length), place))[:most]
    kin.sort(key=lambda place: (sizes[place].length, place))
    for begin, end in _runs([sizes[place] for place in kin], max_rows, max_tokens, min(overhead, _DEAREST)):
        if 0 in kin[begin:end]:
            return sorted(kin[begin:end])
    raise AssertionError("the runs hold everyone")


def _runs(sizes: Sequence[Size], max_rows: int, max_tokens: int, overhead: float) -> list[tuple[int, int]]:
    """Runs of neighbours that together cost the least, from the longest; of those that cost the same, the fewest."""
    cost, begins = [0.0], [0]
    for end, last in enumerate(sizes, 1):
        least, rows = math.inf, 0
        for begin in range(end - 1, -1, -1):
            rows += sizes[begin].rows
            tokens = rows * last.length
            if begin < end - 1 and (rows > max_rows or tokens > max_tokens):
                break
            if (total := cost[begin] + overhead + tokens) <= least:
                least, start = total, begin
        cost.append(least)
        begins.append(start)
    found, end = [], len(sizes)
    while end:
        found.append((begins[end], end))
        end = begins[end]
    return found
