"""Looks: the rows in the order in which candidates answer them, and what each look may cost in confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.benching.inputs import save
from optimizer.data.calibration import sample
from optimizer.evalset import EvalSet
from optimizer.search.accuracy import Answers, Batches

__all__ = ["Looks", "early_confidence", "final_confidence", "look_sizes"]

#: The first look is this share of the rows, if that is at least so many; every further look doubles what was seen.
_FIRST_SHARE = 8
_LEAST = 64


def look_sizes(rows: int) -> tuple[int, ...]:
    """How many rows have been seen after each look; the last is all of them: 600 → 75, 150, 300, 600."""
    seen = max(_LEAST, rows // _FIRST_SHARE)
    sizes = []
    while 2 * seen <= rows:
        sizes.append(seen)
        seen *= 2
    return (*sizes, rows)


def early_confidence(confidence: float, looks: int) -> float:
    """Confidence of the bound by which a look before the last calls a candidate FAIL.

    The early looks share half of the error that was allowed, in equal parts (Bonferroni over looks; the sharper bounds
    of Pocock, *Biometrika* 64 (1977) 191-199, need a joint distribution). No look but the last can call PASS.
    """
    return 1 - (1 - confidence) / (2 * max(1, looks - 1))


def final_confidence(confidence: float, candidates: int) -> float:
    """Confidence of every bound on all rows: Bonferroni over the candidates that may yet win."""
    return 1 - (1 - confidence) / max(1, candidates)


@dataclass(frozen=True)
class Looks:
    """What is answered, look by look.

    Attributes:
        parts: the batches that each look adds; every row is in one of them, and batches are the same for everyone.
    """

    parts: tuple[Batches, ...]

    @classmethod
    def of(cls, rows: EvalSet, most: int | None, scratch: Path) -> Looks:
        """Cut the rows into looks that cover lengths and labels like the whole.

        Args:
            rows: all of them.
            most: rows that the model takes at once, where it says so.
            scratch: where the inputs are written.
        """
        left = list(range(len(rows.rows)))
        parts = []
        seen = 0
        for number, size in enumerate(look_sizes(len(rows.rows))):
            taken = left if size == len(rows.rows) else _sampled(rows, left, size - seen)
            seen = size
            chosen = set(taken)
            left = [place for place in left if place not in chosen]
            made = list(rows.batches(most, taken))
            files = save(scratch, f"feeds-{number}", [batch.feeds for batch in made])
            parts.append(Batches(tuple(files), tuple(batch.rows for batch in made)))
        return cls(tuple(parts))

    def upto(self, look: int) -> Batches:
        """All batches of the looks up to and including this one."""
        taken = self.parts[: look + 1]
        return Batches(
            tuple(path for part in taken for path in part.feeds),
            tuple(place for part in taken for place in part.places),
        )

    def of_original(self, answers: Answers, look: int) -> Answers:
        """The part of the answers to all rows that belongs to :meth:`upto`."""
        return Answers(answers.files[: len(self.upto(look).feeds)], answers.seconds)


def _sampled(rows: EvalSet, left: Sequence[int], count: int) -> list[int]:
    """So many of the rows that are left, by strata of label and length, as calibration rows are chosen."""
    picked = sample(
        [rows.rows[place] for place in left],
        count,
        # Two equal rows are two rows here: accuracy counts both. Where the file lies must not change what is chosen.
        content=lambda row: str(row.number),
        lengths=[rows.lengths[place] for place in left] if rows.lengths else None,
        labels=[rows.labels[place] for place in left] if rows.labels else None,
    )
    return [left[place] for place in picked]
