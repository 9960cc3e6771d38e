"""Shapes as people name them: ``8x128`` is eight rows of 128 steps, ``8`` eight rows of whatever length is usual."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.engines.profiles import Profile
from optimizer.errors import BadInput
from optimizer.types import JSON

__all__ = ["Shape", "default_shapes", "shape_text"]

_SHAPE = re.compile(r"(?P<batch>[1-9]\d{0,6})(?:[x×](?P<sequence>[1-9]\d{0,8}))?\Z")


@dataclass(frozen=True)
class Shape:
    """Rows and steps.

    Attributes:
        batch: rows.
        sequence: tokens, audio samples or frames; 0 leaves it to the example inputs.
    """

    batch: int
    sequence: int = 0

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Read ``BxS`` or ``B``; raises :class:`BadInput` for anything else."""
        found = _SHAPE.match(text.strip().lower())
        if found is None:
            raise BadInput(f"{text!r} is not a shape", "write batch × sequence, such as --shape 8x128, or --shape 8")
        return cls(int(found["batch"]), int(found["sequence"] or 0))

    def __str__(self) -> str:
        return f"{self.batch}x{self.sequence}" if self.sequence else str(self.batch)

    def check(self, model: Mapping[str, JSON]) -> None:
        """Refuse a shape beyond what the model says it can take."""
        longest, largest = model.get("max_length"), model.get("max_batch")
        if longest and self.sequence > longest:
            raise BadInput(f"--shape {self} is longer than the model's longest sequence, {longest}")
        if largest and self.batch > largest:
            raise BadInput(f"--shape {self} has more rows than the model was exported for, {largest}")


def default_shapes(model: Mapping[str, JSON], engines: Sequence[Sequence[Profile]] = ()) -> Sequence[Shape]:
    """What is measured when no shape is asked for: one short row, one long row and a batch of them.

    Args:
        model: the manifest's ``model``.
        engines: the profiles of every engine that takes part. An engine takes no other shapes: of the usual ones those
            that all were built for are measured, or else the ones that the kernels of the first were chosen for.
    """
    if model.get("modality") == "text":
        long = min(128, int(model.get("max_length") or 128))
        usual = tuple(dict.fromkeys((Shape(1, min(16, long)), Shape(1, long), Shape(8, long))))
    else:
        usual = (Shape(1), Shape(8))
    held = tuple(shape for shape in usual if all(any(_holds(each, shape) for each in engine) for engine in engines))
    return held or tuple(dict.fromkeys(_best(each, usual[0]) for each in engines[0]))


def _holds(profile: Profile, shape: Shape) -> bool:
    """Whether a shape lies within the ranges of every input."""
    wanted = (shape.batch, shape.sequence)[: 2 if shape.sequence else 1]
    return all(
        low <= size <= high
        for each in profile.ranges.values()
        for low, size, high in zip(each.min, wanted, each.max, strict=False)
    )


def _best(profile: Profile, like: Shape) -> Shape:
    """The shape that a profile's kernels were chosen for."""
    each = max(profile.ranges.values(), key=lambda one: len(one.opt))
    return Shape(each.opt[0], each.opt[1] if like.sequence and len(each.opt) > 1 else 0)


def shape_text(shape: str) -> str:
    """``8x128`` as ``8 × 128``; rows of a file as they are."""
    return shape.replace("x", " × ") if shape[-1:].isdigit() else shape
