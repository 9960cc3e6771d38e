"""A generator held to what PyTorch wrote when it was exported; PyTorch itself is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from optimizer.data.continuations import Continuation
from optimizer.errors import GateFailed
from optimizer.generating.golden import first_difference
from optimizer.generator import Generator, Sampling
from optimizer.types import JSON

__all__ = ["SCHEMA", "ReplayReport", "Replayed", "replay"]

#: Raised by one whenever a reader of the older number would misread the report.
SCHEMA = 1


@dataclass(frozen=True)
class Replayed:
    """One golden continuation, written again.

    Attributes:
        text: the prompt.
        tokens: that PyTorch wrote, end tokens left out.
        held: how many of them were compared: up to the first where rounding may choose another one.
        alike: how many were written again from the first on, compared or not.
        differs: the place of the first compared token that is another one; None where there is none.
    """

    text: str
    tokens: int
    held: int
    alike: int
    differs: int | None


@dataclass(frozen=True)
class ReplayReport:
    """Everything that was found, continuation by continuation.

    Attributes:
        ref: what was judged.
        precision: what its weights are stored in.
        reach: a token is held to what it should be where it was further ahead of the next one than this, in nats.
        rows: the continuations.
        failures: what is another text, in words.
        facts: what it ran on.
    """

    ref: str
    precision: str
    reach: float
    rows: tuple[Replayed, ...]
    failures: tuple[str, ...]
    facts: dict[str, JSON] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 when a continuation is another text."""
        return GateFailed.exit_code if self.failures else 0

    def to_json(self) -> dict[str, JSON]:
        return {
            "report": "verify-golden-text",
            "schema": SCHEMA,
            "ref": self.ref,
            "against": "golden",
            "passed": self.exit_code == 0,
            "exit_code": self.exit_code,
            "precision": self.precision,
            "reach": self.reach,
            "rows": [asdict(row) for row in self.rows],
            "failures": list(self.failures),
            "facts": self.facts,
        }


def replay(
    generator: Generator, golden: Sequence[Continuation], near: float
) -> tuple[tuple[Replayed, ...], tuple[str, ...]]:
    """Write golden continuations again, all at once, as they would be served.

    Args:
        generator: what is judged.
        golden: what PyTorch wrote.
        near: where a token was no further ahead of the next one than this, in nats, rounding may choose another.

    Returns:
        what was found of each, and what is another text, in words.
    """
    begun = [generator.submit(each.prompt, Sampling(max_tokens=len(each.tokens))) for each in golden]
    rows, failures = [], []
    for number, (each, generation) in enumerate(zip(golden, begun, strict=True), 1):
        got = [token for piece in generation for token in piece.tokens]
        wanted = [token for token in each.tokens if token not in generator.end_tokens]
        place, held = first_difference(wanted, got, each.margins, near)
        alike = next((n for n, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), None)
        rows.append(
            Replayed(each.text, len(wanted), held, min(len(wanted), len(got)) if alike is None else alike, place)
        )
        if place is not None:
            failures.append(
                f"continuation {number}: token {place + 1} is another one than PyTorch's, which was "
                f"{each.margins[place]:.2g} nats ahead; {near:.2g} are within rounding"
            )
    return tuple(rows), tuple(failures)
