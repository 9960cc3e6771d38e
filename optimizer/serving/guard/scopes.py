"""Who asks, what they may do, and what a request that was let in carries on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field

from optimizer.errors import UnknownName
from optimizer.serving.guard.rates import Rate
from optimizer.serving.route import Scope

__all__ = ["ANYBODY", "STRANGER", "Admitted", "Principal", "Reservation", "joined", "scopes_of"]


def scopes_of(words: Iterable[str]) -> frozenset[Scope]:
    """The scopes that a key can be given, from their names; raises :class:`UnknownName`.

    None holds another: a key that may load models may not ask them, unless it has both.
    """
    known = {s.value for s in Scope if s is not Scope.OPEN}
    for word in words:
        if word not in known:
            raise UnknownName("scope", word, known)
    return frozenset(Scope(word) for word in words)


def joined(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """``RateLimit`` fields of two policies in one header each; those of ``other`` replace older ones of theirs."""
    made = {}
    for name in {**one, **other}:
        items = {i.partition(";")[0]: i for h in (one, other) for i in h.get(name, "").split(", ") if i}
        made[name] = ", ".join(items.values())
    return made


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        id: ``key:ID``, ``jwt:SUBJECT``, ``anybody`` or ``stranger``: what rates are counted by and logs name.
        scopes: what it may do.
        rate: requests in a time; None for as many as it likes.
        tokens: tokens in a time.
    """

    id: str
    scopes: frozenset[Scope]
    rate: Rate | None = None
    tokens: Rate | None = None


#: Who asks a server without keys, which listens to its own machine alone.
ANYBODY = Principal("anybody", frozenset(Scope))
#: Who asks an open route of a server with keys: nobody looked whether it has one.
STRANGER = Principal("stranger", frozenset({Scope.OPEN}))


@dataclass(frozen=True)
class Admitted:
    """A request that was let in.

    Attributes:
        who: who asks; what a log and a budget know it by.
        headers: what its answer says beside the rest (``RateLimit``).
    """

    who: Principal = ANYBODY
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Reservation:
    """Tokens taken from a budget for a request that runs.

    Attributes:
        amount: tokens reserved; 0 where the caller has no budget.
        headers: the ``RateLimit`` fields about the budget.
    """

    amount: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    _correct: Callable[[int], Awaitable[None]] | None = field(default=None, repr=False)

    async def settle(self, used: int) -> None:
        """Say what the request came to: the rest goes back, what was used beyond is taken. The first call counts.

        Args:
            used: tokens; 0 for a request that failed or was cancelled before it cost any.
        """
        correct, self._correct = self._correct, None
        if correct is not None and used != self.amount:
            await correct(used - self.amount)
