"""Milder kin of static int8: what may be tried while every plain way of calibrating misses a budget.

First other ranges (entropy), then mixed precision: the few nodes that lose most in int8 stay in float, 2, 4, 8 … of
them, from one ranking that is made once and kept. Which plain candidate they start from is decided by what was seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from optimizer.benching.process import CandidateFailed
from optimizer.errors import MlOptError
from optimizer.quantizing.sensitivity import NodeNoise
from optimizer.search.accuracy import Scores
from optimizer.search.candidates import STATIC, Idea, StepOf
from optimizer.search.contender import Contender
from optimizer.types import JSON

__all__ = ["FIRST_EXCLUDED", "Kin", "mean_cosine"]

#: How many nodes are left in float at first, and how often that is doubled: each is another artifact to make.
FIRST_EXCLUDED = 2
_DOUBLINGS = 4


class Kin:
    """The next candidate of a family, from what is known of those that were tried.

    Args:
        ideas: the family's plain members.
        contend: makes a contender of an idea.
        ranked: makes the ranking of nodes, or finds it, and says what it is called in the store.

    Attributes:
        made: the ideas that were tried, by name.
        ranking: the nodes that lose most in int8, worst first; empty while none was needed.
        trouble: why there is no ranking though one was needed, or why no more nodes were left in float.
    """

    def __init__(
        self,
        ideas: Sequence[Idea],
        contend: Callable[[Idea], Contender],
        ranked: Callable[[], tuple[str, Sequence[NodeNoise]]],
    ) -> None:
        self._ideas = {idea.name: idea for idea in ideas}
        self._contend, self._ranked = contend, ranked
        self._tried: Sequence[Contender] = ()
        self._following = self._each()
        self._over = False
        self.made: dict[str, Idea] = {}
        self.ranking: tuple[NodeNoise, ...] = ()
        self.trouble = ""

    @property
    def untried(self) -> str:
        """What has not been tried, as one name; empty when everything was."""
        if self._over:
            return ""
        plain = next(iter(self._ideas))
        return f"{plain}-mixed-N" if f"{plain}-entropy" in self.made else f"{plain}-entropy and -mixed-N"

    def __call__(self, tried: Sequence[Contender]) -> Contender | None:
        """The next one, or None when there is none left."""
        self._tried = tried
        idea = next(self._following, None)
        if idea is None:
            self._over = True
            return None
        self.made[idea.name] = idea
        return self._contend(idea)

    def _each(self) -> Iterator[Idea]:
        plain = next(iter(self._ideas.values()))
        yield _with(plain, f"{plain.name}-entropy", {"method": "entropy"}, "ranges that lose the least information")
        start = self._best()
        if start is None:
            return  # nothing of the family could be made at all
        try:
            where, ranking = self._ranked()
        except (CandidateFailed, MlOptError) as failed:
            self.trouble = f"No mixed precision was tried: nodes cannot be ranked: {failed.message}"
            return
        self.ranking = tuple(ranking)
        count = FIRST_EXCLUDED
        mixed: list[str] = []
        for left in range(_DOUBLINGS, -1, -1):
            if self._too_slow(mixed, left + 1):
                self.trouble = (
                    f"No more than {count // 2} nodes were left in float: the worst cosine is too far from what is "
                    f"asked, and from {count // 4} nodes to {count // 2} the mean came too little nearer."
                )
                return
            # Beyond half of the nodes it is hardly int8 any more, and the float candidates are in the race themselves.
            if 2 * count > len(ranking):
                return
            mixed.append(f"{start.name}-mixed-{count}")
            yield _with(
                start,
                mixed[-1],
                {"exclude_worst": count, "sensitivity": where},
                f"the {count} nodes that lose most in int8 stay in float",
            )
            count *= 2

    def _too_slow(self, mixed: Sequence[str], doublings: int) -> bool:
        """Whether the worst cosine cannot reach its budget at the rate at which the last doubling brought the mean on.

        The mean says how fast, as it is of all rows, and the worst how far. Only cosines are extrapolated: decisions
        change one by one, and not by a rate.

        Args:
            mixed: what was tried with nodes in float, fewest first.
            doublings: how many more there could be.
        """
        by_name = {contender.name: contender for contender in self._tried}
        before, last = (by_name.get(name) for name in mixed[-2:]) if len(mixed) > 1 else (None, None)
        if before is None or last is None or before.scores is None or last.scores is None:
            return False
        gate = next((gate for gate in last.gates if gate.name == "worst cosine" and gate.limit < 1), None)
        if gate is None or mean_cosine(before) == 1:
            return False
        rate = (1 - mean_cosine(last)) / (1 - mean_cosine(before))
        return (1 - gate.value) / (1 - gate.limit) * rate**doublings > 1

    def _best(self) -> Idea | None:
        """The member whose answers were nearest to the original's."""
        known = [c for c in self._tried if c.scores is not None and c.name in {**self._ideas, **self.made}]
        best = max(known, key=mean_cosine, default=None)
        return {**self._ideas, **self.made}[best.name] if best else None


def mean_cosine(contender: Contender) -> float:
    """Of the rows that it answered."""
    assert isinstance(contender.scores, Scores)
    return sum(contender.scores.cosine) / len(contender.scores.cosine)


def _with(idea: Idea, name: str, options: Mapping[str, JSON], why: str) -> Idea:
    """The same chain with other options of its static quantization."""
    steps = tuple(
        StepOf(step.stage, {**step.options, **options}) if step.stage == STATIC else step for step in idea.steps
    )
    return replace(idea, name=name, steps=steps, why=why)
