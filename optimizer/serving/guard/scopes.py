"""What a caller may do, and who it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from optimizer.errors import UnknownName
from optimizer.serving.guard.rates import Rate
from optimizer.serving.route import Scope

__all__ = ["ANYBODY", "Principal", "scopes_of"]


def scopes_of(words: Iterable[str]) -> frozenset[Scope]:
    """The scopes that a key can be given, from their names; raises :class:`UnknownName`.

    None holds another: a key that may load models may not ask them, unless it has both.
    """
    known = {s.value for s in Scope if s is not Scope.OPEN}
    for word in words:
        if word not in known:
            raise UnknownName("scope", word, known)
    return frozenset(Scope(word) for word in words)


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        id: ``key:ID``, ``jwt:SUBJECT`` or ``anybody``: what rates are counted by and logs name.
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
